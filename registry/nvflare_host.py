"""The NVFlare binding: a controller and an executor, named by class path in job files.

``fedclip nvflare job`` writes the files, ``fedclip nvflare allow`` lets a site run what
they name (docs/nvflare.md).  NVFlare itself is imported when one of its two roles is
asked for.
"""

from __future__ import annotations

import importlib
from typing import Any

from ..errors import ConfigError
from .nvflare.job import allow, write_job

__all__ = ["FedClipController", "FedClipExecutor", "allow", "write_job"]  # noqa: F822

_HOMES = {"FedClipController": "controller", "FedClipExecutor": "executor"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"{__package__}.nvflare.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("nvflare"):
            raise
        raise ConfigError(
            f"{name} needs NVFlare 2.9 ({error}): pip install 'fedclip-plugin[nvflare]'"
        ) from error
    return getattr(module, name)
