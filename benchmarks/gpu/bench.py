"""Speed of the CUDA kernels; check.py runs it.  Every size can be made small."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.command import table
from benchmarks.gpu import rivals
from benchmarks.gpu.rivals import (
    Run,
    Timing,
    back_to_back,
    interleave,
    make_client,
    ours,
    possible,
)

Row = dict[str, Any]
GROUP = "FEDCLIP_CUDA_GROUP"


class Sizes(NamedTuple):
    """What is measured, and where."""

    device: str = "cuda"
    rounds: int = 20
    dim: int = 512
    batches: tuple[int, ...] = (32, 256)
    other_dims: tuple[int, ...] = (384, 640, 768, 1024)
    steps: int = 20
    clients: tuple[int, ...] = (1, 4, 16, 64, 128)
    groups: tuple[int, ...] = (8, 16, 24, 32, 43, 64, 128)
    forward_rows: tuple[int, ...] = (32, 256, 4096, 65536)
    mean_clients: tuple[int, ...] = (4, 100, 1000)
    mean_elements: tuple[int, ...] = (512 * 512, 2**22)
    mean_bytes: int = 24 * 2**30  # a larger mean is left out
    copy_bytes: int = 2**31
    compiled: bool = True  # torch.compile as well


def row(what: str, times: Mapping[str, Timing], **facts: object) -> Row:
    first = next(iter(times.values()))
    return {
        "what": what,
        **facts,
        "us": {k: [round(v, 2) for v in t] for k, t in times.items()},
        "ratio": {
            k: [round(t.minimum / first.minimum, 2), round(t.median / first.median, 2)]
            for k, t in list(times.items())[1:]
        },
    }


@contextmanager
def group_of(size: int | None) -> Iterator[None]:
    """A group of this many blocks, or what the kernel chooses."""
    before = os.environ.pop(GROUP, None)
    if size:
        os.environ[GROUP] = str(size)
    try:
        yield
    finally:
        os.environ.pop(GROUP, None)
        if before:
            os.environ[GROUP] = before


def local_step(s: Sizes, dim: int, batch: int, compiled: bool) -> Row:
    """One client: microseconds a step."""
    c = make_client(dim, batch, s.steps, s.device)
    makers = {
        "ours": lambda: ours([c], batch),
        "ours, bf16": lambda: ours([c], batch, bf16=True),
        "eager": lambda: rivals.eager(c, batch),
        "eager, fused": lambda: rivals.eager(c, batch, fused=True),
    }
    if compiled:
        mode = "reduce-overhead"
        makers["compile, graphs"] = lambda: rivals.eager(c, batch, mode, fused=True)
        makers["whole step a graph"] = lambda: rivals.whole_step_graph(c, batch)
        makers["the same, TF32"] = lambda: rivals.tf32(makers["whole step a graph"])
    candidates, note = possible(makers)
    times = interleave(candidates, s.rounds, s.steps, s.device)
    rate = 10 * dim * dim * batch / times["ours"].minimum / 1e6
    facts = {"dim": dim, "batch": batch, "tflops": round(rate, 2), "note": note}
    return row("local step of one client", times, **facts)


def many_clients(s: Sizes, count: int) -> Row:
    """Microseconds a client's step: in one call, one after another, stacked."""
    batch, steps = s.batches[0], s.steps
    first = make_client(s.dim, batch, steps, s.device)
    rest = [
        make_client(s.dim, batch, steps, s.device, seed, first["text"])
        for seed in range(1, count)
    ]
    clients = [first, *rest]
    single = [ours([c], batch) for c in clients]
    makers: dict[str, Callable[[], Run]] = {
        "ours": lambda: ours(clients, batch),
        "one after another": lambda: lambda: [run() for run in single],
        "stacked": lambda: rivals.stacked(clients, batch),
    }
    if s.compiled and count == s.clients[-1]:
        mode = "reduce-overhead"
        makers["stacked, compile"] = lambda: rivals.stacked(clients, batch, mode)
        makers["stacked, a graph"] = lambda: rivals.stacked_graph(clients, batch)
        makers["the same, TF32"] = lambda: rivals.tf32(makers["stacked, a graph"])
    candidates, note = possible(makers)
    rounds = max(3, s.rounds // 3)
    times = interleave(candidates, rounds, steps * count, s.device)
    facts = {"dim": s.dim, "batch": batch, "clients": count, "note": note}
    return row("a round over clients", times, **facts)


def group_sizes(s: Sizes, dim: int, count: int) -> Row:
    """Microseconds a client's step by the size of a group."""
    batch, steps = s.batches[0], max(1, s.steps // 4)
    first = make_client(dim, batch, steps, s.device)
    rest = [
        make_client(dim, batch, steps, s.device, seed, first["text"])
        for seed in range(1, count)
    ]
    call = ours([first, *rest], batch)

    def of(size: int | None) -> Run:
        def run() -> object:
            with group_of(size):
                return call()

        return run

    sizes: tuple[int | None, ...] = (None, *s.groups)
    makers = {f"G={g}" if g else "chosen": partial(of, g) for g in sizes}
    candidates, note = possible(makers)
    rounds = max(3, s.rounds // 3)
    times = interleave(candidates, rounds, steps * count, s.device)
    return row("size of a group", times, dim=dim, batch=batch, clients=count, note=note)


def forward(s: Sizes, rows: int) -> Row:
    """The adapter without gradients."""
    adapter = rivals.make_adapter(s.dim, s.device)
    params = [p.detach().clone() for p in adapter.parameters()]
    x = torch.randn(rows, s.dim, device=s.device)

    def eager() -> object:
        with torch.no_grad():
            return rivals.gate(adapter, x)

    candidates: dict[str, Run] = {
        "ours": lambda: torch.ops.fedclip.adapter(x, *params),
        "eager": eager,
    }
    times = interleave(candidates, 3 * s.rounds, 1, s.device)
    return row("adapter forward", times, dim=s.dim, batch=rows)


def copy_bandwidth(s: Sizes) -> float:
    """GB/s of a copy on the device, bytes read plus bytes written."""
    source = torch.ones(s.copy_bytes // 4, device=s.device)
    target = torch.empty_like(source)
    times = interleave({"copy": lambda: target.copy_(source)}, 10, 1, s.device)
    return 2 * s.copy_bytes / times["copy"].minimum / 1e3


def mean(s: Sizes, clients: int, elements: int, bandwidth: float) -> Row:
    """The weighted mean of `clients` tensors, in float32 and int8."""
    xs = [torch.randn(elements, device=s.device) for _ in range(clients)]
    weights = torch.rand(clients, dtype=torch.float64) + 0.1
    shares = (weights / weights.sum()).tolist()
    rows = 512 if elements % 512 == 0 else 1
    qs = [(x * 20).to(torch.int8).view(rows, -1) for x in xs]
    scales = [torch.rand(rows, device=s.device) for _ in xs]
    fedclip = torch.ops.fedclip
    candidates: dict[str, Run] = {
        "ours": lambda: fedclip.weighted_mean(xs, weights),
        "ours, int8": lambda: fedclip.weighted_mean_int8(qs, scales, weights),
        "PersonalizedFL": lambda: rivals.personalizedfl_mean(xs, shares),
        "add_": lambda: rivals.add_mean(xs, shares),
    }
    times = interleave(candidates, s.rounds, 1, s.device)
    moved = 4 * elements * (clients + 1) / 1e3  # GB/s of microseconds
    share = round(100 * moved / times["ours"].minimum / bandwidth)
    busy = back_to_back(candidates["ours"], s.rounds, s.device)
    exact = sum(w * x.double() for w, x in zip(shares, xs))
    assert isinstance(exact, torch.Tensor)
    error = (fedclip.weighted_mean(xs, weights).double() - exact).abs().max()
    facts = {
        "elements": elements,
        "clients": clients,
        "copy_percent": share,
        "busy_percent": round(100 * moved / busy / bandwidth),
    }
    error = float(error / exact.square().mean().sqrt())
    return row("weighted mean", times, **facts, error=f"{error:.1e}")


def run(sizes: Sizes, seconds: float) -> tuple[list[Row], dict[str, Any]]:
    """All measurements, the important ones first, until the time is over."""
    end = time.monotonic() + seconds
    bandwidth = copy_bandwidth(sizes)
    step, dim = partial(local_step, sizes), sizes.dim
    jobs = [partial(step, dim, batch, sizes.compiled) for batch in sizes.batches]
    jobs += [partial(many_clients, sizes, n) for n in reversed(sizes.clients)]
    jobs += [
        partial(mean, sizes, n, e, bandwidth)
        for e in sizes.mean_elements
        for n in sizes.mean_clients
        if 8 * n * e <= sizes.mean_bytes
    ]
    jobs += [partial(forward, sizes, n) for n in sizes.forward_rows]
    extremes = sorted({sizes.clients[0], sizes.clients[-1]})
    jobs += [partial(group_sizes, sizes, dim, n) for n in extremes]
    jobs += [partial(step, d, sizes.batches[0], False) for d in sizes.other_dims]
    jobs += [partial(group_sizes, sizes, d, extremes[-1]) for d in sizes.other_dims]
    rows: list[Row] = []
    for job in jobs:
        if time.monotonic() > end:
            break
        rows.append(job())
    left_out = len(jobs) - len(rows)
    return rows, {"copy_gb_per_s": round(bandwidth), "left_out": left_out}


SIZES = ("dim", "batch", "elements", "clients")
FACTS = ("copy_percent", "busy_percent", "tflops", "error", "note")
NAMES = {
    "dim": "D",
    "batch": "rows",
    "copy_percent": "% of copy bandwidth",
    "busy_percent": "% where calls follow one another",
    "tflops": "TFLOP/s",
    "error": "error / rms",
}


def section(rows: Sequence[Row]) -> list[str]:
    """One kind of measurement as Markdown; times are minimum / median."""
    first = next(iter(rows[0]["us"]))
    rivals_of = list(dict.fromkeys(k for r in rows for k in r["ratio"]))
    sizes = [k for k in SIZES if any(k in r for r in rows)]
    facts = [k for k in FACTS if any(r.get(k) for r in rows)]
    head = [*sizes, f"{first}, us", *rivals_of, *facts]
    body = []
    for r in rows:
        cells = [str(r.get(k, "")) for k in sizes]
        cells.append(" / ".join(f"{v:.1f}" for v in r["us"][first]))
        for name in rivals_of:
            pair = r["ratio"].get(name)
            cells.append(" / ".join(f"{v:.2f}x" for v in pair) if pair else "")
        cells += [str(r.get(k, "")).replace("|", "/") for k in facts]
        body.append(cells)
    return table([NAMES.get(k, k) for k in head], body)


def markdown(report: Mapping[str, Any]) -> str:
    """The whole report."""
    m = report["machine"]
    lines = [
        f"# CUDA kernels on {m['gpu']}",
        "",
        f"{m['date']}; torch {m['torch']}, CUDA {m['cuda']}, driver {m['driver']}, "
        f"Python {m['python']}; {m['multiprocessors']} multiprocessors; a copy on the "
        f"device moves {report['copy_gb_per_s']} GB/s, bytes read plus written.",
        "",
        "Times are minimum / median of interleaved runs, from an idle device to an "
        "idle device. A rival's cell is its time over the first column's: above 1 it "
        "is slower.",
        "",
        "Checks: " + "; ".join(f"{k}: {v}" for k, v in report["checks"].items()) + ".",
    ]
    if report["left_out"]:
        lines += ["", f"{report['left_out']} measurements left out for lack of time."]
    for what in dict.fromkeys(r["what"] for r in report["rows"]):
        rows = [r for r in report["rows"] if r["what"] == what]
        lines += ["", f"## {what.capitalize()}", "", *section(rows)]
    return "\n".join(lines) + "\n"
