"""The timing of ``fedclip bench``, for the scripts of this folder."""

from fedclip_plugin.bench.timing import Timing, fma_peak, interleave, machine

__all__ = ["Timing", "fma_peak", "interleave", "machine"]
