"""The timing of ``fedclip bench``, and a place for results, for these scripts."""

from __future__ import annotations

from pathlib import Path

from fedclip_plugin.bench.timing import Timing, fma_peak, interleave, machine

__all__ = ["Timing", "fma_peak", "interleave", "machine", "out_file"]


def out_file(text: str) -> Path:
    """The file of an ``--out``, its folder made before hours of work, not after."""
    path = Path(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
