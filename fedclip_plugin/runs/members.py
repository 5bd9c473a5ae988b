"""Clients that join or leave after a run of ``gda``: no round is run again.

Its state is made of sums over rows.  A client that joins late is added; one that leaves
is subtracted, and what is left is the state of a run that never had it (exact
unlearning), but for the rounding of float32.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from ..algorithms import Client, algorithm_class
from ..algorithms.gda import ROUNDING, Gda, choose
from ..algorithms.statistics import Statistics, implausible
from ..config.inputs import ModelConfig
from ..config.schema import RunConfig
from ..data.partition import NO_TARGET
from ..errors import ConfigError, RunError
from ..features.feature_set import FeatureSet
from ..features.obtain import obtain_features
from ..federation.build import build_federation
from ..federation.engine import Progress, RunState
from ..report.records import RunRecord, load_run
from ..storage.tensors import DamagedFileError, read_tensors
from ..wire.message import state_bytes
from ..wire.update import State
from . import directory as directories
from .files import RunFiles
from .results import results
from .setup import Setup

MARK = "members: "  # begins the notes that go on from run to run
SAME_TEXT = 0.99  # cosine of text features of one model, in any precision


@dataclass(frozen=True)
class Former:
    """A finished run of ``gda`` with its data: what is changed."""

    record: RunRecord
    setup: Setup
    state: State
    members: tuple[str, ...]

    @classmethod
    def read(cls, directory: Path, config: RunConfig) -> Former:
        """The run in ``directory``, whose configuration is ``config``, with its data.

        Raises RunError for an unfinished or damaged one, ConfigError for one whose
        state is not made of sums, or hides them.
        """
        record = load_run(directory)
        if algorithm_class(config.algorithm) is not Gda:  # tofa's clients keep theirs
            raise ConfigError(
                f"{record.path} is a run of {config.algorithm}: clients join and leave "
                "a run of gda alone; run the others again without them"
            )
        if record.summary.get("privacy"):
            raise ConfigError(
                f"{record.path} is private: its noise was for its own clients; run it "
                "again with others"
            )
        target, seed = record.summary["target"], record.summary["seed"]
        targets = (NO_TARGET if target is None else target,)
        own = replace(config.data, targets=targets)
        config = replace(config, data=own, seeds=(seed,))
        state, members, gone = _trained(record)
        features, _ = obtain_features(config)
        fed = build_federation(features, config, target, seed)
        rest = tuple(c for c in fed.clients if c.name not in gone)
        fed = replace(fed, clients=rest)
        return cls(record, Setup(config, features, fed, target), state, members)

    def clients_of(self, data: RunConfig) -> tuple[Client, ...]:
        """The clients that ``data`` tell of, under the run's model and split.

        Raises ConfigError for features of another model, or other classes.
        """
        setup = self.setup
        if data.model == ModelConfig():
            data = replace(data, model=setup.config.model)
        features, _ = obtain_features(data)
        _check_same_model(setup.features, features)
        own = replace(data.data, targets=(NO_TARGET,))
        config = replace(setup.config, data=own)
        return build_federation(features, config, None, setup.seed).clients


def _trained(record: RunRecord) -> tuple[State, tuple[str, ...], set[str]]:
    """The state, the clients whose rows are in it, in their order, and who left."""
    path = record.path / "adapter.safetensors"
    try:
        state, meta = read_tensors(path)
        members = json.loads(meta["members"]) if "members" in meta else None
        number = record.summary["best_round"]
        line = next(each for each in record.metrics if each["round"] == number)
    except (OSError, DamagedFileError, ValueError, StopIteration) as error:
        raise RunError(f"{path} cannot be read ({error}): run it again") from error
    absent = {str(each["client"]) for each in line.get("left_out", ())}
    first = [n for n in line["participants"] if n not in absent]
    names = tuple(first if members is None else map(str, members))
    return state, names, set(first) - set(names)


def join(
    former: Former, data: RunConfig, out: Path, client: str | None = None
) -> dict[str, Any]:
    """Add the training rows of the clients that ``data`` tells of.

    Their model is the run's where ``data`` name none.  ``client`` takes one of them
    alone.  The run with them is written to ``out``; returns its summary.  Raises
    ConfigError for features of another model or other classes, and for a name that is
    taken.
    """
    setup, come = former.setup, former.clients_of(data)
    if client is not None:
        come = (_named(come, client),)
    for name in {c.name for c in come} & set(former.members):
        raise ConfigError(
            f"client {name!r} is a member already: rename its folder, or let it leave "
            "first"
        )
    statistics = Statistics.of_state(former.state)
    for each in come:
        statistics += _of(each, former)
    fed = replace(setup.fed, clients=(*setup.fed.clients, *come))
    names = (*former.members, *(c.name for c in come))
    return _write(
        former, replace(setup, fed=fed), statistics, names, "joined", come, out
    )


def leave(
    former: Former, client: str, out: Path, data: RunConfig | None = None
) -> dict[str, Any]:
    """Take the training rows of the member ``client`` out again; see :func:`join`.

    They are read from ``data`` where it joined after the run.  Raises ConfigError for a
    client that is not a member, or whose rows are not those that were added.
    """
    if client not in former.members:
        raise ConfigError(
            f"client {client!r} is not a member of {former.record.path}; it has "
            f"{', '.join(former.members[:8])}"
        )
    own = former.setup.fed.clients
    if data is None and client not in [c.name for c in own]:
        raise ConfigError(
            f"client {client!r} joined after the run: name its data (--features)"
        )
    gone = _named(own if data is None else former.clients_of(data), client)
    statistics = Statistics.of_state(former.state) - _of(gone, former)
    rest = tuple(name for name in former.members if name != client)
    if not rest:
        raise ConfigError(f"client {client!r} is the last one: nothing would be left")
    if _impossible(statistics, former):
        raise ConfigError(
            f"the rows of client {client!r} are not those that {former.record.path} "
            "was made of: name the data that it was run, or joined, with"
        )
    clients = tuple(c for c in former.setup.fed.clients if c.name != client)
    fed = replace(former.setup.fed, clients=clients)
    setup = replace(former.setup, fed=fed)
    return _write(former, setup, statistics, rest, "left", (gone,), out)


def _named(clients: Sequence[Client], name: str) -> Client:
    for client in clients:
        if client.name == name:
            return client
    names = ", ".join(c.name for c in clients[:8])
    raise ConfigError(f"client {name!r} is not in these data: {names} are")


def _of(client: Client, former: Former) -> Statistics:
    train, classes = client.train, len(former.setup.fed.task.text)
    return Statistics.of(train.x, train.y, classes)


def _impossible(rest: Statistics, former: Former) -> bool:
    """Whether no rows have the sums of the ``rest``: others left than were there.

    What the run's codec may have rounded away weighs more in fewer rows.
    """
    if float(rest.counts.min()) < -0.5:
        return True
    rounding = ROUNDING.get(former.setup.config.wire.compress)
    if rest.rows <= 0 or rounding is None:
        return False
    slack = rounding / float(former.state["row_weight"]) / rest.rows
    return implausible(rest.to_state(former.state), slack) is not None


def _check_same_model(mine: FeatureSet, theirs: FeatureSet) -> None:
    for what, one, other in (
        ("classes", mine.classes, theirs.classes),
        ("width", mine.embed_dim, theirs.embed_dim),
        ("weights", mine.model, theirs.model),
    ):
        if one != other:
            raise ConfigError(
                f"the newcomers have other {what}: {other}, the run has {one}"
            )
    alike = F.cosine_similarity(mine.class_text, theirs.class_text, dim=1)
    if float(alike.min()) < SAME_TEXT:
        raise ConfigError(
            "the newcomers' text features are others: use the run's weights and prompts"
        )


def _write(
    former: Former,
    setup: Setup,
    statistics: Statistics,
    members: Sequence[str],
    what: str,
    moved: Sequence[Client],
    out: Path,
) -> dict[str, Any]:
    """The changed run as a run directory of its own."""
    task, summary = setup.fed.task, former.record.summary
    state = statistics.to_state(former.state)
    state["chosen"] += state["chosen"].new_tensor(choose(state, task))
    rows = sum(len(c.train) for c in moved)
    notes = [n for n in summary.get("notes") or () if n.startswith(MARK)]
    names = ", ".join(client.name for client in moved)
    notes.append(f"{MARK}{names} {what}, {rows:,} rows")
    if (codec := setup.config.wire.compress) != "none":
        rounded = f"{MARK}the run's sums travelled as {codec}: the rest is as exact"
        notes = [*(n for n in notes if n != rounded), rounded]
    config = replace(setup.config, notes=(*setup.config.notes, *notes))
    setup = replace(setup, config=config)
    up, down = _sent_by_members(former, what, len(moved))
    progress = Progress(
        round=summary["rounds"],
        best_round=summary["best_round"],
        bytes_up=up,
        bytes_down=down,
        train_seconds=summary["seconds"]["train"],
    )
    now = RunState(progress, state, state)
    directory = directories.prepare_out(out, "", False)
    lock = directories.hold(directory)
    try:
        with RunFiles(directory, setup, tuple(members)) as files:
            files.start(False)
            for line in former.record.metrics:
                files.metrics.add(line)
            return files.finish(now, results(setup, now, files.keep_personal))
    finally:
        lock.release()


def _sent_by_members(former: Former, what: str, moved: int) -> tuple[int, int]:
    """Bytes up and down of those who are members now: one message each who joins, and
    the mean of all less each who leaves."""
    sent = former.record.summary["communication"]
    up, down = int(sent["bytes_up"]), int(sent["bytes_down"])
    if what == "joined":
        more = state_bytes(former.state) * moved
        return up + more, down + more
    share = 1 - moved / len(former.members)
    return round(up * share), round(down * share)
