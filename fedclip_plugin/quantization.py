"""Codecs that send every value, in fewer bits: ``fp16``, ``int8`` and ``int4``."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from . import ops
from .codec import Codec, Parts, is_finite, misfit, row_count, scale_fault


class Fp16(Codec):
    """Half precision; what is larger than it can say waits for the next round."""

    def pack(self, x: Tensor) -> Parts:
        """Halves, cut at 65,504."""
        top = torch.finfo(torch.float16).max
        return ((x.clamp(-top, top) if is_finite(x) else x).half(),)

    def unpack(self, parts: Parts, shape: torch.Size) -> Tensor:
        """In float32."""
        return parts[0].float()

    def fault(self, parts: Parts, shape: torch.Size) -> str | None:
        """Shape, dtype, or values that are no numbers."""
        (half,) = parts
        odd = misfit("it", half, torch.float16, shape)
        return odd or (None if is_finite(half) else "it holds NaN or Inf")

    def square(self, parts: Parts, shape: torch.Size) -> float:
        """Of the halves."""
        return float(parts[0].float().square().sum(dtype=torch.float64))


class Int8(Codec):
    """The nearest of 255 steps, a scale a row."""

    parts = ("", ":scale")
    top = 127

    def pack(self, x: Tensor) -> Parts:
        """Steps in the shape of ``x``, and the scales."""
        q, scale = self.quantize(x)
        return q.reshape(x.shape), scale

    def quantize(self, x: Tensor) -> Parts:
        """Steps (R, N / R) int8 and scales (R,) float32; a scale shows NaN and Inf."""
        rows = x.reshape(row_count(x.shape), -1)
        scale = rows.new_zeros(len(rows))
        if rows.numel():
            scale = rows.abs().amax(dim=1) / self.top
        step = torch.where(scale > 0, scale, 1)[:, None]
        q = (rows / step).nan_to_num_(0, 0, 0).round_().clamp_(-self.top, self.top)
        return q.to(torch.int8), scale

    def steps(self, parts: Parts, shape: torch.Size) -> Tensor:
        """The int8 steps, in ``shape``."""
        return parts[0]

    def rows(self, parts: Parts, shape: torch.Size) -> Tensor:
        """The steps of each scale, (R, N / R)."""
        return self.steps(parts, shape).reshape(row_count(shape), -1)

    def unpack(self, parts: Parts, shape: torch.Size) -> Tensor:
        """Steps times the scale of their row."""
        return (self.rows(parts, shape) * parts[1][:, None]).reshape(shape)

    def fault(self, parts: Parts, shape: torch.Size) -> str | None:
        """Shapes, dtypes, or scales that are no sizes."""
        odd = misfit("it", parts[0], torch.int8, shape)
        return odd or scale_fault(parts[1], row_count(shape))

    def square(self, parts: Parts, shape: torch.Size) -> float:
        """Of the steps in a row, times the square of its scale."""
        steps = self.steps(parts, shape)
        return float(ops.squared_norms_int8([steps], [parts[1]]))

    def squares(self, packed: Sequence[Parts], shape: torch.Size) -> Tensor:
        """On the int8 values themselves, in one call of the kernel."""
        steps, scales = zip(*packed)
        return ops.squared_norms_int8(steps, scales).cpu()

    def mean(
        self, packed: Sequence[Parts], weights: Tensor, shape: torch.Size
    ) -> Tensor:
        """On the int8 values themselves, in one call of the kernel."""
        steps, scales = zip(*packed)
        return ops.weighted_mean_int8(steps, scales, weights)


class Int4(Int8):
    """The nearest of 15 steps, a scale a row; two steps in a byte, then Huffman codes.

    Small steps are frequent: deflating takes a tenth to a fifth away.
    """

    top = 7
    squares = Codec.squares  # one at a time: taken apart they are twice as long

    def pack(self, x: Tensor) -> Parts:
        """Pairs of steps; the scales."""
        q, scale = self.quantize(x)
        steps = (q.reshape(-1) + 8).to(torch.uint8)
        pairs = torch.cat([steps, steps.new_full((len(steps) % 2,), 8)])
        return _deflated(pairs[0::2] | pairs[1::2] << 4), scale

    def steps(self, parts: Parts, shape: torch.Size) -> Tensor:
        """The pairs taken apart, in ``shape``."""
        packed = _inflated(parts[0], (shape.numel() + 1) // 2)
        pairs = torch.stack([packed & 15, packed >> 4], dim=1).reshape(-1)
        flat = pairs[: shape.numel()].to(torch.int8) - 8
        return flat.reshape(shape)

    def mean(
        self, packed: Sequence[Parts], weights: Tensor, shape: torch.Size
    ) -> Tensor:
        """On the steps, in one call of the kernel."""
        apart = [(self.steps(parts, shape), parts[1]) for parts in packed]
        return super().mean(apart, weights, shape)

    def fault(self, parts: Parts, shape: torch.Size) -> str | None:
        """Shapes, dtypes, or scales that are no sizes."""
        odd = misfit("it", parts[0], torch.uint8, torch.Size([parts[0].numel()]))
        if odd is None:
            try:
                _inflated(parts[0], (shape.numel() + 1) // 2)
            except ValueError as error:
                odd = f"it {error}"
        return odd or scale_fault(parts[1], row_count(shape))


def _deflated(packed: Tensor) -> Tensor:
    press = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    data = press.compress(packed.cpu().numpy().tobytes()) + press.flush()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(packed.device)


def _inflated(part: Tensor, size: int) -> Tensor:
    """The ``size`` bytes in ``part``; ValueError where there are more, or others."""
    press = zlib.decompressobj(-15)
    try:
        data = press.decompress(part.cpu().numpy().tobytes(), size + 1)
    except zlib.error as error:
        raise ValueError(f"is not deflated ({error})") from error
    if len(data) != size or not press.eof or press.unused_data:
        raise ValueError(f"does not hold {size} bytes")
    if not data:
        return part[:0]
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(part.device)
