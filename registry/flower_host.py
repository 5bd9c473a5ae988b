"""The Flower binding: a strategy, a ServerApp and a ClientApp, named by import path.

``fedclip_plugin.registry.flower_host:server_app`` and ``:client_app`` go into an app's
``pyproject.toml`` (docs/flower.md).  Flower itself is imported when one of the names
below is asked for, so that this module can be imported without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from .flower.client import client_app, make_client_app
    from .flower.strategy import FedClip, server_app

# Flower reads this list, without importing the module, to see whether a path is right.
__all__ = ["FedClip", "client_app", "make_client_app", "server_app"]

_HOMES = {
    "FedClip": "flower.strategy",
    "server_app": "flower.strategy",
    "client_app": "flower.client",
    "make_client_app": "flower.client",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__package__}.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("flwr"):
            raise
        raise ConfigError(
            f"{name} needs Flower 1.41 or later ({error}): "
            "pip install 'fedclip-plugin[flower]'"
        ) from error
    return getattr(module, name)
