"""One measurement a function: an operator of one size beside its rivals.

Each returns a row: ``what``, the sizes, ``threads``, ``us`` (minimum and median of each
candidate, in microseconds), ``ratio`` (a candidate's times over ours) and, where there
is a ceiling, the per cent of it that ours reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..wire.codecs import CODECS
from . import rivals
from .timing import Timing, fma_peak, interleave

CLASSES, ROWS = 7, 4096
OURS = "ours"
Row = dict[str, Any]


def make_training(
    dim: int, batch: int, steps: int, seed: int = 0
) -> tuple[ops.LocalClient, Tensor]:
    """One client, ``steps`` batches of it, and the text features (CLASSES, dim)."""
    torch.manual_seed(seed)
    rows = max(ROWS, batch * steps)
    x = torch.randn(rows, dim) * 0.3
    y = torch.randint(0, CLASSES, (rows,))
    text = F.normalize(torch.randn(CLASSES, dim), dim=1)
    perm = torch.randperm(rows)[: batch * steps]
    return ops.LocalClient(x, y, perm, *make_state(dim)), text


def make_state(dim: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """A fresh adapter and Adam's moments."""
    return fresh_copies([p.detach() for p in rivals.make_adapter(dim).parameters()])


def fresh_copies(
    params: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Copies of parameters, and Adam's moments of zeros."""
    exp_avg, exp_avg_sq = ([torch.zeros_like(p) for p in params] for _ in range(2))
    return [p.clone() for p in params], exp_avg, exp_avg_sq


def make_row(what: str, times: Mapping[str, Timing], **facts: object) -> Row:
    """Times and ratios of one measurement."""
    ours = times[OURS]
    return {
        "what": what,
        **facts,
        "threads": torch.get_num_threads(),
        "us": {k: [round(v, 2) for v in t] for k, t in times.items()},
        "ratio": {
            k: [round(t.minimum / ours.minimum, 2), round(t.median / ours.median, 2)]
            for k, t in times.items()
            if k != OURS
        },
    }


def _peak_percent(
    operations: float, time: Callable[[], Mapping[str, Timing]]
) -> tuple[int, Mapping[str, Timing]]:
    """Times, and the per cent of the FMA peak at ``operations`` a call of ours."""
    peak = fma_peak()
    times = time()
    peak = max(peak, fma_peak()) * torch.get_num_threads()
    return round(100 * operations / times[OURS].minimum / 1e3 / peak), times


def train_step(dim: int, batch: int, rounds: int, compiled: bool) -> Row:
    """A step of local training; operations are those of its five products."""
    steps = 20 if batch <= 64 else 4
    c, text = make_training(dim, batch, steps)
    other = ops.LocalClient(c.x, c.y, c.perm, *make_state(dim))
    fp32, bf16 = (ops.Hyperparameters(batch, *rivals.ADAM, p) for p in ops.PRECISIONS)
    data = (c.x, c.y, text, c.perm.split(batch))
    candidates: dict[str, rivals.Run] = {
        OURS: lambda: ops.local_round([c], text, fp32),
        "ours, bf16": lambda: ops.local_round([other], text, bf16),
        "eager": rivals.eager_epoch(*data),
        "eager, foreach": rivals.eager_epoch(*data, foreach=True),
        "eager, fused": rivals.eager_epoch(*data, fused=True),
    }
    if compiled:
        epoch = rivals.eager_epoch(*data, compiled=True, fused=True)
        candidates["compile, fused"] = epoch
    share, times = _peak_percent(
        10 * dim * dim * batch, lambda: interleave(candidates, rounds, steps)
    )
    return make_row("training step", times, dim=dim, batch=batch, peak_percent=share)


def forward(dim: int, rows: int, rounds: int, compiled: bool) -> Row:
    """The adapter's forward without gradients."""
    c, _ = make_training(dim, 32, 1)
    adapter = rivals.make_adapter(dim).requires_grad_(False)
    x = c.x[:rows]
    candidates: dict[str, rivals.Run] = {
        OURS: lambda: ops.adapter(x, *c.params),
        "eager": lambda: rivals.gate(adapter, x),
    }
    if compiled:
        gate = rivals.compile_for_one_shape(rivals.gate)
        candidates["compile"] = lambda: gate(adapter, x)
    with torch.no_grad():
        share, times = _peak_percent(
            4 * dim * dim * rows, lambda: interleave(candidates, rounds)
        )
    return make_row("adapter forward", times, dim=dim, batch=rows, peak_percent=share)


def round_over_clients(clients: int, rounds: int, threads: int) -> Row:
    """A round, on ``threads`` threads and on one: microseconds a client's step."""
    steps, batch, dim = 3, 32, 512
    c, text = make_training(dim, batch, steps)  # all train on the same rows
    data = (c.x, c.y, c.perm)
    everyone = [ops.LocalClient(*data, *make_state(dim)) for _ in range(clients)]
    hyper = ops.Hyperparameters(batch, *rivals.ADAM)

    def on(count: int) -> rivals.Run:
        def run() -> None:
            torch.set_num_threads(count)
            ops.local_round(everyone, text, hyper)

        return run

    candidates = {OURS: on(threads)}
    if threads > 1:
        candidates["one thread"] = on(1)
    times = interleave(candidates, rounds, steps * clients)
    torch.set_num_threads(threads)
    return make_row("round over clients", times, dim=dim, batch=batch, clients=clients)


def short_round(clients: int, rounds: int) -> Row:
    """A round of one step each: microseconds a client, its state included."""
    batch, dim = 12, 512
    c, text = make_training(dim, batch, 1)
    hyper = ops.Hyperparameters(batch, *rivals.ADAM)
    batches = [ops.FreshClient(c.x, c.y, c.perm[None])] * clients

    def from_copies() -> object:
        states = [fresh_copies(c.params) for _ in range(clients)]
        everyone = [ops.LocalClient(c.x, c.y, c.perm, *own) for own in states]
        return ops.local_round(everyone, text, hyper), states

    one, pool = (clients, c.x, c.y, text, c.perm), ops.BufferPool()
    candidates: dict[str, rivals.Run] = {
        OURS: lambda: ops.fresh_round(batches, text, c.params, hyper, pool),
        "from copies": from_copies,
        "eager": rivals.eager_clients(*one),
        "eager, fused": rivals.eager_clients(*one, fused=True),
    }
    times = interleave(candidates, rounds, clients)
    return make_row("one step each", times, dim=dim, batch=batch, clients=clients)


def mean(clients: int, rounds: int, dim: int = 512) -> Row:
    """The weighted mean of ``clients`` adapters, and the same of int8."""
    shapes = [(dim, dim), (dim,), (dim, dim), (dim,)]
    torch.manual_seed(0)
    states = [[torch.randn(s) for s in shapes] for _ in range(clients)]
    by_key = [list(tensors) for tensors in zip(*states)]
    everything = [t for tensors in by_key for t in tensors]
    weights = torch.rand(clients, dtype=torch.float64) + 0.1
    shares = (weights / weights.sum()).tolist()
    int8 = CODECS["int8"]
    packed = [[int8.pack(x) for x in xs] for xs in by_key]
    times = interleave(
        {
            OURS: lambda: [ops.weighted_mean(xs, weights) for xs in by_key],
            "ours, int8": lambda: [
                int8.mean(parts, weights, x[0].shape)
                for parts, x in zip(packed, by_key)
            ],
            "read": lambda: torch.ops.fedclip_benchmark.read(everything),
            "PersonalizedFL": lambda: rivals.personalizedfl_mean(states, shares),
            "add_": lambda: rivals.add_mean(states, shares),
            "FedML": lambda: rivals.fedml_mean(states, shares),
            "Flower": lambda: rivals.flower_mean(states, shares),
        },
        rounds,
    )
    share = round(100 * times["read"].minimum / times[OURS].minimum)
    error = _error(by_key[0], weights)
    facts = {"read_percent": share, "error": error}
    return make_row("weighted mean", times, dim=dim, clients=clients, **facts)


def _error(xs: Sequence[Tensor], weights: Tensor) -> float:
    """Largest error over rms, against float64."""
    total = torch.zeros_like(xs[0], dtype=torch.float64)
    for share, x in zip((weights / weights.sum()).tolist(), xs):
        total += share * x.double()
    mean = ops.weighted_mean(xs, weights)
    return float((mean.double() - total).abs().max() / total.square().mean().sqrt())
