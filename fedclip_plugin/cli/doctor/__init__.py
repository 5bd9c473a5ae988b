"""What can be checked before a run: versions, machine, model, data, hosts, cache.

``diagnose`` only looks: it never repairs, downloads or prints; the command line does.
Errors become checks too, so that one fault does not hide the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...config.schema import RunConfig
from . import inputs, machine, software
from .check import Check, doubted, guarded

__all__ = ["Check", "diagnose"]


def diagnose(config: RunConfig) -> list[Check]:
    """Check everything that a run of ``config`` depends on; changes nothing."""
    features = config.data.features
    parts: dict[str, Callable[[], Sequence[Check]]] = {
        "versions": software.check_versions,
        "torchvision": software.check_torchvision,
        "kernels": machine.check_kernels,
        "device": lambda: machine.check_device(config.model.device),
        "memory": machine.check_memory,
        "home": machine.check_home,
        "cache": machine.check_cache,
        "terminal": machine.check_terminal,
    }
    if features is None:
        parts["data"] = lambda: inputs.check_data(config)
        parts["model"] = lambda: inputs.check_model(config)
    else:
        parts["features"] = lambda: inputs.check_features(features)
    parts["options"] = lambda: doubted("options", config.notes)
    parts["hosts"] = software.check_hosts
    parts["extras"] = software.check_extras
    return [check for name, part in parts.items() for check in guarded(name, part)]
