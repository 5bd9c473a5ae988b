"""The one loop over rounds: the embedded engine, and the oracle for every host."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from .algorithms import Algorithm, Client, Samples, Task, get_algorithm
from .checkpoint import Checkpoint, Progress
from .config import RunConfig, TrainConfig, to_toml
from .device import resolve_device
from .evaluation import (
    score_clients,
    score_target,
    selection_score,
)
from .features import FeatureSet
from .means import mean
from .partition import partition_clients
from .screening import Quarantined, screen
from .update import ClientUpdate, State
from .whole_clip import WholeClip
from .wire import state_bytes, update_bytes

T = TypeVar("T")
Scores = dict[str, dict[str, float | None]]
"""Client -> its validation and test accuracy, ``{"val", "test"}``."""

_SELECTION = 0xC11E  # keeps this draw apart from the sample orders


@dataclass(frozen=True)
class Federation:
    """Clients, the held-out target and the task: all that a run needs in memory."""

    algorithm: Algorithm
    task: Task
    clients: tuple[Client, ...]
    target: Samples | None


@dataclass(frozen=True)
class RoundResult:
    """What one round did; bytes and seconds are of this round alone."""

    round: int
    loss: float | None
    target: float | None
    clients: Scores
    mean_val: float
    mean_test: float | None
    participants: list[str]
    bytes_up: int
    bytes_down: int
    quarantined: int
    seconds: dict[str, float]
    left_out: list[dict[str, Any]] = field(default_factory=list)


def build_federation(
    features: FeatureSet,
    config: RunConfig,
    target: str | None,
    seed: int,
    clip: WholeClip | None = None,
) -> Federation:
    """Clients and target of one run; tensors on the training device.

    ``clip`` is for algorithms that train the CLIP itself.

    Raises ConfigError for an unknown target, algorithm or device.
    """
    algorithm = get_algorithm(config.algorithm)
    device = resolve_device(config.model.device)
    domains = features.domains
    labels = {d: features.label[d].numpy() for d in features.domains}

    def samples(index: npt.NDArray[np.int64]) -> Samples:
        rows = features.domain_order(torch.from_numpy(index))
        x, y = features.rows(rows)
        return Samples(x.to(device), y.to(device), rows.to(device))

    clients = tuple(
        Client(c.name, c.index, samples(c.train), samples(c.val), samples(c.test))
        for c in partition_clients(labels, config.data, target, seed)
    )
    held_out = None
    if target is not None:
        first = sum(len(labels[d]) for d in features.domains[: domains.index(target)])
        held_out = samples(np.arange(first, first + len(labels[target])))
    text = features.class_text.to(device)
    task = Task(text, features.logit_scale, config.train, seed, clip)
    return Federation(algorithm, task, clients, held_out)


def identity(features: FeatureSet, config: RunConfig, target: str | None) -> str:
    """What a checkpoint belongs to; the number of rounds may grow."""
    train = replace(config.train, rounds=1)
    model = replace(config.model, device="auto")
    same = replace(config, train=train, model=model)
    text = f"{to_toml(same)}|{features.key}|{target}"
    return hashlib.sha256(text.encode()).hexdigest()


def participants(
    clients: Sequence[T], share: float, seed: int, round_number: int
) -> list[T]:
    """The clients that train in a round, in client order; at least one."""
    count = max(1, round(share * len(clients)))
    if count == len(clients):
        return list(clients)
    rng = np.random.default_rng([seed, round_number, _SELECTION])
    chosen = rng.choice(len(clients), size=count, replace=False)
    return [clients[i] for i in sorted(chosen)]


@dataclass(frozen=True)
class Tally:
    """The updates of a round after screening, and the bytes that they cost."""

    participants: list[str]
    sound: list[ClientUpdate]
    quarantined: list[Quarantined]
    bytes_up: int
    bytes_down: int


def tally(
    algorithm: Algorithm,
    state: State,
    updates: Sequence[ClientUpdate],
    participants: Sequence[str],
    max_norm_ratio: float = 100.0,
) -> Tally:
    """Screen the updates of the ``participants`` to whom ``state`` was sent.

    Bytes are those of safetensors; a host that counts its own wire replaces them.
    """
    like = algorithm.update_like(state)
    sound, bad = screen(updates, like, max_norm_ratio)
    up = sum(update_bytes(u) for u in updates)
    down = len(participants) * state_bytes(like)
    if not algorithm.communicates:
        up = down = 0
    return Tally(list(participants), sound, bad, up, down)


def train_clients(
    fed: Federation, state: State, clients: Sequence[Client], round_number: int
) -> list[ClientUpdate]:
    """The clients' side of a round: what each of ``clients`` sends back."""
    return fed.algorithm.local_round(state, clients, fed.task, round_number)


def next_state(
    fed: Federation, counted: Tally, state: State, round_number: int
) -> State:
    """The server's side of a round, after screening: the state that follows."""
    return fed.algorithm.aggregate(counted.sound, state, fed.task)


def score_state(fed: Federation, state: State) -> tuple[Scores, float | None]:
    """Accuracies of all clients, and of the held-out target if there is one."""
    clients = score_clients(fed.algorithm, state, fed.clients, fed.task)
    return clients, score_target(fed.algorithm, state, fed.target, fed.task)


def round_result(
    number: int,
    counted: Tally,
    clients: Scores,
    target: float | None,
    seconds: dict[str, float],
) -> RoundResult:
    """The record of a round from its tally and its accuracies."""
    return RoundResult(
        round=number,
        loss=mean([u.metrics.get("loss") for u in counted.sound]),
        target=target,
        clients=clients,
        mean_val=selection_score(clients),
        mean_test=mean([s["test"] for s in clients.values()]),
        participants=counted.participants,
        bytes_up=counted.bytes_up,
        bytes_down=counted.bytes_down,
        quarantined=len(counted.quarantined),
        seconds=seconds,
        left_out=[asdict(q) for q in counted.quarantined],
    )


def run_round(
    fed: Federation, state: State, round_number: int
) -> tuple[State, RoundResult]:
    """One round: local training, screening, aggregation, evaluation."""
    start = time.perf_counter()
    config, seed = fed.task.train, fed.task.seed
    chosen = participants(fed.clients, config.participation, seed, round_number)
    updates = train_clients(fed, state, chosen, round_number)
    names = [c.name for c in chosen]
    counted = tally(fed.algorithm, state, updates, names, config.max_norm_ratio)
    after = next_state(fed, counted, state, round_number)
    trained = time.perf_counter()
    clients, target = score_state(fed, after)
    seconds = {"train": trained - start, "evaluate": time.perf_counter() - trained}
    return after, round_result(round_number, counted, clients, target, seconds)


def advance(progress: Progress, result: RoundResult) -> Progress:
    """Totals after one more round; of equal rounds the first stays the best."""
    better = result.mean_val > progress.best_score
    return Progress(
        round=result.round,
        best_round=result.round if better else progress.best_round,
        best_score=result.mean_val if better else progress.best_score,
        bytes_up=progress.bytes_up + result.bytes_up,
        bytes_down=progress.bytes_down + result.bytes_down,
        quarantined=progress.quarantined + result.quarantined,
        train_seconds=progress.train_seconds + result.seconds["train"],
        evaluate_seconds=progress.evaluate_seconds + result.seconds["evaluate"],
    )


def finished(progress: Progress, train: TrainConfig) -> bool:
    """Whether all rounds are done, or the best one lies ``patience`` rounds back."""
    waited = progress.round - progress.best_round
    patient = train.patience is None or waited < train.patience
    return progress.round >= train.rounds or not patient


@dataclass(frozen=True)
class Standing:
    """A run after a round: progress, the round's result, current and best state."""

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
    asks for the next one, so a killed run repeats at most one round.
    """
    state = best = fed.algorithm.init(fed.task)
    progress = Progress()
    saved = checkpoint.load() if checkpoint else None
    if saved:
        progress, device = saved[0], fed.task.text.device
        state, best = _to(saved[1], device), _to(saved[2], device)
    yield Standing(progress, None, state, best)
    while not finished(progress, fed.task.train):
        number = progress.round + 1
        state, result = run_round(fed, state, number)
        progress = advance(progress, result)
        if progress.best_round == number:
            best = state
        last = finished(progress, fed.task.train)
        yield Standing(progress, result, state, best, last)
        if checkpoint:
            checkpoint.save(progress, state, best)


def _to(state: State, device: torch.device) -> State:
    return {key: value.to(device) for key, value in state.items()}


def as_dict(result: RoundResult) -> dict[str, object]:
    """A line of ``metrics.jsonl``."""
    return asdict(result)
