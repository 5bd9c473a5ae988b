"""Speed of the operators on the CPU against other ways to do the same work.

Run as `python -m benchmarks.bench_ops [--quick] [--compile] [--out DIR]`, or through
`main(argv)`.  Candidates are timed in turn in one process; minimum and median of each
go to DIR/ops-<isa>.json and .md.  Per cents are of the FMA peak and of the read
bandwidth measured in the same run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from fedclip_plugin import capabilities, ops

from . import rivals
from .ops_tables import markdown
from .timing import Timing, fma_peak, interleave, machine

RESULTS = Path(__file__).parent / "results"
CLASSES, ROWS = 7, 4096
Row = dict[str, Any]


def make_training(dim: int, batch: int, steps: int, seed: int = 0) -> dict[str, Any]:
    """One client's data and state, `steps` batches of it."""
    torch.manual_seed(seed)
    rows = max(ROWS, batch * steps)
    params = [p.detach().clone() for p in rivals.make_adapter(dim).parameters()]
    return {
        "x": torch.randn(rows, dim) * 0.3,
        "y": torch.randint(0, CLASSES, (rows,)),
        "text": F.normalize(torch.randn(CLASSES, dim), dim=1),
        "perm": torch.randperm(rows)[: batch * steps],
        "params": params,
        "exp_avg": [torch.zeros_like(p) for p in params],
        "exp_avg_sq": [torch.zeros_like(p) for p in params],
    }


def fused_round(clients: Sequence[dict[str, Any]], batch: int) -> object:
    def flat(name: str) -> list[torch.Tensor]:
        return [t for c in clients for t in c[name]]

    return torch.ops.fedclip.local_round(
        [c["x"] for c in clients],
        [c["y"] for c in clients],
        clients[0]["text"],
        [c["perm"] for c in clients],
        batch,
        flat("params"),
        flat("exp_avg"),
        flat("exp_avg_sq"),
        [0] * len(clients),
        *rivals.ADAM,
    )


def row(what: str, times: dict[str, Timing], **facts: object) -> Row:
    ours = times["ours"]
    return {
        "what": what,
        **facts,
        "threads": torch.get_num_threads(),
        "us": {k: [round(v, 2) for v in t] for k, t in times.items()},
        "ratio": {
            k: [round(t.minimum / ours.minimum, 2), round(t.median / ours.median, 2)]
            for k, t in times.items()
            if k != "ours"
        },
    }


def train_step(
    dim: int, batch: int, rounds: int, rivals_too: bool, compiled: bool
) -> Row:
    """A step of local training; flops are those of its five products."""
    steps = 20 if batch <= 64 else 4
    c = make_training(dim, batch, steps)
    data = (c["x"], c["y"], c["text"], c["perm"].split(batch))
    candidates: dict[str, rivals.Run] = {"ours": lambda: fused_round([c], batch)}
    if rivals_too:
        candidates["eager"] = rivals.eager_epoch(*data)
        candidates["eager, foreach"] = rivals.eager_epoch(*data, foreach=True)
        candidates["eager, fused"] = rivals.eager_epoch(*data, fused=True)
    if compiled:
        candidates["compile, fused"] = rivals.eager_epoch(
            *data, compiled=True, fused=True
        )
    peak = fma_peak()
    times = interleave(candidates, rounds, steps)
    peak = max(peak, fma_peak()) * torch.get_num_threads()
    rate = 10 * dim * dim * batch / times["ours"].minimum / 1e3
    share = round(100 * rate / peak)
    return row("training step", times, dim=dim, batch=batch, peak_percent=share)


def forward(dim: int, rows: int, rounds: int) -> Row:
    """The adapter's forward without gradients."""
    c = make_training(dim, 32, 1)
    adapter = rivals.make_adapter(dim)
    x = c["x"][:rows]

    def eager() -> None:
        with torch.no_grad():
            rivals.gate(adapter, x)

    def ours() -> None:
        torch.ops.fedclip.adapter(x, *c["params"])

    peak = fma_peak()
    times = interleave({"ours": ours, "eager": eager}, rounds)
    rate = 4 * dim * dim * rows / times["ours"].minimum / 1e3
    share = round(100 * rate / (max(peak, fma_peak()) * torch.get_num_threads()))
    return row("adapter forward", times, dim=dim, batch=rows, peak_percent=share)


def client_scaling(clients: int, rounds: int, threads: int) -> Row:
    """A round over clients, on one thread and on all: microseconds a client's step."""
    steps, batch, dim = 3, 32, 512
    everyone = [make_training(dim, batch, steps, seed) for seed in range(clients)]

    def on(count: int) -> rivals.Run:
        def run() -> None:
            torch.set_num_threads(count)
            fused_round(everyone, batch)

        return run

    candidates = {"ours": on(threads), "one thread": on(1)}
    times = interleave(candidates, rounds, steps * clients)
    torch.set_num_threads(threads)
    return row("round over clients", times, dim=dim, batch=batch, clients=clients)


def mean(clients: int, rounds: int, dim: int = 512) -> Row:
    """The weighted mean of `clients` adapters, and the same of int8."""
    shapes = [(dim, dim), (dim,), (dim, dim), (dim,)]
    torch.manual_seed(0)
    states = [[torch.randn(s) for s in shapes] for _ in range(clients)]
    by_key = [list(tensors) for tensors in zip(*states)]
    everything = [t for tensors in by_key for t in tensors]
    weights = torch.rand(clients, dtype=torch.float64) + 0.1
    shares = (weights / weights.sum()).tolist()
    small = [[(x * 20).to(torch.int8) for x in xs] for xs in by_key]
    scales = [[torch.rand(len(x)) for x in xs] for xs in by_key]
    fp32, int8 = torch.ops.fedclip.weighted_mean, torch.ops.fedclip.weighted_mean_int8

    def exact_error() -> float:
        xs = by_key[0]
        total = sum(s * x.double() for s, x in zip(shares, xs))
        error = (ops.weighted_mean(xs, weights).double() - total).abs().max()
        return float(error / total.square().mean().sqrt())

    times = interleave(
        {
            "ours": lambda: [fp32(xs, weights) for xs in by_key],
            "ours, int8": lambda: [int8(q, s, weights) for q, s in zip(small, scales)],
            "read": lambda: torch.ops.fedclip_benchmark.read(everything),
            "PersonalizedFL": lambda: rivals.personalizedfl_mean(states, shares),
            "add_": lambda: rivals.add_mean(states, shares),
            "FedML": lambda: rivals.fedml_mean(states, shares),
            "Flower": lambda: rivals.flower_mean(states, shares),
        },
        rounds,
    )
    share = round(100 * times["read"].minimum / times["ours"].minimum)
    facts = {"read_percent": share, "error": exact_error()}
    return row("weighted mean", times, dim=dim, clients=clients, **facts)


def run(quick: bool, compiled: bool, rounds: int) -> list[Row]:
    threads = torch.get_num_threads()
    found: list[Row] = []
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        for batch in (32, 256):
            found.append(train_step(512, batch, rounds, True, compiled))
        found += [forward(512, n, 3 * rounds) for n in (32, 256)]
        if not quick:
            found.append(forward(512, 4096, max(5, rounds // 8)))
        sizes = (4, 100) if quick else (4, 16, 100, 1000)
        found += [mean(n, max(4, min(rounds, 20_000 // (10 * n)))) for n in sizes]
    if not quick:
        torch.set_num_threads(1)
        for dim in (384, 640, 768, 1024):
            found.append(train_step(dim, 32, rounds, True, False))
        for batch in (8, 16, 48, 64, 128):
            found.append(train_step(512, batch, rounds, False, False))
    torch.set_num_threads(threads)
    if threads > 1:
        counts = (4,) if quick else (1, 2, 4, 16, 100)
        found += [client_scaling(n, max(5, 4 * rounds // n), threads) for n in counts]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench_ops", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--rounds", type=int, default=60, help="timings of each")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    arguments = parser.parse_args(argv)
    if not capabilities()["compiled"]:
        parser.error("the compiled kernels are missing: pip install -e . builds them")
    peak = round(fma_peak())
    rows = run(arguments.quick, arguments.compile, arguments.rounds)
    report = {"machine": {**machine(), "fma_peak_gflops": peak}, "rows": rows}
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / f"ops-{capabilities()['isa']}"
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    stem.with_suffix(".md").write_text(markdown(report))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
