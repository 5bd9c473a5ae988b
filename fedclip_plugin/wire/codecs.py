"""Fewer bytes: how the difference of a tensor from what was sent out is encoded.

Of every floating tensor of N values the difference ``state - sent`` travels, as plain
safetensors tensors; R is its number of rows (:func:`row_count`).  ``<key>`` is the
tensor's own name:

========  ====================================================  ==================
codec     what travels                                          bytes
========  ====================================================  ==================
``fp16``  ``<key>`` float16                                     2 N
``int8``  ``<key>`` int8, ``<key>:scale`` (R,) float32          N + 4 R
``int4``  ``<key>`` uint8, two values in a byte, the first in   less than
          the low half, + 8, deflated by zlib's Huffman codes;  N / 2 + 4 R
          ``<key>:scale`` (R,) float32
``topk``  the K = share N largest, or 1: ``<key>`` (K,) int8,   2 K + 4 + one for
          ``<key>:gap`` uint8, the number of values left out    each 255 values
          before each (255: that many and no value),            left out in a row
          ``<key>:scale`` (1,) float32
========  ====================================================  ==================

beside the safetensors header, some 70 bytes a tensor.  Other tensors travel whole.

Everything is deterministic: of equal values ``topk`` takes the first.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from . import spool
from .codec import Codec, Parts, describe, is_finite, misfit, row_count, scale_fault

_VECTORS = 64  # values; a multiple of what a kernel takes at once


class Fp16(Codec):
    """Half precision; what exceeds its range waits for the next round."""

    def pack(self, x: Tensor) -> Parts:
        """Halves, clipped at 65,504."""
        top = torch.finfo(torch.float16).max
        return ((x.clamp(-top, top) if is_finite(x) else x).half(),)

    def unpack(self, parts: Parts, shape: torch.Size) -> Tensor:
        """In float32."""
        return parts[0].float()

    def fault(self, parts: Parts, shape: torch.Size) -> str | None:
        """Wrong shape, dtype, or values that are not finite."""
        (half,) = parts
        odd = misfit("it", half, torch.float16, shape)
        return odd or (None if is_finite(half) else "it holds NaN or Inf")

    def square(self, parts: Parts, shape: torch.Size) -> float:
        """Of the halves."""
        return float(parts[0].float().square().sum(dtype=torch.float64))


class Int8(Codec):
    """The nearest of 255 steps, one scale per row."""

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
        """Wrong shapes, dtypes, or scales that are not valid."""
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
        """On the int8 values themselves, in one call of the kernel.

        Of spooled ones a call for some rows, or some columns of one row, of all: the
        same bits.
        """
        steps, scales = zip(*packed)
        if not (spool.on_disk() and shape.numel()):
            return ops.weighted_mean_int8(steps, scales, weights)
        tables = [q.reshape(len(scale), -1) for q, scale in zip(steps, scales)]
        rows, columns = tables[0].shape
        room = max(1, spool.PART_BYTES // len(tables))
        height = max(1, room // max(1, columns)) if rows > 1 else 1
        width = columns if rows > 1 else max(_VECTORS, room // _VECTORS * _VECTORS)
        mean = torch.empty(rows, columns)
        for r in range(0, rows, height):
            some = [scale[r : r + height] for scale in scales]
            for c in range(0, columns, max(1, width)):
                at = slice(r, r + height), slice(c, c + width)
                part = spool.gathered([table[at] for table in tables])
                mean[at] = ops.weighted_mean_int8(part.unbind(), some, weights)
        return mean.reshape(shape)


class Int4(Int8):
    """The nearest of 15 steps, one scale per row; two per byte, then Huffman codes.

    Small steps are frequent: deflating saves a tenth to a fifth.
    """

    top = 7
    squares = Codec.squares  # one at a time: unpacked steps take twice the memory

    def pack(self, x: Tensor) -> Parts:
        """Pairs of steps; the scales."""
        q, scale = self.quantize(x)
        steps = (q.reshape(-1) + 8).to(torch.uint8)
        pairs = torch.cat([steps, steps.new_full((len(steps) % 2,), 8)])
        return _deflated(pairs[0::2] | pairs[1::2] << 4), scale

    def steps(self, parts: Parts, shape: torch.Size) -> Tensor:
        """The steps of the pairs, in ``shape``."""
        packed = _inflated(parts[0], (shape.numel() + 1) // 2)
        pairs = torch.stack([packed & 15, packed >> 4], dim=1).reshape(-1)
        flat = pairs[: shape.numel()].to(torch.int8) - 8
        return flat.reshape(shape)

    def mean(
        self, packed: Sequence[Parts], weights: Tensor, shape: torch.Size
    ) -> Tensor:
        """On the steps, in one call of the kernel."""
        own = spool.Spool() if spool.on_disk() else None
        unpacked: list[Parts] = []
        for some in spool.portions(packed):
            part = {str(i): self.steps(parts, shape) for i, parts in enumerate(some)}
            steps = own.place(part) if own else part
            unpacked += [(q, parts[1]) for q, parts in zip(steps.values(), some)]
        return super().mean(unpacked, weights, shape)

    def fault(self, parts: Parts, shape: torch.Size) -> str | None:
        """Wrong shapes, dtypes, or scales that are not valid."""
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
    """The ``size`` bytes in ``part``; ValueError unless there are exactly as many."""
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


_SKIP = 255


class TopK(Codec):
    """The values farthest from zero, in 255 steps; one scale for all."""

    parts = ("", ":gap", ":scale")

    def __init__(self, share: float = 0.05) -> None:
        self.share = share

    def pack(self, x: Tensor) -> Parts:
        """The K largest, the gaps before them, the scale."""
        flat = x.reshape(-1)
        places = self._largest(flat.abs())
        scale = flat.new_zeros(1)
        if len(flat):
            scale = flat.abs().amax()[None] / Int8.top
        step = torch.where(scale > 0, scale, 1)
        q = (flat[places] / step).nan_to_num_(0, 0, 0).round_()
        return q.clamp_(-Int8.top, Int8.top).to(torch.int8), _gaps(places), scale

    def _largest(self, sizes: Tensor) -> Tensor:
        """Places of the largest of ``sizes`` (N,), ascending; none where all are 0."""
        if not len(sizes):
            return sizes.new_zeros(0, dtype=torch.int64)
        count = max(1, round(self.share * len(sizes)))
        least = sizes.topk(count, sorted=False).values.amin()
        places = ((sizes >= least) & (sizes > 0)).nonzero()[:, 0]
        ties = (sizes[places] == least).nonzero()[:, 0]
        spare = max(0, len(places) - count)
        keep = torch.ones_like(places, dtype=torch.bool)
        keep[ties[len(ties) - spare :]] = False
        return places[keep]

    def unpack(self, parts: Parts, shape: torch.Size) -> Tensor:
        """Zeros, except for the values that were sent."""
        values, gaps, scale = parts
        flat = scale.new_zeros(shape.numel())
        flat[_places(gaps)] = values * scale
        return flat.reshape(shape)

    def fault(self, parts: Parts, shape: torch.Size) -> str | None:
        """Wrong shapes, dtypes, gaps that lead outside, or an invalid scale."""
        values, gaps, scale = parts
        most = shape.numel()
        for name, part, kind in (
            ("it", values, torch.int8),
            ("its gap", gaps, torch.uint8),
        ):
            if part.dtype != kind or part.dim() != 1 or len(part) > most:
                return f"{name} is {describe(part)}, expected (<= {most},) {kind}"
        places = _places(gaps)
        if len(places) != len(values):
            return f"it has {len(values)} values, its gaps place {len(places)}"
        end = int(_ends(gaps)[-1]) if len(gaps) else 0
        if end > most:
            return f"its gaps lead to value {end} of {most}"
        return scale_fault(scale, 1)

    def square(self, parts: Parts, shape: torch.Size) -> float:
        """Of the values that were sent."""
        values, _, scale = parts
        squares = values.float().square().sum(dtype=torch.float64)
        return float(squares * scale.double().square())


def _gaps(places: Tensor) -> Tensor:
    """Ascending places as bytes: how many values are left out before each."""
    before = torch.cat([places.new_full((1,), -1), places])[:-1]
    left_out = places - before - 1
    length = left_out // _SKIP + 1  # bytes of each
    gaps = places.new_full((int(length.sum()),), _SKIP, dtype=torch.uint8)
    gaps[length.cumsum(0) - 1] = (left_out % _SKIP).to(torch.uint8)
    return gaps


def _ends(gaps: Tensor) -> Tensor:
    """How many values are covered up to each byte; a value follows those left out."""
    return (gaps.long() + (gaps != _SKIP)).cumsum(0)


def _places(gaps: Tensor) -> Tensor:
    return _ends(gaps)[gaps != _SKIP] - 1


CODECS: dict[str, Codec] = {
    "fp16": Fp16(),
    "int8": Int8(),
    "int4": Int4(),
    "topk": TopK(),
}
