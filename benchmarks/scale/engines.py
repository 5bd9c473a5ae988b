"""The engines that `scale-hosts` compares: how each is started on the same clients."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scale.fedml_round import arguments

CORES = os.cpu_count() or 1
INSIDE = ("-m", "benchmarks.scale.engines")  # what runs in a process of its own
OWN_PATH = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
GIB_A_NODE = 0.55  # two idle processes, 0.2 GiB, and a ClientApp at work; some spare


@dataclass(frozen=True)
class Job:
    """So many clients for so many rounds; all files lie in ``work``."""

    work: Path
    clients: int
    rounds: int

    @property
    def features(self) -> Path:
        """The feature directory."""
        return self.work / "random"

    @property
    def out(self) -> Path:
        """Where the run leaves its files."""
        return self.work / "out"

    def options(self) -> dict[str, Any]:
        """Options of ``fedclip run`` that are the same for all engines."""
        return {
            "features": str(self.features), "partition": "iid", "target": "none",
            "clients": self.clients, "rounds": self.rounds, "out": str(self.out),
        }  # fmt: skip


Engine = Callable[[Job], "AbstractContextManager[subprocess.Popen[Any]]"]


@contextlib.contextmanager
def started(
    job: Job, *words: object, **environ: str
) -> Iterator[subprocess.Popen[Any]]:
    """A process group of its own, its log in ``work/log``; ended at the end."""
    command = [sys.executable, *map(str, words)]
    with (job.work / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=job.work,
            env={**os.environ, **environ},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            for pid in reversed(family(process.pid)):  # ray's are groups of their own
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            children.setdefault(int(status[1]), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def embedded(job: Job) -> AbstractContextManager[subprocess.Popen[Any]]:
    """``fedclip run``."""
    words = [w for k, v in job.options().items() for w in (f"--{k}", v)]
    return started(job, "-m", "fedclip_plugin.cli", "run", *words, "--quiet")


def fedml(job: Job) -> AbstractContextManager[subprocess.Popen[Any]]:
    """FedML's simulation in one process."""
    return started(job, *INSIDE, "fedml", *job_words(job), **OWN_PATH)


def simulation(job: Job) -> AbstractContextManager[subprocess.Popen[Any]]:
    """Flower's simulation engine: an actor of ray for each core."""
    # a thread an actor, as in a deployment: all share the cores
    own = {"FLWR_HOME": str(job.work / "flwr"), "OMP_NUM_THREADS": "1"}
    return started(job, *INSIDE, "simulation", *job_words(job), **own, **OWN_PATH)


def job_words(job: Job) -> tuple[object, ...]:
    return job.work, job.clients, job.rounds


@contextlib.contextmanager
def deployment(job: Job) -> Iterator[subprocess.Popen[Any]]:
    """The example's Deployment: certificates, SuperLink, SuperNodes, ``flwr run``."""
    from tests.registry.flower.deployment import load_example, write_app

    deploy = load_example()
    vars(deploy)["PATIENCE"] = 400.0  # a hundred SuperNodes come up on few cores
    app = write_app(job.work / "app", flower_options(job))
    nodes = [f"partition-id={i}" for i in range(job.clients)]
    with deploy.Deployment(job.work, nodes) as found:
        process = found.run(app)
        with (job.work / "log").open("w") as log:
            drain = threading.Thread(
                target=shutil.copyfileobj, args=(process.stdout, log)
            )
            drain.start()
            try:
                yield process
            finally:
                process.terminate()
                process.wait()
                drain.join()


def flower_options(job: Job) -> dict[str, Any]:
    """The run config."""
    own = job.options()
    rounds = own.pop("rounds")
    return {
        **own, "dataset": "random", "num-server-rounds": rounds,
        "min-available-nodes": job.clients, "start-timeout": 900, "round-timeout": 900,
    }  # fmt: skip


def inside_fedml(job: Job) -> None:
    """FedCLIPAPI as ``fedclip fedml`` starts it."""
    import logging

    import torch
    from fedml import mlops

    from fedclip_plugin.registry import fedml_host

    args = arguments(job.clients, job.features, fedclip_out=str(job.out))
    args.comm_round, args.frequency_of_the_test = job.rounds, 1
    fedml_host.register()
    mlops.pre_setup(args)
    logging.disable(logging.INFO)
    dataset, _ = fedml_host.load(args)
    model = fedml_host.create_model(args)
    fedml_host.FedCLIPAPI(args, torch.device("cpu"), dataset, model).train()


def inside_simulation(job: Job) -> None:
    """Server and client apps as ``flwr run`` starts them, on ray."""
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    from fedclip_plugin.registry import flower_host

    os.environ["FEDCLIP_FEATURES"] = str(job.features)
    server = ServerApp()
    strategy = flower_host.FedClip(flower_options(job))
    server.main()(lambda grid, context: strategy.start(grid))

    backend = {
        "client_resources": {"num_cpus": 1},
        "init_args": {"num_cpus": CORES, "include_dashboard": False},
    }
    run_simulation(server, flower_host.client_app, job.clients, backend_config=backend)


ENGINES: dict[str, tuple[Engine, str]] = {
    "embedded": (embedded, "fedclip-plugin"),
    "fedml": (fedml, "fedml"),
    "simulation": (simulation, "flwr"),
    "deployment": (deployment, "flwr"),
}
"""Name -> how it is started, and the distribution whose version counts."""


if __name__ == "__main__":  # what `started` runs
    name, folder, *numbers = sys.argv[1:]
    clients, rounds = map(int, numbers)
    inside = {"fedml": inside_fedml, "simulation": inside_simulation}
    inside[name](Job(Path(folder), clients, rounds))
