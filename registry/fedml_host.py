"""FedML 0.9.6: ``federated_optimizer: FedCLIP`` in simulations and in cross-silo.

``register()`` makes the name known to FedML for this process, ``run()`` is the command
``fedclip fedml``.  By hand, with FedMLRunner: ``load`` and ``create_model`` give data
and adapter; ``FedCLIPTrainer``, ``FedCLIPAggregator`` and ``FedCLIPAPI`` are FedML's
roles.  FedML is imported when first needed.
"""

from __future__ import annotations

from typing import Any

from .fedml import launch
from .fedml.data import create_model, load
from .fedml.launch import VERSION, go_offline, register, run

__all__ = ["VERSION", "create_model", "go_offline", "load", "register", "run"]


def __getattr__(name: str) -> Any:
    return launch.role(name)
