"""What ``flower/secagg.py`` offers, under the path that apps name in their settings."""

from __future__ import annotations

import importlib
from typing import Any

# Flower reads this list, without importing the module, to see whether a path is right.
__all__ = ["client_app", "server_app"]  # noqa: F822


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__package__}.flower.secagg"), name)
