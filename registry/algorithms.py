"""The algorithms that every host selects from; see ``fedclip_plugin.algorithms``."""

from __future__ import annotations

from ..algorithms import ALGORITHMS, Algorithm, get_algorithm

__all__ = ["ALGORITHMS", "Algorithm", "get_algorithm"]
