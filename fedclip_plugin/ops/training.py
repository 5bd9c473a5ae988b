"""The operators ``local_epoch`` and ``local_round``: FedCLIP's local training, fused.

The in-batch contrastive loss depends on a row's text only through its class, so the
B x B logits reduce to B x C with class counts (exact, no approximation).

Source of the method: Lu et al. 2023 (arXiv 2302.13485), section 3; authors' code
``fed_at_clip.py: train``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .adapter import adapter_backward_reference, adapter_reference
from .checks import (
    check,
    check_adapter,
    check_choice,
    check_client,
    check_distinct,
    check_moments,
)
from .library import call, define

PRECISIONS = ("fp32", "bf16")  # of the matrix products in local training


class Hyperparameters(NamedTuple):
    """How the clients of a round train: L2 Adam on the in-batch loss.

    ``precision="bf16"`` rounds the factors of the five matrix products to bfloat16 and
    accumulates in float32; weights, moments, softmax, loss and Adam stay float32.
    """

    batch_size: int
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    logit_scale: float
    precision: str = "fp32"  # one of PRECISIONS


class LocalClient(NamedTuple):
    """One client's data, and its training state, which is updated in place."""

    x: Tensor  # (N, D) raw features
    y: Tensor  # (N,) int64
    perm: Tensor  # (M,) int64, sample order
    params: Sequence[Tensor]  # [w1, b1, w2, b2]
    exp_avg: Sequence[Tensor]  # Adam's moments, of the shapes of params
    exp_avg_sq: Sequence[Tensor]
    step: int = 0  # Adam steps already taken


def step_count(rows: int, batch_size: int) -> int:
    """Optimizer steps of an epoch over ``rows``; a last batch of 1 is none."""
    if batch_size < 2:
        return 0
    return (rows + batch_size - 2) // batch_size


def local_epoch(client: LocalClient, text: Tensor, hyper: Hyperparameters) -> Tensor:
    """One epoch of FedCLIP's local training, in place; returns the losses (S,).

    ``text`` (C, D) normalised.  A trailing batch of 1 is skipped.  Raises ValueError
    naming the argument.
    """
    batch_size, *rest = hyper
    x, y, perm, *state, step = client
    explain = partial(_check, [client], text, hyper)
    check_choice("precision", hyper.precision, PRECISIONS)
    losses: Tensor = call(
        _local_epoch,
        explain,
        x,
        torch.float32,
        *(x, y, text, perm, batch_size, *state, step, *rest),
    )
    return losses


def local_round(
    clients: Sequence[LocalClient], text: Tensor, hyper: Hyperparameters
) -> list[Tensor]:
    """``local_epoch`` over K clients in one call; a list of K loss vectors."""
    explain = partial(_check, clients, text, hyper)
    check_choice("precision", hyper.precision, PRECISIONS)
    if not clients:
        return []
    batch_size, *rest = hyper
    x, y, perm, *state, step = map(list, zip(*clients))
    params, exp_avg, exp_avg_sq = ([t for four in s for t in four] for s in state)
    # One tensor, as functionalization takes no list from an op that mutates.
    losses: Tensor = call(
        _local_round,
        explain,
        x[0],
        torch.float32,
        *(x, y, text, perm, batch_size, params, exp_avg, exp_avg_sq, step, *rest),
    )
    return list(losses.split([step_count(len(p), batch_size) for p in perm]))


def _check(
    clients: Sequence[LocalClient], text: Tensor, hyper: Hyperparameters
) -> None:
    size = hyper.batch_size
    check(size >= 1, f"batch_size: expected at least 1, got {size}")
    for i, c in enumerate(clients):
        where = f"client {i}: " if len(clients) > 1 else ""
        check_client(c.x, c.y, text, c.perm, where)
        check_adapter(f"{where}params: ", c.x, c.params)
        check_moments(f"{where}exp_avg", c.exp_avg, c.params)
        check_moments(f"{where}exp_avg_sq", c.exp_avg_sq, c.params)
    check_distinct([t for c in clients for t in (*c.params, *c.exp_avg, *c.exp_avg_sq)])


def contrastive_loss_and_grad(
    z: Tensor, y: Tensor, text: Tensor, logit_scale: float
) -> tuple[Tensor, Tensor]:
    """In-batch symmetric cross-entropy and its gradient.

    ``z`` (B, D), ``y`` (B,) int64, ``text`` (C, D) -> loss (), dz (B, D).  Equals
    ``(CE(M, arange) + CE(M', arange)) / 2`` with ``M = s z text[y]'``: rows of the
    same class count as negatives, as published.
    """
    present, column, count = torch.unique(y, return_inverse=True, return_counts=True)
    t = text.index_select(0, present)  # (P, D), only the classes in this batch
    logits = logit_scale * (z @ t.t())  # (B, P)
    log_count = count.to(z.dtype).log()  # (P,)
    row = torch.logsumexp(logits + log_count, dim=1)  # (B,)
    col = torch.logsumexp(logits, dim=0)  # (P,)
    own = logits.gather(1, column[:, None])[:, 0]  # (B,)
    size = z.shape[0]
    loss = ((row - own).sum() + (col[column] - own).sum()) / (2 * size)
    grad = (logits + log_count - row[:, None]).exp_()  # (B, P)
    grad += (logits + log_count - col).exp_()
    grad.scatter_add_(1, column[:, None], grad.new_full((size, 1), -2.0))
    return loss, (grad @ t).mul_(logit_scale / (2 * size))


def adam_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: int,
    hyper: Hyperparameters,
) -> None:
    """One step of ``torch.optim.Adam`` with L2 decay, in place; ``step`` from 1."""
    beta1, beta2 = hyper.beta1, hyper.beta2
    grad = grad.add(param, alpha=hyper.weight_decay)
    exp_avg.lerp_(grad, 1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    scale = 1 / math.sqrt(1 - beta2**step)
    denominator = exp_avg_sq.sqrt().mul_(scale).add_(hyper.eps)
    param.addcdiv_(exp_avg, denominator, value=-hyper.lr / (1 - beta1**step))


def local_epoch_reference(
    client: LocalClient, text: Tensor, hyper: Hyperparameters
) -> Tensor:
    """One pass over ``perm``; updates the parameters and moments in place.

    Returns the loss of every step, (S,).
    """
    losses = []
    step, precision = client.step, hyper.precision
    w1, b1, w2, b2 = client.params
    for rows in client.perm.split(hyper.batch_size):
        if rows.numel() < 2:
            continue  # a batch of 1 has no negatives: the authors skip it
        x, y = client.x.index_select(0, rows), client.y.index_select(0, rows)
        z, h = adapter_reference(x, w1, b1, w2, b2, precision)
        loss, dz = contrastive_loss_and_grad(z, y, text, hyper.logit_scale)
        grads = adapter_backward_reference(dz, None, x, h, z, w2, precision)
        step += 1
        for p, g, m, v in zip(client.params, grads, client.exp_avg, client.exp_avg_sq):
            adam_step(p, g, m, v, step, hyper)
        losses.append(loss)
    return torch.stack(losses) if losses else client.x.new_empty(0)


def local_round_reference(
    clients: Sequence[LocalClient], text: Tensor, hyper: Hyperparameters
) -> list[Tensor]:
    """``local_epoch`` for every client in turn; a list of K loss vectors."""
    return [local_epoch_reference(client, text, hyper) for client in clients]


# ------------------------------------------- as the dispatcher has the arguments: flat


def _epoch(
    x: Tensor, y: Tensor, text: Tensor, perm: Tensor, batch_size: int, *rest: Any
) -> Tensor:
    client = LocalClient(x, y, perm, *rest[:4])
    return local_epoch_reference(client, text, Hyperparameters(batch_size, *rest[4:]))


def _round(
    x: Sequence[Tensor],
    y: Sequence[Tensor],
    text: Tensor,
    perm: Sequence[Tensor],
    batch_size: int,
    *rest: Any,
) -> Tensor:
    *state, step = rest[:4]
    by_client = ([s[i : i + 4] for i in range(0, len(s), 4)] for s in state)
    rows = zip(x, y, perm, *by_client, step, strict=True)
    hyper = Hyperparameters(batch_size, *rest[4:])
    losses = local_round_reference([LocalClient(*row) for row in rows], text, hyper)
    return torch.cat(losses) if losses else text.new_empty(0)


def _epoch_shapes(
    x: Tensor, y: Tensor, text: Tensor, perm: Tensor, batch_size: int, *_: Any
) -> Tensor:
    return x.new_empty(step_count(perm.shape[0], batch_size))


def _round_shapes(
    x: Any, y: Any, text: Tensor, perm: list[Tensor], batch_size: int, *_: Any
) -> Tensor:
    return text.new_empty(sum(step_count(p.shape[0], batch_size) for p in perm))


_STATE = "Tensor(a!)[] params, Tensor(b!)[] exp_avg, Tensor(c!)[] exp_avg_sq"
_HYPER = (
    "float lr, float beta1, float beta2, float eps, float weight_decay, "
    'float logit_scale, str precision="fp32"'
)
_local_epoch = define(
    "local_epoch",
    "(Tensor x, Tensor y, Tensor text, Tensor perm, int batch_size,"
    f" {_STATE}, int step, {_HYPER}) -> Tensor",
    _epoch,
    _epoch_shapes,
)
_local_round = define(
    "local_round",
    "(Tensor[] x, Tensor[] y, Tensor text, Tensor[] perm, int batch_size,"
    f" {_STATE}, int[] step, {_HYPER}) -> Tensor",
    _round,
    _round_shapes,
)
