"""FedCLIP and other federated methods on frozen CLIP features.

A frozen CLIP encodes every image once, clients train an attention adapter on the
features, and only the adapter crosses the wire::

    import fedclip_plugin as fc

    summary = fc.run(target="sketch", rounds=20, out="runs/first")  # embedded data
    labels, probabilities = fc.load_classifier("runs/first").predict(["image.png"])

``import fedclip_plugin`` is cheap: torch and the kernels are loaded when something is
used that computes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import ops as ops
    from .algorithms import ALGORITHMS, Algorithm, Client, Samples, Task
    from .algorithms.adapter import ADAPTERS
    from .api import (
        Run,
        encode,
        join,
        leave,
        load_classifier,
        load_run,
        run,
        sweep,
    )
    from .config.inputs import DataConfig, ModelConfig
    from .config.schema import (
        PrivacyConfig,
        RunConfig,
        ServerConfig,
        TrainConfig,
        WireConfig,
    )
    from .errors import (
        ConfigError,
        DataError,
        FeaturesError,
        FedClipError,
        RunError,
        UpdateError,
        WeightsError,
    )
    from .export.predict import Classifier, Predictions
    from .features.feature_set import FeatureSet, load_features, save_features
    from .ops.kernels import Capabilities
    from .wire.update import ClientUpdate

__version__ = "0.1.0"  # the only place; pyproject.toml reads it

_HOMES = {
    "algorithms": ("ALGORITHMS", "Algorithm", "Client", "Samples", "Task"),
    "algorithms.adapter": ("ADAPTERS",),
    "api": (
        *("Run", "encode", "join", "leave", "load_classifier", "load_run", "run"),
        "sweep",
    ),
    "config.schema": (
        *("DataConfig", "ModelConfig", "PrivacyConfig", "RunConfig", "ServerConfig"),
        *("TrainConfig", "WireConfig"),
    ),
    "errors": (
        *("ConfigError", "DataError", "FeaturesError", "FedClipError", "RunError"),
        *("UpdateError", "WeightsError"),
    ),
    "export.predict": ("Classifier", "Predictions"),
    "features.feature_set": ("FeatureSet", "load_features", "save_features"),
    "wire.update": ("ClientUpdate",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ADAPTERS",
    "ALGORITHMS",
    "Algorithm",
    "Classifier",
    "Client",
    "ClientUpdate",
    "ConfigError",
    "DataConfig",
    "DataError",
    "FeatureSet",
    "FeaturesError",
    "FedClipError",
    "ModelConfig",
    "Predictions",
    "PrivacyConfig",
    "Run",
    "RunConfig",
    "RunError",
    "Samples",
    "ServerConfig",
    "Task",
    "TrainConfig",
    "UpdateError",
    "WeightsError",
    "WireConfig",
    "__version__",
    "capabilities",
    "encode",
    "join",
    "leave",
    "load_classifier",
    "load_features",
    "load_run",
    "ops",
    "run",
    "save_features",
    "sweep",
]


def capabilities() -> Capabilities:
    """What this installation computes with; see :class:`Capabilities` for the keys."""
    from .ops import kernels  # importing ops registers what is then listed

    return {"version": __version__, **kernels.capabilities()}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module(".ops", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
