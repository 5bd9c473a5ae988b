"""The engine: it opens a round, aggregates what comes back, and closes the round.

A :class:`Run` knows no files and no host.  The embedded loop, :func:`federate`, and
every host make the same three calls::

    opened = run.open_round()            # what goes down, and who is drawn
    run.aggregate(opened, updates, names)   # screened; the server's next state
    result = run.close_round(opened)     # scored, and taken over

Between the last two, clients may measure the new state, and a host may change it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ..algorithms import Client
from ..config.schema import PrivacyConfig, TrainConfig
from ..errors import RunError
from ..server import optimizer, privacy
from ..wire.update import ClientUpdate, Kept, State, private_part, remember
from .build import Federation, draw_cohort, participants
from .downlink import Broadcast, broadcast
from .rounds import (
    RoundResult,
    Scores,
    Screened,
    next_state,
    round_result,
    score_state,
    scored,
    screen_round,
    train_clients,
)

_log = logging.getLogger("fedclip")


@dataclass(frozen=True)
class Progress:
    """How far a run is after ``round``; totals over all rounds so far.

    ``releases`` is what privacy is accounted for, see ``privacy.py``.
    """

    round: int = 0
    best_round: int = 0
    best_score: float = -1.0
    bytes_up: int = 0
    bytes_down: int = 0
    quarantined: int = 0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    releases: tuple[tuple[int, int, int], ...] = ()
    epsilon: float | None = None


@dataclass(frozen=True)
class RunState:
    """A run between two rounds.

    ``state`` is the server's, ``kept`` what clients keep where they train in this
    process.  ``best`` is what clients saw of the best round's state, for use;
    ``best_kept`` what they kept in it, where that predicts (``Algorithm.personal``).
    ``memory`` is the server optimizer's, and the average over rounds.
    """

    progress: Progress
    state: State
    best: State
    result: RoundResult | None = None
    kept: Kept = field(default_factory=dict)
    best_kept: Kept = field(default_factory=dict)
    best_scores: Scores = field(default_factory=dict)
    memory: State = field(default_factory=dict)
    last: bool = False


def first_state(fed: Federation) -> RunState:
    """Before the first round."""
    state = fed.algorithm.init(fed.task)
    return RunState(Progress(), state, fed.algorithm.model_of(state))


def usable(fed: Federation, state: State, kept: Kept) -> tuple[State, Kept]:
    """What predicts: the state as clients see it, and what they keep if that does."""
    algorithm = fed.algorithm
    seen = algorithm.model_of(broadcast(fed, state).seen)
    if algorithm.communicates and not algorithm.personal:
        return seen, {}
    own = {client: private_part(state) for client, state in kept.items()}
    return seen, {client: state for client, state in own.items() if state}


def final(fed: Federation, now: RunState) -> tuple[State, Kept]:
    """What predicts after the last round: its ``best`` and ``best_kept``."""
    return usable(fed, optimizer.judged(now.memory, now.state), now.kept)


@dataclass
class Round:
    """A round under way; ``state``, ``kept`` and ``memory`` are those after it, once
    aggregated.

    A host may put another ``state`` in.
    """

    number: int
    cohort: list[Client]
    sent: Broadcast
    state: State
    kept: Kept
    screened: Screened
    started: float
    memory: State

    def count_bytes(self, up: int, down: int) -> None:
        """Bytes of the host's own wire, in the place of those of safetensors."""
        self.screened = replace(self.screened, bytes_up=up, bytes_down=down)


class Run:
    """A federation, round by round; ``now`` is where it stands.

    ``start`` is a state to go on from.  ``drawn_from`` counts the clients from which a
    round's are drawn unseen; without it, it is known who takes part, and privacy costs
    as if all did.
    """

    def __init__(
        self,
        fed: Federation,
        start: RunState | None = None,
        drawn_from: int | None = None,
    ) -> None:
        self.fed = fed
        self.drawn_from = drawn_from
        self.now = start or first_state(fed)

    @property
    def state(self) -> State:
        """The server's state."""
        return self.now.state

    @property
    def done(self) -> int:
        """The rounds that are closed; the next one is ``done + 1``."""
        return self.now.progress.round

    def open_round(self, state: State | None = None) -> Round:
        """The next round: what is sent, and to whom where the clients are known here.

        ``state`` is the server's where the host has it, or has changed it.
        """
        fed, number, started = self.fed, self.done + 1, time.perf_counter()
        state = self.state if state is None else state
        sent, kept = broadcast(fed, state), self.now.kept
        cohort = [c.with_kept(kept) for c in draw_cohort(fed, number)]
        nobody = Screened([], [], [], 0, 0, sent)
        memory = self.now.memory
        return Round(number, cohort, sent, state, kept, nobody, started, memory)

    def aggregate(
        self,
        opened: Round,
        updates: Sequence[ClientUpdate],
        participants: Sequence[str],
    ) -> State:
        """Screen the updates, and aggregate the rest to the server's next state.

        ``participants`` are the names of the clients that were asked.  Raises RunError
        as :meth:`check_examples`.
        """
        fed = self.fed
        self.check_examples(opened, updates, participants)
        opened.screened = screen_round(fed, opened.sent, updates, participants)
        opened.state, opened.memory = next_state(
            fed, opened.screened, opened.state, opened.number, opened.memory
        )
        # a client alone is its own server: it keeps no adapter that is unsound
        keeping = updates if fed.algorithm.communicates else opened.screened.sound
        opened.kept = remember(opened.kept, keeping)
        return opened.state

    def check_examples(
        self,
        opened: Round,
        updates: Sequence[ClientUpdate],
        participants: Sequence[str],
    ) -> None:
        """Refuse a first round of all clients in which none trained on an example.

        Later, or where only some were drawn or answered, others may have examples, who
        are away or come back: it is told.  Raises RunError.
        """
        idle = bool(updates) and not any(u.num_examples for u in updates)
        if not (idle and self.fed.algorithm.learns):
            return
        line = f"round {opened.number}: no client that answered trained on an example"
        known = self.drawn_from or len(self.fed.clients)
        if opened.number == 1 and len(updates) >= max(known, len(participants)):
            raise RunError(
                f"{line}: the run ends; see that there are training images, and that "
                "clients tell their number (num_examples)"
            )
        _log.warning("%s: nothing is learnt in it", line)

    def judged(self, opened: Round) -> State:
        """What is scored of an aggregated round: its state, or the average so far."""
        return optimizer.judged(self._memory(opened), opened.state)

    def _memory(self, opened: Round) -> State:
        config = self.fed.task.server
        return optimizer.averaged(opened.memory, opened.state, config, opened.number)

    def close_round(self, opened: Round, scores: Scores | None = None) -> RoundResult:
        """Score the round's state and take it over.

        ``scores`` holds the accuracies that the clients measured themselves; without it
        they are scored here, where their data are, every ``eval_every`` rounds.
        """
        trained, train = time.perf_counter(), self.fed.task.train
        memory = self._memory(opened)  # of the state that a host may have put in
        judged = optimizer.judged(memory, opened.state)
        seen, own = usable(self.fed, judged, opened.kept)
        target = None
        if scores is None and not scored(train, opened.number):
            scores = {}
        elif scores is None:
            scores, target = score_state(self.fed.with_kept(own), seen)
        elif scores and not self.fed.clients:  # the held-out domain is the server's own
            _, target = score_state(self.fed, seen)
        evaluated = time.perf_counter() - trained
        seconds = {"train": trained - opened.started, "evaluate": evaluated}
        result = round_result(
            opened.number, opened.screened, scores, target, seconds, train.select_by
        )
        config, progress = self.fed.task.privacy, self.now.progress
        progress, result = account(config, progress, result, self.drawn_from)
        if (once := self.fed.algorithm.epsilon(self.fed.task)) is not None:
            progress = replace(progress, epsilon=once)
            result = replace(result, epsilon=once)
        self.now = replace(
            self.now,
            progress=progress,
            result=result,
            state=opened.state,
            kept=opened.kept,
            memory=memory,
            last=finished(progress, train),
        )
        if progress.best_round == opened.number:
            self.now = replace(
                self.now, best=seen, best_kept=own, best_scores=result.clients
            )
        return result


def account(
    config: PrivacyConfig,
    progress: Progress,
    result: RoundResult,
    drawn_from: int | None,
) -> tuple[Progress, RoundResult]:
    """Totals after one more round, and its result with the epsilon spent if private.

    Of equal rounds the first stays the best.  Until a round is scored, the last one
    stands for the best; with privacy always, for the clients' scores are not hidden by
    noise.
    """
    releases = progress.releases
    if config.private:
        count = len(result.participants)
        releases = privacy.add_round(releases, max(count, drawn_from or 0), count)
        result = replace(result, epsilon=privacy.epsilon(config, releases))
    score = -1.0 if result.score is None else result.score
    best = score > progress.best_score or progress.best_score < 0 or config.private
    return Progress(
        round=result.round,
        best_round=result.round if best else progress.best_round,
        best_score=max(score, progress.best_score),
        bytes_up=progress.bytes_up + result.bytes_up,
        bytes_down=progress.bytes_down + result.bytes_down,
        quarantined=progress.quarantined + result.quarantined,
        train_seconds=progress.train_seconds + result.seconds["train"],
        evaluate_seconds=progress.evaluate_seconds + result.seconds["evaluate"],
        releases=releases,
        epsilon=result.epsilon,
    ), result


def finished(progress: Progress, train: TrainConfig) -> bool:
    """Whether all rounds are done, or the best one lies ``patience`` rounds back."""
    waited = progress.round - progress.best_round
    patient = train.patience is None or waited < train.patience
    stop = not patient and scored(train, progress.round)
    return progress.round >= train.rounds or stop


def federate(fed: Federation, start: RunState | None = None) -> Iterator[RunState]:
    """The embedded loop: rounds until the last one, from ``start`` if there is one.

    Yields the state before the first round run here, then after every round.  A budget
    for privacy may end it before ``rounds``.
    """
    run = Run(_within_budget(fed), start, drawn_from=len(fed.clients))
    yield run.now
    while not finished(run.now.progress, run.fed.task.train):
        run_round(run)
        yield run.now


def run_round(run: Run) -> RoundResult:
    """One round of the embedded loop, with the clients here."""
    opened = run.open_round()
    cohort, seen = opened.cohort, opened.sent.seen
    updates = train_clients(run.fed, seen, cohort, opened.number)
    run.aggregate(opened, updates, [c.name for c in cohort])
    return run.close_round(opened)


def _within_budget(fed: Federation) -> Federation:
    task, count = fed.task, len(fed.clients)
    if not task.privacy.private:
        return fed
    asked = len(participants(fed.clients, task.server.participation, 0, 1))
    rounds = privacy.within_budget(task.privacy, task.train.rounds, count, asked)
    return replace(fed, task=replace(task, train=replace(task.train, rounds=rounds)))
