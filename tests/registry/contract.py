"""What every host must do: written once, over a :class:`World` that a host supplies.

A host's ``test_contract.py`` derives a class from :class:`Contract` whose ``world``
plays whole runs in the host: the oracle is the embedded engine on the same clients.
What takes processes of its own stands in ``processes.py``.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fedclip_plugin.federation.build import Federation
from fedclip_plugin.federation.engine import Run, RunState, federate
from fedclip_plugin.federation.unseen import base_to_novel
from fedclip_plugin.runs.host_run import HostRun, Setup
from fedclip_plugin.server import privacy
from fedclip_plugin.storage.tensors import read_tensors
from fedclip_plugin.wire.update import State
from tests.federation.toy import name_images, write_split

PRIVATE = {"dp_noise_multiplier": 2.0, "dp_clip": 0.1, "dp_seed": "run"}
LIAR = "cartoon"  # the client whose update is spoilt; every world has it
# What becomes of an update on its way, and what the log says of it.
FAULTS: dict[str, tuple[Callable[[State], object], str]] = {
    "nan": (lambda s: s["0.bias"].__setitem__(1, math.nan), "0.bias holds NaN"),
    "inf": (lambda s: s["2.weight"][0].__setitem__(0, math.inf), "2.weight holds NaN"),
    "far": (lambda s: [v.mul_(1e6) for v in s.values()], "times the round's median"),
    "shape": (lambda s: s.update({"0.bias": s["0.bias"][:-1]}), "0.bias is (15,)"),
    "keys": (lambda s: s.pop("2.bias"), "keys"),
    "nothing": (lambda s: s.clear(), ""),
}
PART = "a part of the clients"  # takes part in a round, where the host can say so
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"local_epochs": 3},
    {"compress": "fp16"},
    {"compress": "int8"},
    {"compress": "topk", "topk_share": 0.1},
    {"compress_down": "fp16"},
    {"compress": "int4", "compress_down": "int4", PART: True},
    {"optimizer_state": "keep", "local_epochs": 2},
    {"weighting": "gap", "local_epochs": 2},
    {"server_optimizer": "adam", "server_lr": 1e-3, "server_ema": 0.5},
    {"server_optimizer": "momentum", "server_ema": 0.9, "compress_down": "fp16"},
    {"compress": "topk", "optimizer_state": "keep", "local_epochs": 2, PART: True},
    {"select_by": "macro-f1"},
    {"alg": "gda"},
    {"alg": "linear", "linear_init": "text", "compress": "int8"},
    {"alg": "fedclip", "side": "text"},
)
SPLIT, CLIENTS = "a split file", "a split file that names the clients"
PROTOCOLS: tuple[dict[str, Any], ...] = (
    {"classes": "class3,class1"},
    {"classes": "base"},
    {"classes": "novel", "alg": "gda"},
    {"partition": "dirichlet", "clients": 3, "alpha": 0.3},
    {"partition": "classes", "clients": 3, "classes_per_client": 2},
    {"partition": "shards", "clients": 3, "shards_per_client": 3},
    {"partition": "quantity", "clients": 3},
    {"partition": "long-tail", "clients_per_domain": 1, "imbalance": 5},
    {"shots": 3},
    {SPLIT: True},
    {SPLIT: True, "partition": "iid", "clients_per_domain": 1},
    {CLIENTS: True},
)
KEPT: tuple[dict[str, Any], ...] = (
    {"optimizer_state": "keep"},
    {"compress": "topk"},
    {"compress": "topk", "compress_down": "int8", "optimizer_state": "keep"},
)
Absences = Collection[tuple[str, int]]  # (client, round from 1)


def spoilt(kind: str, state: State) -> State:
    """A copy of an update with the fault ``kind``."""
    copy = {key: value.clone() for key, value in state.items()}
    FAULTS[kind][0](copy)
    return copy


def distance(a: State, b: State) -> float:
    assert a.keys() == b.keys()
    return max(float((a[key].cpu() - b[key].cpu()).abs().max()) for key in a)


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def with_absences(fed: Federation, absences: Absences) -> RunState:
    """Where the embedded engine ends if these updates are lost."""
    run, names = Run(fed), [client.name for client in fed.clients]
    for number in range(1, fed.task.train.rounds + 1):
        opened = run.open_round()
        updates = [
            fed.algorithm.local_train(opened.state, client, fed.task, number)
            for client in fed.clients
            if (client.name, number) not in absences
        ]
        run.aggregate(opened, updates, names)
        run.close_round(opened)
    return run.now


def check_directory(
    out: Path, last: RunState, of_classes: bool = False
) -> list[dict[str, Any]]:
    """Whether ``out`` tells of a run that ended in ``last``; returns its rounds.

    With ``of_classes`` clients may have measured themselves on novel ones, too.
    """
    result = last.result
    assert result is not None
    assert distance(read_tensors(out / "adapter.safetensors")[0], last.best) <= 1e-6
    summary = json.loads((out / "summary.json").read_text())
    tests = {name: scores["test"] for name, scores in result.clients.items()}
    assert summary["rounds"] == result.round
    assert summary["best_round"] == last.progress.best_round
    assert set(summary["result"]["clients"]) == set(tests)
    assert set(summary["zero_shot"]["clients"]) == set(tests)
    lines = lines_of(out / "metrics.jsonl")
    assert [line["round"] for line in lines] == list(range(1, result.round + 1))
    for key in ("bytes_up", "bytes_down"):
        assert summary["communication"][key] == sum(line[key] for line in lines)
    for key in ("target", "participants"):
        assert lines[-1][key] == getattr(result, key)
    for name, scores in lines[-1]["clients"].items():
        splits = {k: v for k, v in scores.items() if k in ("val", "test")}
        assert (splits if of_classes else scores) == result.clients[name]
    assert lines[-1]["clients"].keys() == result.clients.keys()
    for name in ("config.toml", "report.html", "checkpoint/last.safetensors"):
        assert (out / name).is_file()
    return lines


def check_quarantine(out: Path, number: int, kind: str) -> str:
    """Whether the liar's update to one round is the one left out; the reason."""
    lines = lines_of(out / "metrics.jsonl")
    counts = {line["round"]: line["quarantined"] for line in lines}
    assert counts == {n: int(n == number) for n in counts}
    (line,) = lines_of(out / "quarantined.jsonl")
    assert (line["round"], line["client"]) == (number, LIAR)
    assert FAULTS[kind][1] in line["reason"]
    if kind == "far":
        assert line["norm"] > 100 * line["median_norm"]
    reason: str = line["reason"]
    return reason


@dataclass(frozen=True)
class Ended:
    """A run that came to its end: the host's own model, and the server's side."""

    state: State
    run: HostRun


Faults = Mapping[tuple[str, int], str]
"""(client, round from 1) -> what becomes of that update."""


class Host(ABC):
    """A host and clients; options are those of ``fedclip run``, ``_`` for ``-``."""

    slack: ClassVar[int] = 0  # bytes that the host's messages add to an update

    @abstractmethod
    def federation(self, **options: Any) -> Federation:
        """The embedded engine's federation of the same clients and options."""

    @abstractmethod
    def refusal(self, **options: Any) -> str:
        """What the user is told of a run that cannot begin."""

    def embedded(self, **options: Any) -> RunState:
        """What the embedded engine makes of the same options."""
        *_, last = federate(self.federation(**options))
        return last


class World(Host):
    """A host whose server and clients are in this process.

    Every client takes part in every round unless told by ``part``; none is held out.
    """

    part: ClassVar[Mapping[str, Any]] = {}  # options for a part of the clients a round
    faults: ClassVar[Collection[str]] = tuple(FAULTS)
    resumes: ClassVar[bool] = True
    keeps: ClassVar[bool] = True  # resumed, with what clients keep
    features: Path  # of three clients, by domains

    def setup(self, **options: Any) -> Setup:
        """The embedded engine's run of the same options."""
        raise NotImplementedError(f"{self} has its own protocols alone")

    @abstractmethod
    def run(self, faults: Faults | None = None, **options: Any) -> Ended:
        """A whole run; ``faults`` spoil updates."""

    def shown(self, last: RunState, **options: Any) -> State:
        """What the host's own model holds at the end of the same run."""
        return last.state


class Contract:
    """The tests; a host's class gives its world by a fixture of this name."""

    @pytest.fixture
    def world(self) -> World:
        raise NotImplementedError

    @pytest.mark.parametrize("change", VARIANTS, ids=str)
    def test_the_adapter_is_that_of_the_embedded_engine(
        self, world: World, change: dict[str, Any]
    ) -> None:
        more = {key: value for key, value in change.items() if key != PART}
        more |= {"rounds": 4, **(world.part if PART in change else {})}
        ended, last = world.run(**more), world.embedded(**more)
        found = ended.run.now
        assert distance(ended.state, world.shown(last, **more)) == 0
        assert distance(ended.run.state, last.state) == 0
        assert distance(found.best, last.best) == 0
        assert found.progress.quarantined == 0
        assert found.progress.best_round == last.progress.best_round
        assert found.result is not None
        assert last.result is not None
        assert found.result.participants == last.result.participants
        assert found.result.clients == last.result.clients
        for way in ("bytes_up", "bytes_down"):
            more = getattr(found.result, way) - getattr(last.result, way)
            assert 0 <= more <= world.slack * len(last.result.clients)

    @pytest.mark.parametrize("protocol", PROTOCOLS, ids=str)
    def test_a_protocol_is_that_of_the_embedded_engine(
        self, world: World, protocol: dict[str, Any], tmp_path: Path
    ) -> None:
        if type(world).setup is World.setup:
            pytest.skip("its own loop cuts and splits the data")
        more = {k: v for k, v in protocol.items() if k not in (SPLIT, CLIENTS)}
        if len(more) < len(protocol):
            named = name_images(world.features)
            names = ("north", "east", "south") if CLIENTS in protocol else ()
            more["split"] = write_split(tmp_path / "split.json", named, names)
        ended = world.run(rounds=1, out=str(tmp_path / "out"), **more)
        setup = world.setup(rounds=1, **more)
        *_, last = federate(setup.fed)
        assert distance(ended.run.state, last.state) == 0
        check_directory(tmp_path / "out", last, of_classes=True)
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        columns = summary.get("base_to_novel")
        if setup.features.unseen is None:
            assert columns is None
            return
        want = base_to_novel(setup.fed, setup.features, None, last.best)
        assert columns["zero_shot"] == pytest.approx(want["zero_shot"])
        assert columns["result"] == pytest.approx(want["result"])
        assert ("novel ones" in " ".join(summary["notes"])) == ("alg" in more)

    def test_the_directory_is_that_of_a_run(self, world: World, tmp_path: Path) -> None:
        out = tmp_path / "out"
        world.run(rounds=3, out=str(out))
        last = world.embedded(rounds=3)
        lines = check_directory(out, last)
        assert last.result is not None
        assert lines[-1]["loss"] == pytest.approx(last.result.loss)

    @pytest.mark.parametrize("kind", FAULTS)
    def test_a_bad_update_is_left_out_named_and_counted(
        self, world: World, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        if kind not in world.faults:
            pytest.skip("cannot happen in this host")
        out = tmp_path / "out"
        ended = world.run({(LIAR, 2): kind}, rounds=3, out=str(out))
        want = with_absences(world.federation(rounds=3), {(LIAR, 2)})
        assert distance(ended.state, want.state) <= 1e-6
        if kind == "nothing":
            assert any(f"client {LIAR}" in line for line in caplog.messages)
            return
        reason = check_quarantine(out, 2, kind)
        said = [m for m in caplog.messages if f"client {LIAR} left out" in m]
        assert len(said) == 1
        assert reason in said[0]
        assert "\n" not in said[0]

    @pytest.mark.parametrize("codec", ["int8", "topk"])
    def test_a_bad_payload_is_left_out(
        self, world: World, codec: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        ended = world.run({(LIAR, 1): "keys"}, rounds=2, compress=codec)
        assert ended.run.now.progress.quarantined == 1
        assert f"client {LIAR} left out: keys" in caplog.text

    def test_with_nothing_sound_the_model_stays(self, world: World) -> None:
        fed = world.federation(rounds=1)
        faults = {(client.name, 1): "nan" for client in fed.clients}
        ended = world.run(faults, rounds=1)
        assert distance(ended.state, fed.algorithm.init(fed.task)) == 0
        ended = world.run(faults, rounds=1, **PRIVATE)  # noise comes all the same
        assert distance(ended.state, fed.algorithm.init(fed.task)) > 0

    def test_privacy_is_that_of_the_embedded_engine_and_accounted(
        self, world: World, tmp_path: Path
    ) -> None:
        out, more = tmp_path / "out", {"rounds": 3, **PRIVATE, **world.part}
        ended, last = world.run(out=str(out), **more), world.embedded(**more)
        assert distance(ended.state, last.state) <= 1e-6
        fed, lines = world.federation(**more), lines_of(out / "metrics.jsonl")
        drawn = (len(fed.clients), len(lines[0]["participants"]))
        spent = [privacy.epsilon(fed.task.privacy, ((*drawn, n),)) for n in (1, 2, 3)]
        assert [line["epsilon"] for line in lines] == spent
        summary = json.loads((out / "summary.json").read_text())
        assert summary["privacy"]["epsilon"] == spent[-1] == last.progress.epsilon
        assert summary["best_round"] == 3

    def test_noise_is_secret_by_default(self, world: World) -> None:
        secret = {key: PRIVATE[key] for key in ("dp_noise_multiplier", "dp_clip")}
        first, second = (world.run(rounds=1, **secret) for _ in "ab")
        assert first.run.setup.config.privacy.dp_seed == "secret"
        assert distance(first.state, second.state) > 1e-3

    def test_a_budget_that_is_too_small_is_told_before_the_first_round(
        self, world: World
    ) -> None:
        fed = world.federation(rounds=3, **PRIVATE)
        count = len(fed.clients)
        budget = 1.001 * privacy.epsilon(fed.task.privacy, ((count, count, 1),))
        said = world.refusal(rounds=3, dp_epsilon_budget=budget, **PRIVATE)
        assert "set its rounds to 1" in said

    def test_a_run_is_made_longer_and_resumed_when_it_is_over(
        self, world: World, tmp_path: Path
    ) -> None:
        out = str(tmp_path / "out")
        if not world.resumes:
            assert "resume" in world.refusal(out=out, resume=True).lower()
            return
        for rounds in (2, 4, 4):
            more = {"rounds": rounds, **world.part}
            ended = world.run(out=out, resume=True, **more)
            assert len(lines_of(tmp_path / "out" / "metrics.jsonl")) == rounds
        assert distance(ended.run.state, world.embedded(**more).state) == 0
        said = world.refusal(out=out, resume=True, rounds=4, local_epochs=4)
        assert "another configuration" in said
        said = world.refusal(rounds=2, resume=True)
        assert "resume needs the output directory" in said

    @pytest.mark.parametrize("more", KEPT, ids=str)
    def test_what_clients_keep_goes_on(
        self, world: World, more: dict[str, Any], tmp_path: Path
    ) -> None:
        if not world.keeps:
            pytest.skip("what clients keep is lost with them, or with the run")
        out = str(tmp_path / "out")
        for rounds in (2, 4):
            more = {**more, **world.part, "rounds": rounds}
            ended = world.run(out=out, resume=True, **more)
        last = world.embedded(**more)
        assert distance(ended.run.state, last.state) == 0
        assert distance(ended.run.now.best, last.best) == 0

    def test_clients_that_train_on_nothing_are_refused(
        self, world: World, tmp_path: Path
    ) -> None:
        if type(world).setup is World.setup:
            pytest.skip("its own loop cuts and splits the data")
        whole = world.setup(rounds=1).features
        rows = sum(len(labels) for labels in whole.label.values())  # one a client
        out = tmp_path / "out"
        said = world.refusal(partition="iid", clients=rows, out=str(out))
        assert "has a training image for --alg fedclip: " in said
        assert "\n" not in said
        assert not (out / "summary.json").exists()

    def test_a_directory_that_is_taken_is_refused(
        self, world: World, tmp_path: Path
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "summary.json").write_text("{}")
        assert "out" in world.refusal(out=str(tmp_path / "out"))

    @pytest.mark.parametrize(
        ("options", "told"),
        [
            ({"rounds": 0}, "round"),
            ({"lr": "fast"}, "fast"),
            ({"compress": "zip"}, "zip"),
            ({"compress": "topk", "topk_share": 2.0}, "topk"),
            ({"topk_shares": 0.1}, "topk"),
            ({"resume": "maybe"}, "resume"),
        ],
        ids=str,
    )
    def test_a_bad_option_is_one_line(
        self, world: World, options: dict[str, Any], told: str
    ) -> None:
        said = world.refusal(**options)
        assert told in said.lower()
        assert "\n" not in said
