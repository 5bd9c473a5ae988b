"""The operators of the library ``fedclip``, checked: ``schemas.py`` defines them.

Call the functions of this module: they check their arguments and name the one that is
wrong.  ``torch.ops.fedclip.<name>`` is the same without the checks of values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .capabilities import load_kernels
from .checks import (
    check,
    check_adapter,
    check_choice,
    check_client,
    check_matrix,
    check_moments,
    check_same,
    check_weights,
)
from .reference import (
    adapter_backward_reference,
    adapter_reference,
    local_epoch_reference,
    local_round_reference,
    squared_distances_reference,
    weighted_mean_int8_reference,
    weighted_mean_reference,
)
from .schemas import SCHEMAS, step_count

__all__ = [
    "PRECISIONS",
    "SCHEMAS",
    "adapter",
    "adapter_backward_reference",
    "adapter_reference",
    "local_epoch",
    "local_epoch_reference",
    "local_round",
    "local_round_reference",
    "squared_distances",
    "squared_distances_reference",
    "weighted_mean",
    "weighted_mean_int8",
    "weighted_mean_int8_reference",
    "weighted_mean_reference",
]

PRECISIONS = ("fp32", "bf16")  # of the matrix products in local training
_COMPILED = load_kernels().cpu is not None


_adapter = torch.ops.fedclip.adapter.default
# Spares 6 us of torch.library's Python a call where nobody wants a gradient.
_below_autograd: Any = getattr(
    torch._C, "_AutoDispatchBelowAutograd", contextlib.nullcontext
)


def adapter(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> tuple[Tensor, Tensor]:
    """The attention adapter: ``x`` (N, D) raw features -> ``z`` (N, D), ``h`` (N, D).

    ``z`` is the normalised gated feature, ``h`` the hidden activation.  ``w1, w2``
    (D, D), ``b1, b2`` (D,); differentiable in these four, not in ``x``.
    Raises ValueError naming the argument of wrong shape, dtype or device.
    """
    params = (w1, b1, w2, b2)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        check(not x.requires_grad, "x: frozen features cannot require a gradient")
        _check_fit(x, params)
        z, h = _adapter(x, *params)
        return z, h
    # The kernel checks the same: Python's checks cost 2 us more, of some 145 at N = 32.
    if not (_COMPILED and x.is_cpu and x.dtype is torch.float32):
        _check_fit(x, params)
    try:
        with _below_autograd():
            z, h = _adapter(x, *params)
    except RuntimeError:
        _check_fit(x, params)
        raise
    return z, h


def _check_fit(x: Tensor, params: Sequence[Tensor]) -> None:
    check_matrix("x", x)
    check_adapter("", x, params)


def local_epoch(
    x: Tensor,
    y: Tensor,
    text: Tensor,
    perm: Tensor,
    batch_size: int,
    params: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    logit_scale: float,
    precision: str = "fp32",
) -> Tensor:
    """One epoch of FedCLIP's local training, in place; returns the losses (S,).

    ``x`` (N, D) raw features, ``y`` (N,) int64, ``text`` (C, D) normalised, ``perm``
    (M,) int64 sample order, ``params`` = ``[w1, b1, w2, b2]`` with Adam moments of the
    same shapes, ``step`` = Adam steps already taken.  A trailing batch of 1 is
    skipped.  ``precision="bf16"`` rounds the factors of the five matrix products to
    bfloat16 and accumulates in float32; weights, moments, softmax, loss and Adam stay
    float32.  Raises ValueError naming the argument.
    """
    check_choice("precision", precision, PRECISIONS)
    check_client(x, y, text, perm)
    check(batch_size >= 1, f"batch_size: expected at least 1, got {batch_size}")
    check_adapter("params: ", x, params)
    check_moments("exp_avg", exp_avg, params)
    check_moments("exp_avg_sq", exp_avg_sq, params)
    losses: Tensor = torch.ops.fedclip.local_epoch(
        x,
        y,
        text,
        perm,
        batch_size,
        params,
        exp_avg,
        exp_avg_sq,
        step,
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        logit_scale,
        precision == "bf16",
    )
    return losses


def local_round(
    x: Sequence[Tensor],
    y: Sequence[Tensor],
    text: Tensor,
    perm: Sequence[Tensor],
    batch_size: int,
    params: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    step: Sequence[int],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    logit_scale: float,
    precision: str = "fp32",
) -> list[Tensor]:
    """``local_epoch`` over K clients in one call; a list of K loss vectors.

    ``x, y, perm, step`` have one entry a client; ``params``, ``exp_avg`` and
    ``exp_avg_sq`` four a client, client after client.
    """
    check_choice("precision", precision, PRECISIONS)
    count = len(x)
    check(
        len(y) == len(perm) == len(step) == count,
        f"y, perm, step: expected {count} entries as x, "
        f"got {len(y)}, {len(perm)}, {len(step)}",
    )
    check(batch_size >= 1, f"batch_size: expected at least 1, got {batch_size}")
    check(
        len(params) == 4 * count,
        f"params: expected {4 * count} tensors (four a client), got {len(params)}",
    )
    for i in range(count):
        check_client(x[i], y[i], text, perm[i], f"client {i}: ")
        check_adapter(f"client {i}: ", x[i], params[4 * i : 4 * i + 4])
    check_moments("exp_avg", exp_avg, params)
    check_moments("exp_avg_sq", exp_avg_sq, params)
    # One tensor, as functionalization takes no list from an op that mutates.
    losses: Tensor = torch.ops.fedclip.local_round(
        x,
        y,
        text,
        perm,
        batch_size,
        params,
        exp_avg,
        exp_avg_sq,
        step,
        lr,
        beta1,
        beta2,
        eps,
        weight_decay,
        logit_scale,
        precision == "bf16",
    )
    return list(losses.split([step_count(len(p), batch_size) for p in perm]))


def squared_distances(xs: Sequence[Tensor], origin: Tensor) -> Tensor:
    """``|x - origin|^2`` of each of K tensors; (K,) float64, inf or NaN as they come.

    ``xs`` have the shape, dtype and device of ``origin``.  Raises ValueError naming the
    argument.
    """
    for i, x in enumerate(xs):
        check(
            x.shape == origin.shape,
            f"xs[{i}]: expected shape {tuple(origin.shape)}, got {tuple(x.shape)}",
        )
        check_same(f"xs[{i}]", x, origin)
    if not xs:
        return origin.new_empty(0, dtype=torch.float64)
    found: Tensor = torch.ops.fedclip.squared_distances(xs, origin)
    return found


def weighted_mean(xs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``sum_i w_i x_i / sum_i w_i``; callers pass ``xs`` in client order.

    ``xs``: K tensors of one shape and dtype; ``weights`` (K,) non-negative.
    Raises ValueError naming the argument.
    """
    check_weights(weights, len(xs))
    for i, x in enumerate(xs):
        check(
            x.shape == xs[0].shape,
            f"xs[{i}]: expected shape {tuple(xs[0].shape)}, got {tuple(x.shape)}",
        )
        check_same(f"xs[{i}]", x, xs[0])
    mean: Tensor = torch.ops.fedclip.weighted_mean(xs, weights)
    return mean


def weighted_mean_int8(
    qs: Sequence[Tensor], scales: Sequence[Tensor], weights: Tensor
) -> Tensor:
    """Weighted mean of K int8 tensors with one float32 scale a row; float32.

    ``qs[i]`` (R, ...) int8, ``scales[i]`` (R,) float32, ``weights`` (K,).
    """
    check_weights(weights, len(qs))
    check(len(scales) == len(qs), f"scales: expected {len(qs)}, got {len(scales)}")
    for i, (q, scale) in enumerate(zip(qs, scales)):
        check(
            q.dtype == torch.int8 and q.dim() >= 1 and q.shape == qs[0].shape,
            f"qs[{i}]: expected int8 {tuple(qs[0].shape)}, "
            f"got {q.dtype} {tuple(q.shape)}",
        )
        check(
            scale.dtype == torch.float32 and scale.shape == q.shape[:1],
            f"scales[{i}]: expected float32 ({q.shape[0]},), "
            f"got {scale.dtype} {tuple(scale.shape)}",
        )
    mean: Tensor = torch.ops.fedclip.weighted_mean_int8(qs, scales, weights)
    return mean
