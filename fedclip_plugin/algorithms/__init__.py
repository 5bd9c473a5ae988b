"""Federated algorithms: one short file each, two hooks each (see ``base.py``).

Others add theirs by ``ALGORITHMS.register(name, cls)``, or by an entry point of the
group ``fedclip_plugin.algorithms``.
"""

from __future__ import annotations

from ..errors import ConfigError
from .base import Algorithm, Client, Samples, Task
from .fedavg import FedAvg, FedProx
from .fedclip import FedClip
from .linear import Linear
from .local import Local
from .lora import FedAvgLora
from .plugins import Registry
from .promptfl import PromptFL
from .zeroshot import ZeroShot

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Client",
    "FedClip",
    "Samples",
    "Task",
    "get_algorithm",
]

ALGORITHMS: Registry[type[Algorithm]] = Registry("alg", "fedclip_plugin.algorithms")
for _algorithm in (
    FedClip,
    FedAvg,
    FedAvgLora,
    FedProx,
    Linear,
    Local,
    PromptFL,
    ZeroShot,
):
    ALGORITHMS.register(_algorithm.name, _algorithm)


def get_algorithm(name: str) -> Algorithm:
    """The algorithm called ``name``; raises ConfigError listing the known ones."""
    found = ALGORITHMS.get(name)
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise ConfigError(
            f"--alg {name}: {found!r} is not a subclass of "
            "fedclip_plugin.algorithms.Algorithm"
        )
    return found()
