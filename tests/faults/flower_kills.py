"""Flower deployments whose SuperLink, ServerApp or SuperNodes are killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.features.encode import EncodeStats
from fedclip_plugin.features.feature_set import save_features
from fedclip_plugin.registry import flower_host
from fedclip_plugin.runs.directory import prepare_out
from fedclip_plugin.runs.experiment import run_experiment
from fedclip_plugin.settings.sources import load_config
from fedclip_plugin.storage.tensors import read_tensors
from tests.faults.brake import RELEASED, Brake
from tests.faults.kills import (
    Toll,
    break_serving,
    check_files,
    rounds_in,
    sha256,
    timeless,
    write_to,
)
from tests.federation.toy import own_directories, toy_features
from tests.registry.flower.deployment import load_example, two_domains, write_app
from tests.registry.flower.grid import (
    equal,
    grid_of,
    options,
    with_absences,
)
from tests.waiting import SECONDS, wait_until

ADAPTER = "adapter.safetensors"
SERVER = """from pathlib import Path
from tests.faults.brake import brake
brake(Path({file!r}))
from fedclip_plugin.registry.flower_host import server_app
app = server_app
"""


# -------------------------------------------------- Flower's messages in one process


def serve(toy: Path, out: Path, rounds: int, log: Path) -> None:
    """A ServerApp's run; its nodes are in the same process."""
    write_to(log)
    config = options(toy, num_server_rounds=rounds, out=str(out), resume=True)
    nothing = {"node_id": 0, "node_config": {}, "state": RecordDict()}
    context = Context(run_id=1, run_config=config, **nothing)
    flower_host.server_app(grid_of(config), context)


break_strategy = partial(break_serving, serve, "Flower strategy")


# ------------------------------------------------------------------ real deployments


class Fleet:
    """A deployment with two nodes, made anew when its SuperLink is gone."""

    def __init__(self, folder: Path, rounds: int) -> None:
        self.folder, self.out, self.rounds = folder, folder / "out", rounds
        self.features = two_domains(toy_features(rows=100))
        self.nodes = [
            f'partition-id={i} features="{path}"'
            for i, path in enumerate(own_directories(folder / "own", self.features))
        ]
        self.example = load_example()
        self.number = 0
        self.brake = Brake(folder / "brake", RELEASED)
        waits = {"min_available_nodes": 2, "start_timeout": 600, "round_timeout": 200}
        config = options(
            None, dataset="toy", num_server_rounds=rounds, out=str(self.out),
            resume=True, **waits,
        )  # fmt: skip
        text = SERVER.format(file=str(self.brake.file))
        self.app = write_app(folder / "app", config, server=text)

    @contextmanager
    def deploy(self) -> Iterator[Any]:
        """A SuperLink and its SuperNodes, in a directory of their own."""
        self.number += 1
        self.work = self.folder / f"deployment-{self.number}"
        self.work.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
            with self.example.Deployment(self.work, self.nodes) as deployment:
                yield deployment

    def submit(self, deployment: Any) -> subprocess.Popen[str]:
        """``flwr run`` with ``resume=true``."""
        run: subprocess.Popen[str] = deployment.run(self.app)
        return run

    def done(self) -> int:
        return rounds_in(self.out / "metrics.jsonl")

    def processes(self, name: str = "") -> list[int]:
        """What runs for this deployment: its directory is in every command line."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal() or int(entry.name) == os.getpid():
                continue
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            if str(self.work) in line and name in line:
                found.append(int(entry.name))
        return found

    def reach(self, run: subprocess.Popen[str], goal: int) -> None:
        """Wait until so many rounds are written down."""
        wait_until(lambda: self.done() >= goal or run.poll() is not None, 0.05)
        if run.poll() is not None:
            raise AssertionError(run.communicate()[0])

    def finish(self, run: subprocess.Popen[str]) -> str:
        """The log of the run, at its end."""
        log, _ = run.communicate(timeout=SECONDS)
        assert (self.out / "summary.json").is_file(), log
        assert self.done() == self.rounds
        return log


def break_deployment(folder: Path, toll: Toll, victims: list[str]) -> None:
    """Kill ``SuperLink`` or ``ServerApp`` and submit again with ``resume=true``."""
    fleet = Fleet(folder, rounds=2 * len(victims) + 1)
    left = list(victims)
    while not (fleet.out / "summary.json").is_file():
        with fleet.deploy() as deployment:
            run = fleet.submit(deployment)
            while left:
                victim, goal = left.pop(0), fleet.done() + 1
                fleet.brake.let(goal + 1)
                fleet.reach(run, goal)
                time.sleep(toll.rng.random() * 2)
                _strike(fleet, deployment, victim)
                toll.count(victim)
                check_files(fleet.out)
                run.communicate(timeout=SECONDS)
                if victim == "SuperLink":
                    break
                run = fleet.submit(deployment)
            else:
                fleet.brake.let(RELEASED)
                fleet.finish(run)
        # the SuperExec of a SuperLink that was killed looks for it every few seconds
        wait_until(lambda: not fleet.processes(), 0.2)
    _compare(fleet, toll)


def _strike(fleet: Fleet, deployment: Any, victim: str) -> None:
    if victim == "SuperLink":
        link = deployment._all[0]
        os.killpg(link.pid, signal.SIGKILL)
        link.wait()
        return
    (app,) = fleet.processes("flwr-serverapp")
    os.kill(app, signal.SIGKILL)


def _compare(fleet: Fleet, toll: Toll) -> None:
    """With the embedded engine, whose run nobody disturbed."""
    config, whole = config_of(fleet.out), fleet.folder / "whole"
    _, metadata = read_tensors(fleet.out / ADAPTER)
    # clients with directories of their own have keys of their own
    features = replace(fleet.features, key=metadata["features"])
    save_features(features, fleet.folder / "features")
    data = replace(config.data, features=str(fleet.folder / "features"))
    out = prepare_out(whole, "", resume=False)
    run_experiment(replace(config, data=data), features, EncodeStats(0, 0, 0.0), out)
    assert sha256(fleet.out / ADAPTER) == sha256(whole / ADAPTER)
    found, want = timeless(fleet.out), timeless(whole)
    assert [line["round"] for line in found] == [line["round"] for line in want]
    assert [line["clients"] for line in found] == [line["clients"] for line in want]
    toll.compared += 1


def config_of(out: Path) -> RunConfig:
    return load_config(out / "config.toml")


def break_nodes(folder: Path, toll: Toll, kills: int) -> None:
    """Kill a SuperNode in a round and start it again.

    The run ends with those who answered: the log says who did not, and the adapter is
    that of the embedded engine without them.
    """
    fleet = Fleet(folder, rounds=kills + 2)
    with fleet.deploy() as deployment:
        run = fleet.submit(deployment)
        for number in range(kills):
            fleet.reach(run, fleet.done() + 1)
            time.sleep(toll.rng.random() * 2)
            place = toll.rng.randrange(2)
            node = deployment.nodes[place]
            os.killpg(node.pid, signal.SIGKILL)
            node.wait()
            toll.count("SuperNode")
            again = deployment._start(f"again-{number}", *node.args)
            deployment.nodes[place] = again
        log = fleet.finish(run)
    wait_until(lambda: not fleet.processes(), 0.2)
    absences = {
        (name, int(number))
        for name, number in re.findall(r"client (\w+) left out of round (\d+)", log)
    }
    config, (state, metadata) = config_of(fleet.out), read_tensors(fleet.out / ADAPTER)
    train = replace(config.train, rounds=int(metadata["round"]))
    config = replace(config, train=train)
    assert equal(state, with_absences(config, fleet.features, absences))
    toll.compared += 1
