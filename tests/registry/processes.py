"""What every host must do in real processes, beyond what ``contract.py`` asks in one.

A federation of processes takes many seconds to start.  So there are four of them for
each host, and one that is refused; each answers several tests.
"""

from __future__ import annotations

import json
import shutil
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fedclip_plugin.federation.unseen import Columns
from fedclip_plugin.storage.tensors import read_tensors
from fedclip_plugin.wire.update import State
from tests.registry.contract import (
    LIAR,
    Faults,
    Host,
    check_directory,
    check_quarantine,
    distance,
    lines_of,
    with_absences,
)

# What clients keep lies in their processes; three rounds need that of two before.
CODED: dict[str, Any] = {
    "compress": "topk",
    "compress_down": "int8",
    "optimizer_state": "keep",
}
# The same run is of a protocol: half of the classes, of which a client has few images.
CODED |= {"classes": "base", "shots": 12}


@dataclass(frozen=True)
class Finished:
    """A federation that has ended: of the server's process, and its directory then."""

    code: int
    log: str
    out: Path


class ProcessWorld(Host):
    """A host whose server and clients are processes; two clients, one is the liar.

    Everything lies in ``folder``.  Every client takes part in every round.
    """

    rounds: ClassVar[int] = 2  # of a run that is then made longer by two
    lacks: ClassVar[int] = 0  # bytes of metrics that the host does not pass on

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = 0

    @property
    def out(self) -> Path:
        """Where the run that is made longer writes."""
        return self.folder / "out"

    @abstractmethod
    def columns(self, state: State, **options: Any) -> dict[str, Columns]:
        """What the embedded engine makes of ``state`` in base to novel."""

    @abstractmethod
    def play(self, faults: Faults | None = None, **options: Any) -> Finished:
        """A federation, from the start of its processes until all have ended."""

    def refusal(self, **options: Any) -> str:
        """What the server says, in the one line that tells of an error."""
        finished = self.play(**options)
        assert finished.code != 0
        return self.error(finished.log)

    def error(self, log: str) -> str:
        """The error of ours in a log: one line, which several processes may say."""
        _, *said = log.split("fedclip: error: ")
        lines = {text.partition("\n")[0] for text in said}
        assert len(lines) == 1, log
        return lines.pop()

    def own_folder(self) -> Path:
        """A new folder for the logs and settings of a federation."""
        self.number += 1
        folder = self.folder / str(self.number)
        folder.mkdir()
        return folder

    def finished(self, code: int, log: str, folder: Path, out: Path) -> Finished:
        """With a copy of ``out``, which the next federation may go on with."""
        if out.is_dir():
            shutil.copytree(out, folder / "left", symlinks=True)
        return Finished(code, log, folder / "left")


def sent(world: ProcessWorld, line: Mapping[str, Any], expected: Any) -> None:
    """A round's messages carry the adapters and little more."""
    for way in ("bytes_up", "bytes_down"):
        more = line[way] - getattr(expected, way)
        count = len(expected.participants)
        assert -world.lacks * count <= more <= world.slack * count


class ProcessContract:
    """The tests; a host's class gives its world by a fixture of this name."""

    @pytest.fixture(scope="class")
    def world(self) -> ProcessWorld:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    def whole(self, world: ProcessWorld) -> Finished:
        """A run; ``resume`` where there is nothing yet begins one."""
        return world.play(rounds=world.rounds, out=str(world.out), resume=True)

    @pytest.fixture(scope="class")
    def full(self, world: ProcessWorld, whole: Finished) -> Finished:
        """It goes on, on a disk that has no space for the next round."""
        assert whole.code == 0, whole.log
        metrics, aside = world.out / "metrics.jsonl", world.out / "aside"
        metrics.rename(aside)
        metrics.symlink_to("/dev/full")
        more = {"rounds": world.rounds + 2, "out": str(world.out), "resume": True}
        finished = world.play(**more)
        aside.replace(metrics)
        return finished

    @pytest.fixture(scope="class")
    def longer(self, world: ProcessWorld, full: Finished) -> Finished:
        """With space it goes on for two rounds; in the first of them a client lies."""
        faults = {(LIAR, world.rounds + 1): "nan"}
        more = {"rounds": world.rounds + 2, "out": str(world.out), "resume": True}
        return world.play(faults, **more)

    @pytest.fixture(scope="class")
    def coded(self, world: ProcessWorld) -> Finished:
        """A run whose messages are compressed, both ways, and whose clients keep."""
        return world.play(rounds=3, out=str(world.folder / "coded"), **CODED)

    def test_the_run_is_that_of_the_embedded_engine(
        self, world: ProcessWorld, whole: Finished
    ) -> None:
        assert whole.code == 0, whole.log
        last = world.embedded(rounds=world.rounds)
        lines = check_directory(whole.out, last)
        sent(world, lines[-1], last.result)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_full_disk_ends_it_in_one_line(
        self, world: ProcessWorld, full: Finished
    ) -> None:
        assert full.code != 0
        said = world.error(full.log)
        assert said.startswith(f"cannot write {world.out / 'metrics.jsonl'}")
        assert "free some space" in said

    def test_made_longer_it_goes_on_without_a_bad_update(
        self, world: ProcessWorld, longer: Finished
    ) -> None:
        assert longer.code == 0, longer.log
        place = world.rounds + 1
        fed = world.federation(rounds=world.rounds + 2)
        check_directory(longer.out, with_absences(fed, {(LIAR, place)}))
        reason = check_quarantine(longer.out, place, "nan")
        assert f"client {LIAR} left out: {reason}" in longer.log

    def test_the_rounds_before_are_left_as_they_were(
        self, world: ProcessWorld, whole: Finished, longer: Finished
    ) -> None:
        before, after = (lines_of(f.out / "metrics.jsonl") for f in (whole, longer))
        assert after[: world.rounds] == before

    def test_compressed_messages_and_kept_states_give_the_same(
        self, world: ProcessWorld, coded: Finished
    ) -> None:
        assert coded.code == 0, coded.log
        last = world.embedded(rounds=3, **CODED)
        adapter, _ = read_tensors(coded.out / "adapter.safetensors")
        assert distance(adapter, last.best) <= 1e-6
        lines = lines_of(coded.out / "metrics.jsonl")
        assert [line["quarantined"] for line in lines] == [0, 0, 0]
        splits = {
            name: {key: scores[key] for key in ("val", "test")}
            for name, scores in lines[-1]["clients"].items()
        }  # clients that measure themselves tell of novel classes, too
        assert splits == last.result.clients  # type: ignore[union-attr]
        sent(world, lines[-1], last.result)

    def test_a_protocol_has_its_columns(
        self, world: ProcessWorld, coded: Finished
    ) -> None:
        """Base to novel: trained on few images of the one half, scored on both."""
        assert coded.code == 0, coded.log
        summary = json.loads((coded.out / "summary.json").read_text())
        best, _ = read_tensors(coded.out / "adapter.safetensors")
        want = world.columns(best, rounds=3, **CODED)
        for which in ("zero_shot", "result"):
            assert summary["base_to_novel"][which] == pytest.approx(want[which])
            assert want[which]["novel"]

    def test_a_bad_option_is_one_line(self, world: ProcessWorld) -> None:
        said = world.refusal(lr="fast")
        assert "fast" in said
        assert "expected a number" in said
