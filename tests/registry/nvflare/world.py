"""A job's server and its sites in this process, over the bytes that NVFlare carries."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fedclip_plugin.errors import FedClipError
from fedclip_plugin.federation.build import Federation
from fedclip_plugin.registry.common import messages
from fedclip_plugin.registry.nvflare.options import server_settings
from fedclip_plugin.registry.nvflare.server import Server
from fedclip_plugin.registry.nvflare.site import Site
from fedclip_plugin.runs.host_run import Setup, one_run, open_setup
from fedclip_plugin.wire.message import decode_update, encode_update
from tests.federation.toy import DOMAINS
from tests.registry.contract import Ended, Faults, World, spoilt

Fault = Callable[[str, str, int, bytes], bytes | None]
"""(site, task, which time it is asked, its answer) -> what comes of it; None: late."""


class Local:
    """Sites in this process; ``fault`` is what happens to their answers."""

    def __init__(self, sites: Mapping[str, Site], fault: Fault | None = None) -> None:
        self.sites, self.fault = sites, fault
        self.kept = dict.fromkeys(sites, b"")
        self.times: dict[tuple[str, str], int] = {}
        self.asked: list[tuple[str, list[str]]] = []
        self.posted: dict[str, bytes] = {}
        self.slept = 0

    def names(self) -> list[str]:
        return list(reversed(self.sites))

    def ask(
        self,
        task: str,
        data: bytes,
        sites: Sequence[str],
        seconds: float,
        take: Callable[[str, bytes], None],
    ) -> None:
        self.asked.append((task, list(sites)))
        for site in reversed(sites):
            answer = self._answer(site, task, data)
            if answer is not None:
                take(site, answer)

    def post(self, task: str, data: bytes, site: str) -> None:
        answer = self._answer(site, task, data)
        if answer is not None:
            self.posted[site] = answer

    def come(self) -> dict[str, bytes]:
        found, self.posted = self.posted, {}
        return found

    def pause(self, seconds: float) -> None:
        self.slept += 1

    def anew(self) -> list[str]:
        return []

    def refuse(self, site: str, reason: str) -> None:
        """Sites are not told."""

    def _answer(self, site: str, task: str, data: bytes) -> bytes | None:
        answer, self.kept[site] = self.sites[site].answer(task, data, self.kept[site])
        time = self.times[site, task] = self.times.get((site, task), 0) + 1
        return self.fault(site, task, time, answer) if self.fault else answer


def log(level: int, line: str) -> None:
    logging.getLogger("fedclip").log(level, line)


def spoiling(faults: Faults) -> Fault:
    """Updates that arrive spoilt, by (client, round)."""

    def fault(site: str, task: str, time: int, answer: bytes) -> bytes | None:
        client = DOMAINS[int(site[-1]) - 1]
        kind = faults.get((client, time))
        if task != messages.TRAIN or kind is None:
            return answer
        if kind == "nothing":
            return messages.failure("out of memory")
        update = decode_update(answer)
        return encode_update(replace(update, state=spoilt(kind, update.state)))

    return fault


class Bytes(World):
    """Real messages, to sites in this process."""

    part: ClassVar[Mapping[str, Any]] = {"participation": 0.67}
    slack: ClassVar[int] = 12_000  # the configuration, metrics, the second way down
    keeps: ClassVar[bool] = False  # it is with the sites' processes of one job

    def __init__(self, toy: Path) -> None:
        self.toy = self.features = toy

    def options(self, **chosen: Any) -> dict[str, Any]:
        """The same options as those of a job."""
        given = {"features": str(self.toy), "rounds": 2, "start-timeout": 5, **chosen}
        return {key.replace("_", "-"): value for key, value in given.items()}

    def run(self, faults: Faults | None = None, **chosen: Any) -> Ended:
        options, numbers = self.options(**chosen), range(1, len(DOMAINS) + 1)
        sites = {
            f"site-{n}": Site(f"site-{n}", {"features": self.toy}, {}) for n in numbers
        }
        fault = spoiling(faults) if faults else None
        server = Server(options, self.toy.parent / "job", Local(sites, fault), log)
        server.play()
        assert server.run is not None
        return Ended(server.run.state, server.run)

    def setup(self, **chosen: Any) -> Setup:
        config, *_ = server_settings(self.options(**chosen), self.toy)
        return open_setup(one_run(config))

    def federation(self, **chosen: Any) -> Federation:
        return self.setup(**chosen).fed

    def refusal(self, **chosen: Any) -> str:
        with pytest.raises(FedClipError) as caught:
            self.run(**chosen)
        return str(caught.value)
