"""A FedML cross-silo run over gRPC whose processes are killed and started again."""

from __future__ import annotations

import os
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedclip_plugin.registry import fedml_host
from tests.faults.brake import RELEASED, Brake
from tests.faults.kills import (
    Toll,
    check_files,
    rounds_in,
    sha256,
    timeless,
)
from tests.federation.toy import DOMAINS
from tests.registry.fedml.forked import Process, kill, launch
from tests.registry.fedml.runs import (
    FEDCLIP,
    environment,
    finish,
    mpirun,
    namespace,
    options,
    processes,
    replay,
    silo_commands,
    write_addresses,
    write_yaml,
)
from tests.waiting import SECONDS, wait_until

CLIENTS = 2  # processes; FedML draws which of three clients they are in a round
APART = 4  # rounds between two kills, at most


class Silo:
    """The server (rank 0, always with ``--resume``) and its clients, by rank."""

    def __init__(self, folder: Path, features: Path, rounds: int) -> None:
        self.folder, self.out = folder, folder / "out"
        addresses = write_addresses(folder / "grpc_ipconfig.csv", CLIENTS + 1)
        self.values = options(
            features, training_type="cross_silo", backend="GRPC", comm_round=rounds,
            client_num_per_round=CLIENTS, fedclip_out=str(self.out),
            grpc_ipconfig_path=str(addresses),
        )  # fmt: skip
        cf = write_yaml(folder / "fedml_config.yaml", self.values)
        self.commands = silo_commands(cf, CLIENTS + 1)
        self.commands[0].append("--resume")
        self.stop = Brake(folder / "brake")
        self.commands[0] = self.stop.command(self.commands[0])
        self.environment = environment(folder)
        self.running: dict[int, Process] = {}

    def __enter__(self) -> Silo:
        for rank in range(CLIENTS + 1):
            self.start(rank)
        return self

    def __exit__(self, *_: object) -> None:
        for rank in list(self.running):
            if self.running[rank].poll() is None:
                self.kill(rank)

    def start(self, rank: int) -> None:
        """Start a process; its log goes on in ``<rank>.log``."""
        self.running[rank] = launch(
            self.commands[rank], self.folder, self.environment,
            self.folder / f"{rank}.log",
        )  # fmt: skip

    def kill(self, rank: int) -> None:
        """kill -9, whatever it started included."""
        kill(self.running.pop(rank))

    def log(self, rank: int) -> str:
        return (self.folder / f"{rank}.log").read_text(errors="replace")

    def rounds(self) -> int:
        return rounds_in(self.out / "metrics.jsonl")

    def finish(self) -> list[int | None]:
        """Exit codes by rank, once all have ended."""
        wait_until(
            lambda: all(p.poll() is not None for p in self.running.values()), 0.1
        )
        return [self.running[rank].returncode for rank in sorted(self.running)]


def undisturbed(values: dict[str, Any], out: Path) -> Path:
    """What the package leaves in ``out`` for the same configuration and draws."""
    args = namespace(Path(values["fedclip_features"]), **values)
    chosen = values["client_num_per_round"]
    silo = values["training_type"] == "cross_silo"  # draws at the end of a round
    voters = []
    for number in range(values["comm_round"]):
        draw = np.random.RandomState(max(0, number - silo))
        order = draw.choice(range(3), chosen, replace=False) if chosen < 3 else range(3)
        voters.append([DOMAINS[place] for place in order])
    replay(args, voters, out).finish()
    return out


def break_silo(folder: Path, features: Path, toll: Toll, victims: list[int]) -> None:
    """Kill the ranks in ``victims``, one after the other; the end is as if nothing was.

    The surviving processes are left as they are: they wait for the one that is missing.
    """
    rounds = (len(victims) + 1) * (APART + 2)
    with Silo(folder, features, rounds) as silo:
        for rank in victims:
            goal = silo.rounds() + toll.rng.randint(1, APART)
            silo.stop.let(goal + 1)
            wait_until(lambda g=goal: silo.rounds() >= g or _ended(silo))
            time.sleep(toll.rng.random() * 0.1)
            assert not _ended(silo), silo.log(0)
            silo.kill(rank)
            toll.count("FedML client" if rank else "FedML server")
            check_files(silo.out)
            silo.start(rank)
        silo.stop.let(RELEASED)
        assert silo.finish() == [0] * (CLIENTS + 1), silo.log(0)
    check_silo(silo, folder, toll)


def _ended(silo: Silo) -> bool:
    return any(process.poll() is not None for process in silo.running.values())


def check_silo(silo: Silo, folder: Path, toll: Toll) -> None:
    whole = undisturbed(silo.values, folder / "whole")
    name = "adapter.safetensors"
    assert sha256(silo.out / name) == sha256(whole / name)
    found, want = timeless(silo.out), timeless(whole)
    assert [line["round"] for line in found] == [line["round"] for line in want]
    for key in ("clients", "target", "participants", "quarantined"):
        assert [line[key] for line in found] == [line[key] for line in want]
    assert not list(silo.out.rglob("*.tmp"))
    toll.compared += 1


def end_simulation(folder: Path, features: Path, toll: Toll) -> None:
    """SIGTERM in one process: it says how to go on, and then has nothing left to do."""
    out = folder / "out"
    values = options(features, comm_round=200, fedclip_out=str(out))
    cf = write_yaml(folder / "fedml_config.yaml", values)
    command = [*FEDCLIP, "fedml", "--cf", str(cf), "--offline", "--resume"]
    stop = Brake(folder / "brake", 100)
    with processes(folder, [stop.command(command)]) as (process,):
        wait_until(lambda: rounds_in(out / "metrics.jsonl") > 3)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(SECONDS) == 143
    last = (folder / "0.log").read_text().splitlines()[-1]
    assert last.endswith(f"resume with: {shlex.join(['fedclip', *command[3:]])}")
    done = rounds_in(out / "metrics.jsonl")
    assert 3 < done < 200
    whole = undisturbed(values, folder / "whole")
    for line in ("going on after round", "going on after round 200 of 200"):
        ((code, log),) = finish(folder, [command])
        assert code == 0, log
        assert line in log
        assert rounds_in(out / "metrics.jsonl") == 200
        name = "adapter.safetensors"
        assert sha256(out / name) == sha256(whole / name)
    toll.compared += 1


def hand_over_to_mpi(folder: Path, features: Path, toll: Toll) -> None:
    """Two rounds in one process, two more under MPI, and then nothing is left."""
    if mpirun() is None:
        pytest.skip("needs Open MPI")
    out = folder / "out"
    values = options(features, client_num_per_round=1, fedclip_out=str(out))
    short = write_yaml(folder / "sp.yaml", values | {"comm_round": 2})
    fedml_host.run(short, offline=True)
    values |= {"backend": "MPI", "comm_round": 4}
    cf = write_yaml(folder / "mpi.yaml", values)
    command = [*FEDCLIP, "fedml", "--cf", str(cf), "--offline", "--resume"]
    whole = undisturbed(values, folder / "whole")
    for _ in range(2):
        ((code, log),) = finish(folder, [[str(mpirun()), "-np", "2", *command]])
        assert code == 0, log
        assert rounds_in(out / "metrics.jsonl") == 4
        name = "adapter.safetensors"
        assert sha256(out / name) == sha256(whole / name)
    toll.compared += 1
