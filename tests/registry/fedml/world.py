"""FedML in one process, as a user's own script runs it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

from fedclip_plugin import registry
from fedclip_plugin.errors import FedClipError
from fedclip_plugin.federation.build import Federation
from fedclip_plugin.registry import fedml_host
from fedclip_plugin.registry.fedml.settings import read_settings
from fedclip_plugin.runs.host_run import open_setup
from fedclip_plugin.wire.update import State
from tests.registry.contract import FAULTS, Ended, World, spoilt
from tests.registry.fedml.runs import namespace, options


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


NAMES = {"rounds": "comm_round", "local_epochs": "epochs", "lr": "learning_rate"}
NAMES |= {"seed": "random_seed"}


class Spoiling(fedml_host.FedCLIPTrainer):  # type: ignore[misc]
    """A trainer of the user's own whose updates arrive spoilt, by (client, round)."""

    faults: ClassVar[Mapping[tuple[str, int], str]] = {}

    def train(self, train_data: Any, device: Any, args: Any) -> None:
        super().train(train_data, device, args)
        self.fault = self.faults.get((train_data.client.name, args.round_idx + 1))

    def get_model_params(self) -> Any:
        params = super().get_model_params()
        if self.fault is None:
            return params
        return spoilt(self.fault, params)


class SingleProcess(World):
    """FedML's sp simulation: all three clients, in this process."""

    faults: ClassVar[Collection[str]] = tuple(FAULTS.keys() - {"nothing"})

    def __init__(self, features: Path) -> None:
        self.features = features

    def values(self, **chosen: Any) -> dict[str, Any]:
        """The same options as FedML's keys."""
        keys = {NAMES.get(k, f"fedclip_{k}"): v for k, v in chosen.items()}
        return options(self.features, **keys)

    def run(
        self, faults: Mapping[tuple[str, int], str] | None = None, **chosen: Any
    ) -> Ended:
        args = namespace(self.features, **self.values(**chosen))
        trainer = type("Trainer", (Spoiling,), {"faults": faults or {}})
        api = simulate(args, **({"client_trainer": trainer} if faults else {}))
        return Ended(state_of(api), api.server_aggregator.run)

    def federation(self, **chosen: Any) -> Federation:
        config, _ = read_settings(SimpleNamespace(**self.values(**chosen)))
        return open_setup(config).fed

    def refusal(self, **chosen: Any) -> str:
        with pytest.raises(FedClipError) as caught:
            self.run(**chosen)
        return str(caught.value)
