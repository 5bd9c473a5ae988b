"""The operators ``weighted_mean`` and ``weighted_mean_int8``: the server's average."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from .checks import check_like, check_scaled, check_weights
from .library import call, define

GROUP = 8  # clients summed in fp32 before they join the float64 total


def weighted_mean(xs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``sum_i w_i x_i / sum_i w_i``; callers pass ``xs`` in client order.

    ``xs``: K tensors of one shape and dtype; ``weights`` (K,) non-negative.
    Raises ValueError naming the argument.
    """
    check_weights(weights, len(xs))
    explain = partial(check_like, "xs", xs, xs[0])
    mean: Tensor = call(_weighted_mean, explain, xs[0], torch.float32, xs, weights)
    return mean


def weighted_mean_reference(xs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """``sum_i w_i x_i / sum_i w_i`` in list order; shape and dtype of ``xs[0]``.

    Groups of 8 are summed in the inputs' dtype and accumulated in float64: as fast
    as an fp32 sum and an order of magnitude more exact over many clients.
    """
    shares = shares_of(weights).tolist()
    total = torch.zeros_like(xs[0], dtype=torch.float64)
    for start in range(0, len(xs), GROUP):
        group = torch.zeros_like(xs[0])
        for x, share in zip(xs[start : start + GROUP], shares[start : start + GROUP]):
            group.add_(x, alpha=share)
        total += group
    return total.to(xs[0].dtype)


def shares_of(weights: Tensor) -> Tensor:
    """``weights`` (K,) over their sum in list order, (K,) float64: as the kernels."""
    values = weights.double()
    return values / values.cumsum(0)[-1]


def group_sum(xs: Sequence[Tensor], shares: Tensor) -> Tensor:
    """``sum_i s_i x_i`` of the next :data:`GROUP` of more tensors, in their dtype.

    Its float64 sums, group after group, are :func:`weighted_mean` of all to the bit,
    without all in memory.  ``shares`` are those of :func:`shares_of`; what they leave
    of 1 goes to zeros, of the sign that changes no sum.
    """
    rest = (1 - shares.cumsum(0)[-1:]).clamp_min(0)
    nothing = torch.full_like(xs[0], -0.0)
    return weighted_mean([*xs, nothing], torch.cat([shares, rest]))


def weighted_mean_int8(
    qs: Sequence[Tensor], scales: Sequence[Tensor], weights: Tensor
) -> Tensor:
    """Weighted mean of K int8 tensors with float32 scales; float32.

    ``qs[i]`` (R, ...) int8, ``weights`` (K,); ``scales[i]`` (R,) float32, one a row, or
    (1,) for all of them.  Raises ValueError naming the argument.
    """
    check_weights(weights, len(qs))
    explain = partial(check_scaled, qs, scales)
    mean: Tensor = call(
        _weighted_mean_int8, explain, qs[0], torch.int8, qs, scales, weights
    )
    return mean


def weighted_mean_int8_reference(
    qs: Sequence[Tensor], scales: Sequence[Tensor], weights: Tensor
) -> Tensor:
    """Weighted mean of ``scales[i][:, None] * qs[i]``; float32, shape of ``qs[0]``."""
    shares = weights.double() / weights.double().sum()
    total = torch.zeros(qs[0].shape, dtype=torch.float64, device=qs[0].device)
    for q, scale, share in zip(qs, scales, shares):
        row = scale.double() * share
        total += row.reshape(-1, *[1] * (q.dim() - 1)) * q if q.dim() else row[0] * q
    return total.float()


def _shapes(xs: list[Tensor], weights: Tensor) -> Tensor:
    check_like("xs", xs, xs[0])
    return xs[0].new_empty(xs[0].shape)


def _int8_shapes(qs: list[Tensor], scales: list[Tensor], weights: Tensor) -> Tensor:
    check_scaled(qs, scales)
    return scales[0].new_empty(qs[0].shape)


_weighted_mean = define(
    "weighted_mean",
    "(Tensor[] xs, Tensor weights) -> Tensor",
    weighted_mean_reference,
    _shapes,
)
_weighted_mean_int8 = define(
    "weighted_mean_int8",
    "(Tensor[] qs, Tensor[] scales, Tensor weights) -> Tensor",
    weighted_mean_int8_reference,
    _int8_shapes,
)
