"""What the bindings share: one run's data, and the server's side of it.

A binding hands over the updates that came in and passes on the state that comes out.
Screening, aggregation, evaluation and the files are those of ``fedclip run``.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.nn.functional as F

from .. import experiment, outputs
from ..algorithms import Client, Samples
from ..checkpoint import Progress
from ..config import RunConfig, to_toml
from ..errors import ConfigError
from ..evaluation import predict_scores, summary_scores
from ..features import FeatureSet
from ..federation import (
    Federation,
    RoundResult,
    Scores,
    Standing,
    Tally,
    advance,
    as_dict,
    build_federation,
    next_state,
    round_result,
    score_state,
    tally,
)
from ..partition import NO_TARGET, resolve_targets
from ..storage import write_bytes, write_json
from ..update import ClientUpdate, State


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
    if config.train.optimizer_state != "reset":
        raise ConfigError(
            "--optimizer-state keep: a host's clients keep nothing between rounds; "
            "use `fedclip run`"
        )
    return replace(
        config, data=replace(config.data, targets=config.data.targets or (NO_TARGET,))
    )


@functools.lru_cache(maxsize=2)
def open_setup(config: RunConfig) -> Setup:
    """Features (encoded once, cached) and clients of a run; once a process.

    Raises FedClipError, as ``fedclip run`` does.
    """
    config = one_run(config)
    features, _ = experiment.obtain_features(config)
    (target,) = resolve_targets(features.domains, config.data.targets)
    fed = build_federation(features, config, target, config.seeds[0])
    return Setup(config, features, fed, target)


def score_rows(fed: Federation, state: State, rows: Samples) -> tuple[float, float]:
    """Mean cross-entropy of the class scores of ``rows``, and the accuracy.

    For hosts that print a loss of their own; NaN for no rows.
    """
    if not len(rows):
        return math.nan, math.nan
    scores = predict_scores(fed.algorithm, state, rows, fed.task)  # (N, C)
    right = float((scores.argmax(dim=1) == rows.y).double().mean())
    return float(F.cross_entropy(scores, rows.y)), right


class HostRun:
    """The server of a federation: screens, aggregates, scores and records.

    With ``out`` it leaves there what ``fedclip run`` leaves, so that ``fedclip report``
    and ``fedclip export`` work on runs of any host.
    """

    def __init__(self, setup: Setup, out: Path | None = None) -> None:
        self.setup = setup
        self.state: State = setup.fed.algorithm.init(setup.fed.task)
        self.standing = Standing(Progress(), None, self.state, self.state)
        self._best: RoundResult | None = None
        self._started = time.perf_counter()
        self._metrics: outputs.MetricsFile | None = None
        self.leaf: outputs.Leaf | None = None
        if out is not None:
            self._open(out)

    def _open(self, out: Path) -> None:
        config = self.setup.config
        directory = experiment.prepare_out(out, "", resume=False)
        rounds = config.train.rounds
        self.leaf = outputs.Leaf(directory, self.setup.target, self.setup.seed, rounds)
        write_bytes(directory / "config.toml", to_toml(config).encode())
        self._metrics = outputs.MetricsFile(directory / "metrics.jsonl").__enter__()

    def aggregate(
        self, updates: Sequence[ClientUpdate], participants: Sequence[str]
    ) -> tuple[State, Tally]:
        """The next state from a round's updates; what is unsound is left out.

        ``participants`` are the names of the clients that were asked.  The state is
        taken over by :meth:`record`, so that a host may still change it.
        """
        fed = self.setup.fed
        ratio = fed.task.train.max_norm_ratio
        counted = tally(fed.algorithm, self.state, updates, participants, ratio)
        number = self.standing.progress.round + 1
        return next_state(fed, counted, self.state, number), counted

    def record(
        self, state: State, counted: Tally, clients: Scores | None = None
    ) -> RoundResult:
        """Take ``state`` over, score it and write the round down.

        ``clients`` holds the accuracies that the clients measured themselves; without
        it they are scored here, where their data are.
        """
        trained = time.perf_counter()
        target = None
        if clients is None:
            clients, target = score_state(self.setup.fed, state)
        now = time.perf_counter()
        seconds = {"train": trained - self._started, "evaluate": now - trained}
        number = self.standing.progress.round + 1
        result = round_result(number, counted, clients, target, seconds)
        progress = advance(self.standing.progress, result)
        if not clients:  # nobody measured it: the last round stands for the best
            progress = replace(progress, best_round=number)
        if progress.best_round == number:
            self._best = result
        best = state if self._best is result else self.standing.best
        self.state = state
        self.standing = Standing(progress, result, state, best)
        if self._metrics is not None:
            self._metrics.add(as_dict(result))
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
            tests = {n: s["test"] for n, s in self._best_clients().items()}
            scores = {"zero_shot": zero_shot, "result": summary_scores(None, tests)}
        summary = outputs.summary(
            setup.config, setup.features, leaf, self.standing, scores, 0.0
        )
        if self._metrics is not None:
            self._metrics.__exit__(None)
            self._metrics = None
            self._write(leaf, summary)
        return summary

    def _best_clients(self) -> Scores:
        return self._best.clients if self._best else {}

    def _write(self, leaf: outputs.Leaf, summary: dict[str, Any]) -> None:
        setup = self.setup
        if setup.fed.clients:
            evaluation = outputs.evaluation(setup.fed, setup.features, self.standing)
            write_json(leaf.directory / "evaluation.json", evaluation)
        experiment.write_results(leaf, setup.features, self.standing, summary)
