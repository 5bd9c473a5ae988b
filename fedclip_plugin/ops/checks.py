"""Checks of the operators' arguments: the message names the one that is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .kernels import serves

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
        raise ValueError(
            f"{prefix}expected [w1, b1, w2, b2], got {len(params)} tensors"
        )
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
    if value.dtype != x.dtype or value.device != x.device:
        raise ValueError(
            f"{name}: expected {x.dtype} on {x.device} as x, "
            f"got {value.dtype} on {value.device}"
        )


def check_index(name: str, value: Tensor, x: Tensor, below: int) -> None:
    """One-dimensional int64 on the device of ``x``, values in ``0..below - 1``."""
    if value.dim() != 1 or value.dtype != torch.int64 or value.device != x.device:
        raise ValueError(
            f"{name}: expected (rows,) int64 on {x.device}, "
            f"got {tuple(value.shape)} {value.dtype} on {value.device}"
        )
    if value.is_cuda and x.dtype is torch.float32 and serves(x.device):
        return  # the kernel looks itself: here it would cost two waits a client
    if value.numel():
        low, high = (int(v) for v in torch.aminmax(value))
        if low < 0 or high >= below:
            raise ValueError(
                f"{name}: expected values in 0..{below - 1}, got {low}..{high}"
            )


def check_client(
    x: Tensor, y: Tensor, text: Tensor, perm: Tensor, where: str = ""
) -> None:
    """One client's ``x`` (N, D), ``y`` (N,), ``text`` (C, D) and ``perm`` (M,)."""
    check_matrix(f"{where}x", x)
    if not x.is_floating_point():
        raise ValueError(f"{where}x: expected floating point, got {x.dtype}")
    check_matrix("text", text, x.shape[1])
    check_same("text", text, x)
    if y.shape != x.shape[:1]:
        raise ValueError(
            f"{where}y: expected shape ({x.shape[0]},), got {tuple(y.shape)}"
        )
    check_index(f"{where}y", y, x, text.shape[0])
    check_index(f"{where}perm", perm, x, x.shape[0])


def check_moments(
    name: str, moments: Sequence[Tensor], params: Sequence[Tensor]
) -> None:
    """Adam moments of the shapes, dtypes and devices of ``params``."""
    if [m.shape for m in moments] != [p.shape for p in params]:
        raise ValueError(
            f"{name}: expected the shapes of params, got "
            f"{[tuple(m.shape) for m in moments]}"
        )
    for moment, param in zip(moments, params):
        check_same(name, moment, param)


def check_distinct(states: Sequence[Tensor]) -> None:
    """No tensor twice: clients that train side by side would write over each other.

    ``states``: params, exp_avg, exp_avg_sq, four each, client after client.
    """
    first: dict[int, int] = {}
    for i, value in enumerate(states):
        same = first.setdefault(value.data_ptr(), i) if value.numel() else i
        check(same == i, f"{_place(i)}: expected its own memory, got {_place(same)}'s")


def _place(i: int) -> str:
    kind = ("params", "exp_avg", "exp_avg_sq")[i % 12 // 4]
    return f"client {i // 12}: {kind}[{i % 4}]"


def check_like(name: str, tensors: Sequence[Tensor], wanted: Tensor) -> None:
    """Each of the shape, dtype and device of ``wanted``."""
    shape, dtype, device = wanted.shape, wanted.dtype, wanted.device
    for i, value in enumerate(tensors):
        if value.shape != shape:
            raise ValueError(
                f"{name}[{i}]: expected shape {tuple(shape)}, got {tuple(value.shape)}"
            )
        if value.dtype != dtype or value.device != device:
            check_same(f"{name}[{i}]", value, wanted)


def check_scaled(qs: Sequence[Tensor], scales: Sequence[Tensor]) -> None:
    """``qs`` int8 of one shape, with float32 ``scales``: one a row, or one in all."""
    check(len(scales) == len(qs), f"scales: expected {len(qs)}, got {len(scales)}")
    shape, device = qs[0].shape, qs[0].device
    rows = (1,) if scales[0].shape == (1,) else tuple(shape[:1]) or (1,)
    for i, (q, scale) in enumerate(zip(qs, scales)):
        if q.dtype != torch.int8 or q.shape != shape:
            raise ValueError(
                f"qs[{i}]: expected int8 {tuple(shape)}, got {q.dtype} {tuple(q.shape)}"
            )
        if scale.dtype != torch.float32 or scale.shape != rows:
            raise ValueError(
                f"scales[{i}]: expected float32 {rows}, "
                f"got {scale.dtype} {tuple(scale.shape)}"
            )
        if q.device != device or scale.device != device:
            raise ValueError(
                f"qs[{i}], scales[{i}]: expected both on {device}, "
                f"got {q.device} and {scale.device}"
            )


def check_weights(weights: Tensor, count: int) -> None:
    """``count`` aggregation weights: finite, non-negative, not all zero."""
    check(count > 0, "weighted mean of an empty list: expected at least one tensor")
    if weights.shape != (count,) or not weights.is_floating_point():
        raise ValueError(
            f"weights: expected shape ({count},) floating point, "
            f"got {tuple(weights.shape)} {weights.dtype}"
        )
    if weights.is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("weights: a mean cannot be captured in a CUDA graph")
    total = float(weights.sum(dtype=torch.float64))
    if not (0 < total < math.inf and bool((weights >= 0).all())):
        raise ValueError(
            "weights: expected finite, non-negative, not all zero, "
            f"got {weights.tolist()}"
        )
