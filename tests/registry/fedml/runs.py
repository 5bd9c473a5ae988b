"""FedML runs for the tests: configurations, processes, and what must come out."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetensors.torch
import yaml

from fedclip_plugin.federation.engine import RunState, federate
from fedclip_plugin.registry.fedml.settings import bind, read_settings
from fedclip_plugin.runs.host_run import HostRun, open_setup
from fedclip_plugin.wire.update import State
from tests.registry.contract import distance
from tests.registry.fedml.forked import TESTS, Process, kill, launch
from tests.waiting import SECONDS

FEDCLIP = [sys.executable, "-m", "fedclip_plugin.cli"]


def options(features: Path, **more: Any) -> dict[str, Any]:
    """FedML's keys, flat, of a run on the toy features: three clients, three rounds."""
    return {
        "training_type": "simulation",
        "backend": "sp",
        "random_seed": 3,
        "dataset": "toy",
        "federated_optimizer": "FedCLIP",
        "client_num_in_total": 3,
        "client_num_per_round": 3,
        "comm_round": 3,
        "epochs": 2,
        "batch_size": 8,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "using_gpu": False,
        "enable_tracking": False,
        "fedclip_features": str(features),
        **more,
    }


def namespace(features: Path, **more: Any) -> SimpleNamespace:
    """The same as FedML's ``args``, for runs in this process."""
    return SimpleNamespace(
        run_id="0", rank=0, model="adapter", scenario="horizontal", enable_wandb=False,
        frequency_of_the_test=1, comm=None, process_id=0, **options(features, **more),
    )  # fmt: skip


def write_yaml(file: Path, values: dict[str, Any]) -> Path:
    """A ``fedml_config.yaml``; FedML flattens sections, so one is enough."""
    file.write_text(yaml.safe_dump({"train_args": values}), encoding="utf-8")
    return file


def embedded(values: dict[str, Any]) -> RunState:
    """What the embedded engine makes of the same configuration."""
    config, _ = read_settings(SimpleNamespace(**values))
    *_, last = federate(open_setup(config).fed)
    return last


def adapter(out: Path) -> State:
    return safetensors.torch.load_file(out / "adapter.safetensors")


def free_ports(count: int) -> list[int]:
    """Ports below those that systems hand out: nobody gets one of them by chance."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
    return found


def write_addresses(file: Path, processes: int) -> Path:
    lines = ["eid,rank,grpc_server_ip,grpc_server_port"]
    for rank, port in enumerate(free_ports(processes)):
        lines.append(f"{rank},{rank},127.0.0.1,{port}")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def environment(folder: Path) -> dict[str, str]:
    """FedML writes to ``~/.fedml``: a home of the test's own; its scripts are ours."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    return {
        **os.environ,
        "HOME": str(home),
        "PYTHONPATH": str(TESTS),
        "OMP_NUM_THREADS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }


@contextmanager
def processes(
    folder: Path, commands: Sequence[Sequence[str]]
) -> Iterator[list[Process]]:
    """Run ``commands``, each in a group of its own, logs in ``<place>.log``."""
    env, started = environment(folder), []
    try:
        for place, command in enumerate(commands):
            started.append(launch(command, folder, env, folder / f"{place}.log"))
        yield started
    finally:
        for process in started:
            if process.poll() is None:
                kill(process)


def finish(folder: Path, commands: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """Exit code and log of each command; those still running at the end are killed."""
    until = time.monotonic() + SECONDS
    with processes(folder, commands) as started:
        for process in started:
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                break
        codes = [process.poll() for process in started]
    logs = [(folder / f"{i}.log").read_text() for i in range(len(commands))]
    return [(-999 if c is None else c, log) for c, log in zip(codes, logs)]


def silo_commands(cf: Path, processes: int) -> list[list[str]]:
    common = [*FEDCLIP, "fedml", "--cf", str(cf), "--offline"]
    return [
        [*common, "--rank", str(r), "--role", "client" if r else "server"]
        for r in range(processes)
    ]


def silo(features: Path, tmp_path: Path, clients: int, **more: Any) -> dict[str, Any]:
    path = write_addresses(tmp_path / "grpc_ipconfig.csv", clients + 1)
    values = options(
        features, training_type="cross_silo", backend="GRPC", fedclip_out="out",
        grpc_ipconfig_path=str(path),
    )  # fmt: skip
    return values | {
        "client_num_in_total": clients, "client_num_per_round": clients, **more,
    }  # fmt: skip


def mpirun() -> str | None:
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.is_file() else shutil.which("mpirun")


def close(a: State, b: State) -> bool:
    return distance(a, b) <= 1e-6


def replay(args: Any, voters: list[list[str]], out: Path | None = None) -> HostRun:
    """The rounds of a run in which only ``voters`` have a say; ``out`` as of a run."""
    setup = bind(args).setup
    run, fed = HostRun(setup, out), setup.fed
    for number, names in enumerate(voters, 1):
        updates = [
            fed.algorithm.local_train(run.state, setup.client(n), fed.task, number)
            for n in names
        ]
        opened = run.open_round()
        run.aggregate(opened, updates, names)
        run.close_round(opened)
    return run
