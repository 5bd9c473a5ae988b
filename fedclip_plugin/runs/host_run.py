"""What the bindings share: one run's data, and the server's side of it.

A binding hands over the updates that came in and passes on the state that comes out.
Screening, aggregation, evaluation and the files are those of ``fedclip run``.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..algorithms import Client
from ..config.schema import RunConfig, TrainConfig
from ..config.toml import to_toml
from ..data.partition import NO_TARGET, resolve_targets
from ..errors import ConfigError
from ..features import obtain
from ..features.feature_set import FeatureSet
from ..federation import downlink
from ..federation.build import Federation, build_federation, identity, participants
from ..federation.checkpoint import Checkpoint
from ..federation.engine import Standing, account, advance, as_dict, begin
from ..federation.evaluation import summary_scores
from ..federation.rounds import (
    RoundResult,
    Scores,
    Tally,
    next_state,
    round_result,
    score_round,
    shared_state,
    tally,
)
from ..server.privacy import within_budget
from ..storage.files import write_bytes, write_json
from ..wire.update import ClientUpdate, State
from . import directory as directories
from . import experiment
from . import files as outputs


@dataclass(frozen=True)
class Setup:
    """Configuration, features and clients of one run in a host."""

    config: RunConfig
    features: FeatureSet
    fed: Federation
    target: str | None

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.config.seeds[0]

    def client(self, place: int | str) -> Client:
        """A client by its place among the clients, or by its name."""
        for number, client in enumerate(self.fed.clients):
            if place in (number, client.name):
                return client
        known = ", ".join(c.name for c in self.fed.clients[:8])
        raise ConfigError(
            f"client {place!r}: this run has {len(self.fed.clients)} ({known})"
        )


def one_run(config: RunConfig) -> RunConfig:
    """``config`` for a host: one seed, and at most one held-out domain.

    Hosts run one federation at a time; without ``--target`` all domains are clients.
    """
    if len(config.seeds) > 1 or len(config.data.targets) > 1:
        raise ConfigError(
            "a host runs one seed and one held-out domain at a time, got "
            f"seeds {list(config.seeds)} and targets {list(config.data.targets)}; "
            "`fedclip run` runs several"
        )
    train = config.train
    if train.private and train.dp_seed == "auto":
        train = replace(train, dp_seed="secret")
    data = replace(config.data, targets=config.data.targets or (NO_TARGET,))
    return replace(config, data=data, train=train)


@functools.lru_cache(maxsize=2)
def open_setup(config: RunConfig) -> Setup:
    """Features (encoded once, cached) and clients of a run; once a process.

    Raises FedClipError, as ``fedclip run`` does.
    """
    config = one_run(config)
    features, _ = obtain.obtain_features(config)
    (target,) = resolve_targets(features.domains, config.data.targets)
    fed = build_federation(features, config, target, config.seeds[0])
    return Setup(config, features, fed, target)


def _check_budget(train: TrainConfig, drawn_from: int | None) -> None:
    """A host counts the rounds itself: too many are refused before the first."""
    if not train.private:
        return
    clients = drawn_from or 1
    asked = len(participants(range(clients), train.participation, 0, 1))
    allowed = within_budget(train, clients, asked).rounds
    if allowed < train.rounds:
        raise ConfigError(
            f"--dp-epsilon-budget {train.dp_epsilon_budget:g} allows {allowed} rounds, "
            f"the host is to run {train.rounds}; set its rounds to {allowed}"
        )


class HostRun:
    """The server of a federation: screens, aggregates, scores and records.

    With ``out`` it leaves there what ``fedclip run`` leaves, so that ``fedclip report``
    and ``fedclip export`` work on runs of any host, and a checkpoint a round.  With
    ``resume`` it goes on with the run that it finds there, if there is one: ``state``
    is the adapter after the rounds ``done``, and the host's next one is ``done + 1``.

    ``drawn_from`` counts the clients from which a round's are drawn unseen; without it,
    it is known who takes part, and privacy costs as if all did.
    """

    def __init__(
        self,
        setup: Setup,
        out: Path | None = None,
        resume: bool = False,
        drawn_from: int | None = None,
    ) -> None:
        self.setup = setup
        self.drawn_from = drawn_from
        _check_budget(setup.fed.task.train, drawn_from)
        self.standing = begin(setup.fed)
        self.state: State = self.standing.state
        self._best_clients: Scores = {}
        self._started = time.perf_counter()
        self._metrics: outputs.MetricsFile | None = None
        self._checkpoint: Checkpoint | None = None
        self.leaf: outputs.Leaf | None = None
        if out is not None:
            self._open(out, resume)
        elif resume:
            raise ConfigError("resume needs the output directory of the run: set out")
        self.done = self.standing.progress.round

    def _open(self, out: Path, resume: bool) -> None:
        config = self.setup.config
        resume = resume and (out / "config.toml").is_file()
        directory = directories.prepare_out(out, "", resume)
        self._lock = directories.hold(directory)
        rounds = config.train.rounds
        self.leaf = outputs.Leaf(directory, self.setup.target, self.setup.seed, rounds)
        self._checkpoint = Checkpoint(directory, self._identity())
        if resume:
            self.standing = begin(self.setup.fed, self._checkpoint)
            self.state = self.standing.state
        write_bytes(directory / "config.toml", to_toml(config).encode())
        self._metrics = outputs.MetricsFile(directory / "metrics.jsonl").__enter__()
        done = self.standing.progress
        if best := self._metrics.cut(done.round, done.best_round):
            self._best_clients = best.get("clients") or {}

    def _identity(self) -> str:
        """Without data here, features are known by who is there: not for a checkpoint.

        A server that was started again may see other clients first.
        """
        setup, features = self.setup, self.setup.features
        if not setup.fed.clients:
            features = replace(features, key="")
        return identity(features, setup.config, setup.target)

    def aggregate(
        self, updates: Sequence[ClientUpdate], participants: Sequence[str]
    ) -> tuple[State, Tally]:
        """The next state from a round's updates; what is unsound is left out.

        ``participants`` are the names of the clients that were asked.  The state is
        taken over by :meth:`record`, so that a host may still change it.
        """
        fed = self.setup.fed
        sent = downlink.broadcast(fed, self.state)
        counted = tally(fed, sent, updates, participants)
        number = self.standing.progress.round + 1
        return next_state(fed, counted, self.state, number), counted

    def record(
        self, state: State, counted: Tally, clients: Scores | None = None
    ) -> RoundResult:
        """Take ``state`` over, score it and write the round down.

        ``clients`` holds the accuracies that the clients measured themselves; without
        it they are scored here, where their data are, every ``eval_every`` rounds.
        """
        trained, fed = time.perf_counter(), self.setup.fed
        number, target = self.standing.progress.round + 1, None
        if clients is None:
            clients, target = score_round(fed, state, number)
        now = time.perf_counter()
        seconds = {"train": trained - self._started, "evaluate": now - trained}
        result = round_result(number, counted, clients, target, seconds)
        train, asked = fed.task.train, len(counted.participants)
        drawn_from = max(asked, self.drawn_from or 0)
        progress, result = account(train, self.standing.progress, result, drawn_from)
        progress = advance(progress, result)
        best = self.standing.best
        if progress.best_round == number:
            self._best_clients, best = result.clients, shared_state(fed, state)
        self.state = state
        self.standing = Standing(progress, result, state, best)
        if self._metrics is not None and self._checkpoint is not None:
            self._metrics.add(as_dict(result))
            self._checkpoint.save(progress, state, best)
        self._started = time.perf_counter()
        return result

    def finish(self, zero_shot: dict[str, Any] | None = None) -> dict[str, Any]:
        """The summary of the run; written with adapter and report where there is out.

        ``zero_shot`` is what the clients measured, where the data are with them.
        """
        setup = self.setup
        leaf = self.leaf or outputs.Leaf(
            Path(), setup.target, setup.seed, setup.config.train.rounds
        )
        if setup.fed.clients:
            scores = outputs.final_scores(setup.fed, self.standing.best)
        else:
            tests = {n: s["test"] for n, s in self._best_clients.items()}
            scores = {"zero_shot": zero_shot, "result": summary_scores(None, tests)}
        summary = outputs.summary(
            setup.config, setup.features, leaf, self.standing, scores, 0.0
        )
        if self._metrics is not None:
            self._metrics.__exit__(None)
            self._metrics = None
            self._write(leaf, summary)
            self._lock.release()
        return summary

    def _write(self, leaf: outputs.Leaf, summary: dict[str, Any]) -> None:
        setup = self.setup
        if setup.fed.clients:
            evaluation = outputs.evaluation(setup.fed, setup.features, self.standing)
            write_json(leaf.directory / "evaluation.json", evaluation)
        experiment.write_results(leaf, setup.features, self.standing, summary)
