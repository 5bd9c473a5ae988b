"""FedML as the contracts want to run it: in this process, under MPI, over gRPC."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

from fedclip_plugin import registry
from fedclip_plugin.errors import FedClipError
from fedclip_plugin.federation.build import Federation
from fedclip_plugin.federation.unseen import Columns, base_to_novel
from fedclip_plugin.registry.fedml.settings import read_settings
from fedclip_plugin.runs.host_run import Setup, open_setup
from fedclip_plugin.wire.update import State
from tests.federation.toy import write_toy
from tests.registry.contract import FAULTS, Ended, Faults, Host, World
from tests.registry.fedml import faulty
from tests.registry.fedml.faulty import Faulty
from tests.registry.fedml.runs import (
    FEDCLIP,
    finish,
    mpirun,
    namespace,
    options,
    processes,
    write_addresses,
    write_yaml,
)
from tests.registry.processes import Finished, ProcessWorld
from tests.waiting import SECONDS


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
NAMES |= {"seed": "random_seed", "clients": "client_num_in_total"}
NAMES |= {"alpha": "partition_alpha"}


class InFedMl(Host):
    """What is the same in all of FedML's modes: the keys, and the engine's federation.

    ``shared`` are keys of every run of this world.
    """

    def __init__(self, features: Path, **shared: Any) -> None:
        self.features = features
        self.shared = shared

    def values(self, **chosen: Any) -> dict[str, Any]:
        """The same options as FedML's keys."""
        keys = {NAMES.get(k, f"fedclip_{k}"): v for k, v in chosen.items()}
        return options(self.features, **self.shared, **keys)

    def setup(self, **chosen: Any) -> Setup:
        """The embedded engine's, of the clients that FedML has."""
        config, _ = read_settings(SimpleNamespace(**self.values(**chosen)))
        return open_setup(config)

    def federation(self, **chosen: Any) -> Federation:
        """Its clients."""
        return self.setup(**chosen).fed


class SingleProcess(InFedMl, World):
    """FedML's sp simulation: all three clients, in this process."""

    faults: ClassVar[Collection[str]] = tuple(FAULTS.keys() - {"nothing"})
    own_trainer = False  # one of the user's own is asked client by client

    def run(self, faults: Faults | None = None, **chosen: Any) -> Ended:
        args = namespace(self.features, **self.values(**chosen))
        trainer = type("Trainer", (Faulty,), {"faults": faults or {}})
        own = {"client_trainer": trainer} if faults or self.own_trainer else {}
        api = simulate(args, **own)
        return Ended(state_of(api), api.server_aggregator.run)

    def refusal(self, **chosen: Any) -> str:
        with pytest.raises(FedClipError) as caught:
            self.run(**chosen)
        return str(caught.value)


TOLD = {  # what a script of the user's own has to tell FedML
    "gpu_mapping_file": None,
    "gpu_mapping_key": None,
    "scenario": "horizontal",
    "frequency_of_the_test": 1,
}


class InProcesses(InFedMl, ProcessWorld):
    """Two clients and a held-out domain; the server is rank 0."""

    def __init__(self, folder: Path) -> None:
        ProcessWorld.__init__(self, folder)
        features = write_toy(folder / "toy", dim=128)
        two = {"client_num_in_total": 2, "client_num_per_round": 2}
        shared = {**two, **TOLD, **self.mode}
        InFedMl.__init__(self, features, fedclip_target="photo", **shared)

    mode: ClassVar[dict[str, Any]] = {}

    def columns(self, state: State, **chosen: Any) -> dict[str, Columns]:
        """The server has the data and measures itself."""
        setup = self.setup(**chosen)
        return base_to_novel(setup.fed, setup.features, "photo", state)

    def play(self, faults: Faults | None = None, **chosen: Any) -> Finished:
        folder = self.own_folder()
        values = self.values(**chosen)
        code, log = self.start(folder, values, faults)
        return self.finished(code, log, folder, Path(chosen.get("out", "none")))

    @abstractmethod
    def start(
        self, folder: Path, values: dict[str, Any], faults: Faults | None
    ) -> tuple[int, str]:
        """The exit code and the log of the server, once all have ended."""

    def program(self, cf: Path, faults: Faults | None, *words: str) -> list[str]:
        """The command, or a user's own script whose trainer fails."""
        words = ("--cf", str(cf), *words)
        if faults:
            return faulty.command(faults, *words)
        return [*FEDCLIP, "fedml", *words, "--offline"]


class Mpi(InProcesses):
    """FedML's MPI simulation, started by ``mpirun``."""

    mode: ClassVar[dict[str, Any]] = {"backend": "MPI"}
    rounds: ClassVar[int] = 1  # after which FedML's own client would wait for ever
    lacks: ClassVar[int] = 200

    def start(
        self, folder: Path, values: dict[str, Any], faults: Faults | None
    ) -> tuple[int, str]:
        cf = write_yaml(folder / "fedml_config.yaml", values)
        command = [str(mpirun()), "-np", "3", *self.program(cf, faults)]
        ((code, log),) = finish(folder, [command])
        return code, log

    def error(self, log: str) -> str:
        """Without the word of those that MPI ends then."""
        said = [line for line in log.splitlines() if "error: interrupted;" not in line]
        return super().error("\n".join(said))


class CrossSilo(InProcesses):
    """FedML's cross-silo over gRPC: three processes that find each other."""

    mode: ClassVar[dict[str, Any]] = {
        "training_type": "cross_silo",
        "backend": "GRPC",
        "grpc_ipconfig_path": "grpc_ipconfig.csv",
    }
    slack: ClassVar[int] = 4096  # bytes of a message beside the adapter

    def start(
        self, folder: Path, values: dict[str, Any], faults: Faults | None
    ) -> tuple[int, str]:
        write_addresses(folder / "grpc_ipconfig.csv", 3)
        cf = write_yaml(folder / "fedml_config.yaml", values)
        roles = [("--rank", "0", "--role", "server")]
        roles += [("--rank", str(rank), "--role", "client") for rank in (1, 2)]
        commands = [self.program(cf, faults, *role) for role in roles]
        with processes(folder, commands) as started:
            codes = [started[0].wait(SECONDS)]
            if codes == [0]:  # else clients wait for a server that is started again
                codes += [client.wait(SECONDS) for client in started[1:]]
        assert set(codes) == {codes[0]}, codes
        return codes[0], (folder / "0.log").read_text()
