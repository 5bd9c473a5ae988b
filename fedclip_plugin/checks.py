"""Checks of the operators' arguments: the message names the one that is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .capabilities import load_kernels

_PARAMS = ("w1", "b1", "w2", "b2")


def check(condition: bool, message: str) -> None:
    """Raise ValueError with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ValueError(message)


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """``value`` is one of ``allowed``."""
    check(
        value in allowed, f"{name}: expected one of {', '.join(allowed)}, got {value!r}"
    )


def check_matrix(name: str, value: Tensor, columns: int | None = None) -> None:
    """Two dimensions, and ``columns`` of them if given."""
    if value.dim() != 2 or (columns is not None and value.shape[1] != columns):
        raise ValueError(
            f"{name}: expected shape (rows, {columns or 'D'}), got {tuple(value.shape)}"
        )


def check_adapter(prefix: str, x: Tensor, params: Sequence[Tensor]) -> None:
    """Four tensors ``w1, b1, w2, b2`` that fit ``x`` (N, D)."""
    if len(params) != 4:
        raise ValueError(f"{prefix}: expected [w1, b1, w2, b2], got {len(params)}")
    dim, dtype, device = x.shape[1], x.dtype, x.device
    matrix, vector = (dim, dim), (dim,)
    for name, value, shape in zip(_PARAMS, params, (matrix, vector, matrix, vector)):
        if value.shape != shape:
            raise ValueError(
                f"{prefix}{name}: expected shape {shape}, got {tuple(value.shape)}"
            )
        if value.dtype != dtype or value.device != device:
            check_same(f"{prefix}{name}", value, x)


def check_same(name: str, value: Tensor, x: Tensor) -> None:
    """Dtype and device of ``x``."""
    check(
        value.dtype == x.dtype and value.device == x.device,
        f"{name}: expected {x.dtype} on {x.device} as x, "
        f"got {value.dtype} on {value.device}",
    )


def check_index(name: str, value: Tensor, x: Tensor, below: int) -> None:
    """One-dimensional int64 on the device of ``x``, values in ``0..below - 1``."""
    check(
        value.dim() == 1 and value.dtype == torch.int64 and value.device == x.device,
        f"{name}: expected (rows,) int64 on {x.device}, "
        f"got {tuple(value.shape)} {value.dtype} on {value.device}",
    )
    if value.is_cuda and load_kernels().cuda:
        return  # the kernel looks itself: here it would cost two waits a client
    if value.numel():
        low, high = (int(v) for v in torch.aminmax(value))
        check(
            low >= 0 and high < below,
            f"{name}: expected values in 0..{below - 1}, got {low}..{high}",
        )


def check_client(
    x: Tensor, y: Tensor, text: Tensor, perm: Tensor, where: str = ""
) -> None:
    """One client's ``x`` (N, D), ``y`` (N,), ``text`` (C, D) and ``perm`` (M,)."""
    check_matrix(f"{where}x", x)
    check(x.is_floating_point(), f"{where}x: expected floating point, got {x.dtype}")
    check_matrix("text", text, x.shape[1])
    check_same("text", text, x)
    check(
        y.shape == x.shape[:1],
        f"{where}y: expected shape ({x.shape[0]},), got {tuple(y.shape)}",
    )
    check_index(f"{where}y", y, x, text.shape[0])
    check_index(f"{where}perm", perm, x, x.shape[0])


def check_moments(
    name: str, moments: Sequence[Tensor], params: Sequence[Tensor]
) -> None:
    """Adam moments of the shapes, dtypes and devices of ``params``."""
    check(
        [m.shape for m in moments] == [p.shape for p in params],
        f"{name}: expected the shapes of params, got "
        f"{[tuple(m.shape) for m in moments]}",
    )
    for moment, param in zip(moments, params):
        check_same(name, moment, param)


def check_weights(weights: Tensor, count: int) -> None:
    """``count`` aggregation weights: finite, non-negative, not all zero."""
    check(count > 0, "weighted mean of an empty list: expected at least one tensor")
    check(
        weights.shape == (count,) and weights.is_floating_point(),
        f"weights: expected shape ({count},) floating point, "
        f"got {tuple(weights.shape)} {weights.dtype}",
    )
    check(
        bool(torch.isfinite(weights).all())
        and bool((weights >= 0).all())
        and float(weights.sum()) > 0,
        f"weights: expected finite, non-negative, not all zero, got {weights.tolist()}",
    )
