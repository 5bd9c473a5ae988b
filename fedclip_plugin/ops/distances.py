"""The operators ``squared_distances`` and ``squared_norms_int8``: sizes of updates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from .checks import check, check_like, check_scaled
from .library import call, define


def squared_distances(xs: Sequence[Tensor], origin: Tensor) -> Tensor:
    """``|x - origin|^2`` of each of K tensors; (K,) float64, inf or NaN as they come.

    ``xs`` have the shape, dtype and device of ``origin``.  Raises ValueError naming the
    argument.
    """
    if not xs:
        return origin.new_empty(0, dtype=torch.float64)
    explain = partial(check_like, "xs", xs, origin)
    distances: Tensor = call(
        _squared_distances, explain, origin, torch.float32, xs, origin
    )
    return distances


def squared_distances_reference(xs: Sequence[Tensor], origin: Tensor) -> Tensor:
    """Squared L2 distance of each tensor from ``origin``; (K,) float64."""
    if not xs:
        return origin.new_empty(0, dtype=torch.float64)
    return torch.stack([(x - origin).square().sum(dtype=torch.float64) for x in xs])


def squared_norms_int8(qs: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
    """``|scales[i] * qs[i]|^2`` of each of K int8 tensors; (K,) float64.

    ``qs[i]`` (R, ...) int8; ``scales[i]`` (R,) float32, one a row, or (1,).  Raises
    ValueError naming the argument.
    """
    check(len(qs) > 0, "squared norms of an empty list: expected at least one tensor")
    explain = partial(check_scaled, qs, scales)
    norms: Tensor = call(_squared_norms_int8, explain, qs[0], torch.int8, qs, scales)
    return norms


def squared_norms_int8_reference(
    qs: Sequence[Tensor], scales: Sequence[Tensor]
) -> Tensor:
    """``|scales[i][:, None] * qs[i]|^2`` of each; (K,) float64."""
    norms = qs[0].new_zeros(len(qs), dtype=torch.float64)
    for i, (q, scale) in enumerate(zip(qs, scales)):
        if q.numel():
            rows = q.reshape(len(scale), -1).double()
            norms[i] = (rows.square().sum(dim=1) * scale.double().square()).sum()
    return norms


def _shapes(xs: list[Tensor], origin: Tensor) -> Tensor:
    check_like("xs", xs, origin)
    return origin.new_empty(len(xs), dtype=torch.float64)


def _int8_shapes(qs: list[Tensor], scales: list[Tensor]) -> Tensor:
    check_scaled(qs, scales)
    return scales[0].new_empty(len(qs), dtype=torch.float64)


_squared_distances = define(
    "squared_distances",
    "(Tensor[] xs, Tensor origin) -> Tensor",
    squared_distances_reference,
    _shapes,
)
_squared_norms_int8 = define(
    "squared_norms_int8",
    "(Tensor[] qs, Tensor[] scales) -> Tensor",
    squared_norms_int8_reference,
    _int8_shapes,
)
