"""The one loop over rounds: the embedded engine, and the oracle for every host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from ..config.schema import TrainConfig
from ..server import privacy
from ..wire.update import State, on_device
from .build import Federation, participants
from .checkpoint import Checkpoint, Progress
from .rounds import RoundResult, run_round, scored, shared_state


def advance(progress: Progress, result: RoundResult) -> Progress:
    """Totals after one more round; of equal rounds the first stays the best.

    Until a round is scored, the last one stands for the best; with privacy always, for
    the clients' scores are not hidden by noise.
    """
    score = -1.0 if result.mean_val is None else result.mean_val
    better = score > progress.best_score or progress.best_score < 0
    better = better or result.epsilon is not None
    return Progress(
        round=result.round,
        best_round=result.round if better else progress.best_round,
        best_score=max(score, progress.best_score),
        bytes_up=progress.bytes_up + result.bytes_up,
        bytes_down=progress.bytes_down + result.bytes_down,
        quarantined=progress.quarantined + result.quarantined,
        train_seconds=progress.train_seconds + result.seconds["train"],
        evaluate_seconds=progress.evaluate_seconds + result.seconds["evaluate"],
        releases=progress.releases,
        epsilon=result.epsilon,
    )


def account(
    train: TrainConfig, progress: Progress, result: RoundResult, clients: int
) -> tuple[Progress, RoundResult]:
    """Both with what the round, drawn from ``clients``, adds to epsilon; if private."""
    if not train.private:
        return progress, result
    asked = len(result.participants)
    releases = privacy.add_round(progress.releases, clients, asked)
    spent = privacy.epsilon(train, releases)
    return replace(progress, releases=releases), replace(result, epsilon=spent)


def finished(progress: Progress, train: TrainConfig) -> bool:
    """Whether all rounds are done, or the best one lies ``patience`` rounds back."""
    waited = progress.round - progress.best_round
    patient = train.patience is None or waited < train.patience
    stop = not patient and scored(train, progress.round)
    return progress.round >= train.rounds or stop


@dataclass(frozen=True)
class Standing:
    """A run after a round: progress, the round's result, current and best state.

    ``state`` holds what the clients keep, ``best`` does not: it is for use.
    """

    progress: Progress
    result: RoundResult | None
    state: State
    best: State
    last: bool = False


def federate(
    fed: Federation, checkpoint: Checkpoint | None = None
) -> Iterator[Standing]:
    """Rounds until ``rounds`` is reached, going on from the checkpoint if there is one.

    Yields the standing before the first round run here, then after every round.  The
    caller records a round when it gets it; its checkpoint is written when the caller
    asks for the next one, so a killed run repeats at most one round.  A budget for
    privacy may end it before ``rounds``.
    """
    fed = _within_budget(fed)
    start = begin(fed, checkpoint)
    yield start
    progress, state, best = start.progress, start.state, start.best
    while not finished(progress, fed.task.train):
        number = progress.round + 1
        state, result = run_round(fed, state, number)
        train = fed.task.train
        progress, result = account(train, progress, result, len(fed.clients))
        progress = advance(progress, result)
        if progress.best_round == number:
            best = shared_state(fed, state)
        last = finished(progress, fed.task.train)
        yield Standing(progress, result, state, best, last)
        if checkpoint:
            checkpoint.save(progress, state, best)


def begin(fed: Federation, checkpoint: Checkpoint | None = None) -> Standing:
    """The standing before a run's next round: its checkpoint's, or the very first.

    Raises RunError for a checkpoint that cannot be used.
    """
    first = fed.algorithm.init(fed.task)
    saved = checkpoint.load(first) if checkpoint else None
    if saved is None:
        return Standing(Progress(), None, first, first)
    progress = saved[0]
    state, best = (on_device(found, fed.task.text.device) for found in saved[1:])
    if progress.best_round == progress.round:  # it is in the file once
        best = shared_state(fed, state)
    return Standing(progress, None, state, best)


def _within_budget(fed: Federation) -> Federation:
    train, count = fed.task.train, len(fed.clients)
    if not train.private:
        return fed
    asked = len(participants(fed.clients, train.participation, 0, 1))
    train = privacy.within_budget(train, count, asked)
    return replace(fed, task=replace(fed.task, train=train))


def as_dict(result: RoundResult) -> dict[str, object]:
    """A line of ``metrics.jsonl``; ``epsilon`` only where there is one."""
    line = asdict(result)
    if result.epsilon is None:
        del line["epsilon"]
    return line
