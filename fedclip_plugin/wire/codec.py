"""What every codec of ``codecs.py`` offers, and checks of a stranger's tensors."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from .spool import in_turn

Parts = tuple[Tensor, ...]

LARGEST_SCALE = 1e17  # larger values would overflow when squared
_COLUMNS = 64  # values that a row needs to have a scale of its own


def row_count(shape: torch.Size) -> int:
    """Rows with a scale of their own: the first dimension's, if they are long enough.

    Short rows, vectors and single values share one scale.
    """
    rows = shape[0] if len(shape) > 1 else 1
    return rows if rows and shape.numel() // rows >= _COLUMNS else 1


def is_finite(x: Tensor) -> bool:
    """Whether all values of a floating tensor are finite; in one pass."""
    return not x.numel() or bool(x.abs().amax().isfinite())


class Codec(abc.ABC):
    """A difference as the tensors that travel, and back; ``parts`` ends their keys."""

    parts: ClassVar[tuple[str, ...]] = ("",)

    @abc.abstractmethod
    def pack(self, x: Tensor) -> Parts:
        """``x`` (any shape, float32) as it travels; NaN and Inf must show in it."""

    @abc.abstractmethod
    def unpack(self, parts: Parts, shape: torch.Size) -> Tensor:
        """The difference that ``parts`` stand for: ``shape``, float32."""

    @abc.abstractmethod
    def fault(self, parts: Parts, shape: torch.Size) -> str | None:
        """Why a stranger's ``parts`` cannot be unpacked safely; None if they can.

        Afterwards :meth:`unpack` gives finite values and takes the memory of ``shape``.
        """

    @abc.abstractmethod
    def square(self, parts: Parts, shape: torch.Size) -> float:
        """Sum of the squared differences."""

    def squares(self, packed: Sequence[Parts], shape: torch.Size) -> Tensor:
        """:meth:`square` of K differences: (K,) float64."""
        return torch.tensor([self.square(p, shape) for p in packed], dtype=torch.double)

    def mean(
        self, packed: Sequence[Parts], weights: Tensor, shape: torch.Size
    ) -> Tensor:
        """Weighted mean of K differences, float32; one at a time in memory.

        ``weights`` (K,) have a positive sum.
        """
        shares = (weights.double() / weights.double().sum()).tolist()
        total = torch.zeros(shape, dtype=torch.float64, device=packed[0][0].device)
        for parts, share in zip(in_turn(packed), shares):
            total.add_(self.unpack(parts, shape), alpha=share)
        return total.float()


def describe(part: Tensor) -> str:
    """Shape and dtype, for messages."""
    return f"{tuple(part.shape)} {part.dtype}"


def misfit(
    name: str, part: Tensor, dtype: torch.dtype, shape: torch.Size
) -> str | None:
    """How ``part``, called ``name``, differs from ``dtype`` and ``shape``, or None."""
    if part.dtype == dtype and part.shape == shape:
        return None
    return f"{name} is {describe(part)}, expected {tuple(shape)} {dtype}"


def scale_fault(scale: Tensor, rows: int) -> str | None:
    """Why ``scale`` is not one valid scale per row; None if it is."""
    odd = misfit("its scale", scale, torch.float32, torch.Size([rows]))
    if odd is None:
        least, most = (float(v) for v in scale.aminmax())  # NaN if there is one
        if not (least >= 0 and most <= LARGEST_SCALE):
            return "its scale is NaN, Inf, negative or too large"
    return odd
