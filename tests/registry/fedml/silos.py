"""Cross-silo where each client has data that only it has: its processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedclip_plugin.federation.engine import RunState
from tests.federation.toy import own_directories, write_toy
from tests.registry.fedml.forked import Process, kill, launch
from tests.registry.fedml.runs import (
    embedded,
    environment,
    options,
    silo_commands,
    write_addresses,
    write_yaml,
)
from tests.waiting import SECONDS, wait_until

SHARED = {
    "training_type": "cross_silo",
    "backend": "GRPC",
    "grpc_ipconfig_path": "grpc_ipconfig.csv",
    "fedclip_out": "out",
    "scenario": "horizontal",
}


class Silos:
    """A server and three clients, each a process with a folder of its own."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.folder = folder
        own = own_directories(folder / "sites")
        self.values = options(Path(), **SHARED, **more)
        del self.values["fedclip_features"]
        addresses = write_addresses(folder / "grpc_ipconfig.csv", 4)
        self.data: list[Path | None] = [None]
        self.keys: list[dict[str, Any]] = [{}]
        for rank, path in enumerate(own, 1):  # nobody else sees it there
            place = folder / f"client-{rank}"
            place.mkdir()
            shutil.move(path, place / "data")
            self.data.append(place / "data")
            self.keys.append({})
        self.places = [folder / "server", *(folder / f"client-{n}" for n in (1, 2, 3))]
        self.places[0].mkdir()
        for place in self.places:
            shutil.copy(addresses, place / "grpc_ipconfig.csv")
        self.started: list[Process] = []

    @property
    def out(self) -> Path:
        return self.places[0] / "out"

    def start(self, rank: int, *words: str, log: str = "log.txt") -> Process:
        """Start the process ``rank``; a client's data are in its variables."""
        place, keys = self.place(rank), self.keys[min(rank, len(self.keys) - 1)]
        cf = write_yaml(place / "fedml_config.yaml", {**self.values, **keys})
        command = [*self.command(rank, cf), *words]
        process = launch(command, place, self.variables(rank), place / log)
        self.started.append(process)
        return process

    def command(self, rank: int, cf: Path) -> list[str]:
        """``fedclip fedml`` of a rank."""
        return silo_commands(cf, rank + 1)[rank]

    def variables(self, rank: int) -> dict[str, str]:
        """The environment of a process."""
        env = environment(self.place(rank))
        env.pop("FEDCLIP_FEATURES", None)
        data = self.data[rank] if rank < len(self.data) else self.data[-1]
        if data is not None:
            env["FEDCLIP_FEATURES"] = str(data)
        return env

    def place(self, rank: int) -> Path:
        """The working directory of a process; one without a line is in the last."""
        return self.places[min(rank, len(self.places) - 1)]

    def log(self, rank: int, name: str = "log.txt") -> str:
        path = self.places[rank] / name
        return path.read_text() if path.is_file() else ""

    def rounds(self, count: int, clients: int = 1) -> None:
        """Wait until so many rounds are written in which so many took part."""
        file = self.out / "metrics.jsonl"

        def written() -> bool:
            lines = file.read_text().splitlines() if file.is_file() else []
            parts = [len(json.loads(line)["participants"]) for line in lines]
            return sum(part >= clients for part in parts) >= count

        wait_until(written, 0.05, lambda: self.log(0))

    def stop(self) -> None:
        for process in self.started:
            if process.poll() is None:
                kill(process)

    def pooled(self) -> RunState:
        """The embedded engine over the data of all."""
        toy = write_toy(self.folder / "toy")
        return embedded({**options(toy), **self.values, "fedclip_features": str(toy)})


def codes(processes: Sequence[Process]) -> list[int]:
    return [process.wait(SECONDS) for process in processes]
