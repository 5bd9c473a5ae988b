"""The codec ``topk``: a share of the values, and where they belong."""

from __future__ import annotations

import torch
from torch import Tensor

from .codec import Codec, Parts, scale_fault, told
from .quantization import Int8

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
        """Zeros, but for the values that came."""
        values, gaps, scale = parts
        flat = scale.new_zeros(shape.numel())
        flat[_places(gaps)] = values * scale
        return flat.reshape(shape)

    def fault(self, parts: Parts, shape: torch.Size) -> str | None:
        """Shapes, dtypes, gaps that lead nowhere, or a scale that is no size."""
        values, gaps, scale = parts
        most = shape.numel()
        for name, part, kind in (
            ("it", values, torch.int8),
            ("its gap", gaps, torch.uint8),
        ):
            if part.dtype != kind or part.dim() != 1 or len(part) > most:
                return f"{name} is {told(part)}, expected (<= {most},) {kind}"
        places = _places(gaps)
        if len(places) != len(values):
            return f"it has {len(values)} values, its gaps place {len(places)}"
        end = int(_ends(gaps)[-1]) if len(gaps) else 0
        if end > most:
            return f"its gaps lead to value {end} of {most}"
        return scale_fault(scale, 1)

    def square(self, parts: Parts, shape: torch.Size) -> float:
        """Of the values that came."""
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
    """How many values lie up to each byte; a value follows what is left out."""
    return (gaps.long() + (gaps != _SKIP)).cumsum(0)


def _places(gaps: Tensor) -> Tensor:
    return _ends(gaps)[gaps != _SKIP] - 1
