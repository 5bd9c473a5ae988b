"""The operator ``fresh_round``: many clients from one start, with fresh Adam moments.

What a round of federated learning with ``optimizer_state=reset`` is: nobody needs the
moments before or after, so the kernel reads none in a client's first step, writes none
in its last one, and no client has a copy of the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import check, check_adapter, check_choice, check_client
from .library import call, define
from .memory import BufferPool
from .training import PRECISIONS, Hyperparameters, step_count


class FreshClient(NamedTuple):
    """One client's data; ``perm`` is the sample order of each of its local epochs."""

    x: Tensor  # (N, D) raw features
    y: Tensor  # (N,) int64
    perm: Tensor  # (E, M) int64


def fresh_round(
    clients: Sequence[FreshClient],
    text: Tensor,
    start: Sequence[Tensor],
    hyper: Hyperparameters,
    pool: BufferPool | None = None,
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Train K clients from ``start`` [w1, b1, w2, b2], which stays as it is.

    Returns the parameters of each client, views of one tensor, and its losses (S,).
    ``text`` (C, D) normalised.  A trailing batch of 1 is skipped.  A ``pool`` that is
    kept from round to round saves the time that new memory takes: at one or two steps a
    client about half of all.  Raises ValueError naming the argument.
    """
    check_choice("precision", hyper.precision, PRECISIONS)
    if not clients:
        return [], []
    batch_size, *rest = hyper
    x, y, perm = map(list, zip(*clients))
    explain = partial(_check, clients, text, start, batch_size)
    sizes, shapes = [t.numel() for t in start], [t.shape for t in start]
    params = (pool or BufferPool()).rows(len(x), sum(sizes), x[0])
    losses = call(
        _fresh_round,
        explain,
        x[0],
        torch.float32,
        *(x, y, text, perm, batch_size, list(start), params, *rest),
    )
    steps = [_steps(p, batch_size) for p in perm]
    by_key = (t.unbind() for t in params.split(sizes, dim=1))
    states = [
        [flat.view(shape) for flat, shape in zip(flats, shapes)]
        for flats in zip(*by_key)
    ]
    return states, list(losses.split(steps))


def _steps(perm: Tensor, batch_size: int) -> int:
    return perm.shape[0] * step_count(perm.shape[1], batch_size)


def _check(
    clients: Sequence[FreshClient], text: Tensor, start: Sequence[Tensor], size: int
) -> None:
    check(size >= 1, f"batch_size: expected at least 1, got {size}")
    for i, c in enumerate(clients):
        where = f"client {i}: " if len(clients) > 1 else ""
        check(
            c.perm.dim() == 2,
            f"{where}perm: expected (epochs, rows), got {tuple(c.perm.shape)}",
        )
        check_client(c.x, c.y, text, c.perm.reshape(-1), where)
        check_adapter(f"{where}start: ", c.x, start)


def fresh_round_reference(
    x: Sequence[Tensor],
    y: Sequence[Tensor],
    text: Tensor,
    perm: Sequence[Tensor],
    batch_size: int,
    start: Sequence[Tensor],
    params: Tensor,
    *hyper: Any,
) -> Tensor:
    """By ``local_round`` of the device at hand, a call for each local epoch."""
    sizes, shapes = [t.numel() for t in start], [t.shape for t in start]
    rows = params.contiguous()  # itself, where it is
    rows.copy_(torch.cat([t.reshape(-1) for t in start]))
    states = [
        [p.view(s) for p, s in zip(row.split(sizes), shapes)]
        for row in (r for own in rows for r in (own, *own.new_zeros(2, len(own))))
    ]
    parts = [[t for s in states[i::3] for t in s] for i in range(3)]
    losses: list[list[Tensor]] = [[] for _ in x]
    for epoch in range(max((len(p) for p in perm), default=0)):
        orders = [p[epoch] if epoch < len(p) else p.new_empty(0) for p in perm]
        steps = [epoch * step_count(p.shape[1], batch_size) for p in perm]
        found = torch.ops.fedclip.local_round(
            list(x), list(y), text, orders, batch_size, *parts, steps, *hyper
        )
        counts = [step_count(len(order), batch_size) for order in orders]
        for own, loss in zip(losses, found.split(counts)):
            own.append(loss)
    flat = [loss for own in losses for loss in own]
    params.copy_(rows)
    return torch.cat(flat) if flat else text.new_empty(0)


def _shapes(
    x: list[Tensor],
    y: list[Tensor],
    text: Tensor,
    perm: list[Tensor],
    batch_size: int,
    *_: Any,
) -> Tensor:
    return text.new_empty(sum(_steps(p, batch_size) for p in perm))


_fresh_round = define(
    "fresh_round",
    "(Tensor[] x, Tensor[] y, Tensor text, Tensor[] perm, int batch_size,"
    " Tensor[] start, Tensor(a!) params, float lr, float beta1, float beta2,"
    " float eps, float weight_decay, float logit_scale,"
    ' str precision="fp32") -> Tensor',
    fresh_round_reference,
    _shapes,
)
