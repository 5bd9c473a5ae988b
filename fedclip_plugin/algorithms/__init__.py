"""Federated algorithms: one short file each, two hooks each (see ``base.py``).

A class with a ``name`` in a file of this folder is one.  Others add theirs by
``ALGORITHMS.register(name, cls)``, or by an entry point of the group
``fedclip_plugin.algorithms``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..config.schema import RunConfig
from ..errors import ConfigError
from .augment import Augmented
from .base import Algorithm, Client, Samples, Task
from .evaluated import Evaluated
from .fedclip import FedClip
from .plugins import Registry

__all__ = [
    "ALGORITHMS",
    "ELSEWHERE",
    "Algorithm",
    "Client",
    "FedClip",
    "Samples",
    "Task",
    "algorithm_class",
    "get_algorithm",
    "make_algorithm",
    "with_values",
]

_SERVER = "an option for any --alg that trains: use --server-optimizer"
ELSEWHERE = {
    "feddg-ga": "weights of clients for any --alg that trains: use --weighting gap",
    "ggeur": "augmentation for any --alg on features that trains: use --augment ggeur",
    "hlora": "use --alg fedavg-lora --lora-mean products",
    "fedavgm": f"{_SERVER} momentum",
    "fedadagrad": f"{_SERVER} adagrad",
    "fedadam": f"{_SERVER} adam",
    "fedyogi": f"{_SERVER} yogi",
}
"""Methods of papers that are options here, beside whatever --alg trains."""

ALGORITHMS: Registry[type[Algorithm]] = Registry(
    "alg", "fedclip_plugin.algorithms", ELSEWHERE
)


def _register_own() -> None:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        for cls in vars(importlib.import_module(module.name)).values():
            named = isinstance(cls, type) and issubclass(cls, Algorithm) and cls.name
            if named and cls.__module__ == module.name:
                ALGORITHMS.register(cls.name, cls)


_register_own()


def algorithm_class(name: str) -> type[Algorithm]:
    """The class of the algorithm called ``name``; ConfigError lists the known ones."""
    cls = ALGORITHMS.get(name)
    if not (isinstance(cls, type) and issubclass(cls, Algorithm)):
        raise ConfigError(
            f"--alg {name}: {cls!r} is not a subclass of "
            "fedclip_plugin.algorithms.Algorithm"
        )
    return cls


def get_algorithm(name: str) -> Algorithm:
    """The algorithm called ``name``; raises ConfigError listing the known ones."""
    return algorithm_class(name)()


def make_algorithm(config: RunConfig) -> Algorithm:
    """The algorithm of a run, within what ``--augment`` or ``--evaluate`` puts around
    it.

    Raises ConfigError where it cannot be augmented.
    """
    algorithm = get_algorithm(config.algorithm)
    if config.train.evaluate is not None:
        return Evaluated(algorithm, Path(config.train.evaluate))
    return algorithm if config.train.augment == "none" else Augmented(algorithm)


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """``config`` with ``values`` by field name, each in the section that has the field.

    The algorithm's own ``Params`` are made where the config has none.  Raises
    ConfigError for a name that no section has.
    """
    params = config.params or get_algorithm(config.algorithm).Params()
    shared = ("train", "server", "wire", "privacy")
    parts = {name: getattr(config, name) for name in shared} | {"params": params}
    changes: dict[str, dict[str, Any]] = {name: {} for name in parts}
    for key, value in values.items():
        owner = next((n for n, part in parts.items() if _has(part, key)), None)
        if owner is None:
            raise ConfigError(f"--alg {config.algorithm} has no option {key!r}")
        changes[owner][key] = value
    return replace(config, **{n: replace(p, **changes[n]) for n, p in parts.items()})


def _has(section: Any, key: str) -> bool:
    return any(key == field.name for field in fields(section))
