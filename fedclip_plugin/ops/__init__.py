"""The operators of the library ``fedclip``, checked: ``schemas.py`` defines them.

Call the functions of this module: they check their arguments and name the one that is
wrong.  ``torch.ops.fedclip.<name>`` is the same without the checks of values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .checks import (
    check,
    check_adapter,
    check_choice,
    check_client,
    check_like,
    check_matrix,
    check_moments,
    check_scaled,
    check_weights,
)
from .kernels import load_kernels
from .library import SCHEMAS, step_count
from .reference import (
    adapter_backward_reference,
    adapter_reference,
    local_epoch_reference,
    local_round_reference,
    squared_distances_reference,
    squared_norms_int8_reference,
    weighted_mean_int8_reference,
    weighted_mean_reference,
)

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
    "squared_norms_int8",
    "squared_norms_int8_reference",
    "weighted_mean",
    "weighted_mean_int8",
    "weighted_mean_int8_reference",
    "weighted_mean_reference",
]

PRECISIONS = ("fp32", "bf16")  # of the matrix products in local training
_COMPILED = load_kernels().cpu is not None

_adapter = torch.ops.fedclip.adapter.default
_squared_distances = torch.ops.fedclip.squared_distances.default
_squared_norms_int8 = torch.ops.fedclip.squared_norms_int8.default
_weighted_mean = torch.ops.fedclip.weighted_mean.default
_weighted_mean_int8 = torch.ops.fedclip.weighted_mean_int8.default
# Spares 6 us of torch.library's Python a call where nobody wants a gradient.
_below_autograd: Any = getattr(
    torch._C, "_AutoDispatchBelowAutograd", contextlib.nullcontext
)


def _call(
    operator: Any, explain: Callable[[], None], lead: Tensor, dtype: Any, *args: Any
) -> Any:
    """``operator(*args)``; ``explain`` raises ValueError if the arguments do not fit.

    The compiled kernels for the CPU, which take ``lead`` in ``dtype``, check the same
    in no time: Python's checks are made where another answers, or one has refused.
    """
    if not (_COMPILED and lead.is_cpu and lead.dtype is dtype):
        explain()
    try:
        return operator(*args)
    except RuntimeError:
        explain()
        raise


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
    with _below_autograd():
        explain = partial(_check_fit, x, params)
        z, h = _call(_adapter, explain, x, torch.float32, x, *params)
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
    if not xs:
        return origin.new_empty(0, dtype=torch.float64)
    found: Tensor = _call(
        _squared_distances,
        partial(check_like, "xs", xs, origin),
        origin,
        torch.float32,
        xs,
        origin,
    )
    return found


def squared_norms_int8(qs: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
    """``|scales[i] * qs[i]|^2`` of each of K int8 tensors; (K,) float64.

    ``qs[i]`` (R, ...) int8; ``scales[i]`` (R,) float32, one a row, or (1,).  Raises
    ValueError naming the argument.
    """
    check(len(qs) > 0, "squared norms of an empty list: expected at least one tensor")
    explain = partial(check_scaled, qs, scales)
    found: Tensor = _call(_squared_norms_int8, explain, qs[0], torch.int8, qs, scales)
    return found


def weighted_mean(xs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``sum_i w_i x_i / sum_i w_i``; callers pass ``xs`` in client order.

    ``xs``: K tensors of one shape and dtype; ``weights`` (K,) non-negative.
    Raises ValueError naming the argument.
    """
    check_weights(weights, len(xs))
    explain = partial(check_like, "xs", xs, xs[0])
    mean: Tensor = _call(_weighted_mean, explain, xs[0], torch.float32, xs, weights)
    return mean


def weighted_mean_int8(
    qs: Sequence[Tensor], scales: Sequence[Tensor], weights: Tensor
) -> Tensor:
    """Weighted mean of K int8 tensors with float32 scales; float32.

    ``qs[i]`` (R, ...) int8, ``weights`` (K,); ``scales[i]`` (R,) float32, one a row, or
    (1,) for all of them.  Raises ValueError naming the argument.
    """
    check_weights(weights, len(qs))
    mean: Tensor = _call(
        _weighted_mean_int8,
        partial(check_scaled, qs, scales),
        qs[0],
        torch.int8,
        qs,
        scales,
        weights,
    )
    return mean
