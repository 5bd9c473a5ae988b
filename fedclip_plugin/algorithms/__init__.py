"""Federated algorithms: one short file each, two hooks each (see ``base.py``)."""

from __future__ import annotations

import difflib

from ..errors import ConfigError
from .base import Algorithm, Client, Samples, Task
from .fedclip import FedClip

__all__ = ["Algorithm", "Client", "FedClip", "Samples", "Task", "get_algorithm"]

ALGORITHMS: dict[str, type[Algorithm]] = {FedClip.name: FedClip}


def get_algorithm(name: str) -> Algorithm:
    """The algorithm called ``name``; raises ConfigError listing the known ones."""
    found = ALGORITHMS.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), ALGORITHMS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(
            f"unknown --alg {name!r}: {hint}known: {', '.join(sorted(ALGORITHMS))}"
        )
    return found()
