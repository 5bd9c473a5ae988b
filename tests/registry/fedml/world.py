"""FedML in one process, as a user's own script runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

from fedclip_plugin import registry
from fedclip_plugin.wire.update import State
from tests.registry.fedml.runs import namespace


@pytest.fixture(autouse=True)
def fresh_fedml():
    """FedML keeps its security and privacy in singletons; they outlive a run."""
    from fedml.core.dp.fedml_differential_privacy import FedMLDifferentialPrivacy
    from fedml.core.security.fedml_attacker import FedMLAttacker
    from fedml.core.security.fedml_defender import FedMLDefender

    yield
    FedMLDifferentialPrivacy._dp_instance = None
    FedMLDefender._defender_instance = None
    FedMLAttacker._attacker_instance = None


def simulate(args: Any, **roles: Any) -> Any:
    """What a user's own script does, in this process; returns the finished API."""
    import fedml

    registry.register("fedml")
    fedml.mlops.pre_setup(args)  # the part of fedml.init that changes no logging
    dataset, classes = fedml.data.load(args)
    model = fedml.model.create(args, classes)
    roles = {name: build(model, args) for name, build in roles.items()}
    runner = fedml.FedMLRunner(args, torch.device("cpu"), dataset, model, **roles)
    runner.run()
    return runner.runner.fl_trainer


def state_of(api: Any) -> State:
    return dict(api.model.state_dict())


def secured(features: Path, **keys: Any) -> Any:
    args = namespace(features, comm_round=1)
    for key, value in keys.items():
        setattr(args, key, value)
    return args
