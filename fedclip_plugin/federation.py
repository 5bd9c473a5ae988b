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

from . import compression, privacy
from .algorithms import Algorithm, Client, Samples, Task, get_algorithm
from .checkpoint import Checkpoint, Progress
from .config import RunConfig, TrainConfig, to_toml
from .device import resolve_device
from .errors import ConfigError
from .evaluation import (
    score_clients,
    score_target,
    selection_score,
)
from .features import FeatureSet
from .means import mean
from .partition import partition_clients
from .screening import Quarantined, screen
from .update import ClientUpdate, State, private_states
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
    """What one round did; bytes and seconds are of this round alone.

    ``clients`` is empty, and ``mean_val`` None, where nobody was scored.
    """

    round: int
    loss: float | None
    target: float | None
    clients: Scores
    mean_val: float | None
    mean_test: float | None
    participants: list[str]
    bytes_up: int
    bytes_down: int
    quarantined: int
    seconds: dict[str, float]
    left_out: list[dict[str, Any]] = field(default_factory=list)
    epsilon: float | None = None  # of all rounds so far, where there is privacy


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
    if config.train.private and not algorithm.communicates:
        raise ConfigError(
            f"--alg {config.algorithm} sends nothing to a server: there is nothing "
            "that --dp-noise-multiplier could hide"
        )
    device = resolve_device(config.model.device)
    labels = {d: features.label[d].numpy() for d in features.domains}
    held = partition_clients(labels, config.data, target, seed)
    parts = _share_out(
        features, [p for c in held for p in (c.train, c.val, c.test)], device
    )
    clients = tuple(
        Client(c.name, c.index, *parts[3 * i : 3 * i + 3]) for i, c in enumerate(held)
    )
    text = features.class_text.to(device)
    task = Task(text, features.logit_scale, config.train, seed, clip)
    return Federation(algorithm, task, clients, _target(features, target, device))


def _share_out(
    features: FeatureSet, parts: Sequence[npt.NDArray[np.int64]], device: torch.device
) -> list[Samples]:
    """The rows of every part; slices of one tensor, however many parts there are."""
    sizes = torch.tensor([len(part) for part in parts])
    part_of = torch.repeat_interleave(torch.arange(len(parts)), sizes)
    rows = features.domain_order(torch.from_numpy(np.concatenate(parts)), part_of)
    x, y = features.rows(rows)
    slices = (t.to(device).split(sizes.tolist()) for t in (x, y, rows))
    return [Samples(*tensors) for tensors in zip(*slices)]


def _target(
    features: FeatureSet, target: str | None, device: torch.device
) -> Samples | None:
    """All rows of the held-out domain."""
    if target is None:
        return None
    before = features.domains[: features.domains.index(target)]
    first, y = sum(len(features.label[d]) for d in before), features.label[target]
    rows = torch.arange(first, first + len(y))
    x = features.image[target]
    return Samples(x.to(device), y.to(device), rows.to(device))


def identity(features: FeatureSet, config: RunConfig, target: str | None) -> str:
    """What a checkpoint belongs to; the number of rounds may grow."""
    train = replace(config.train, rounds=1, dp_epsilon_budget=None)
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
    """The clients' side of a round: what each of ``clients`` sends back.

    ``state`` is what the server sent, with what the clients kept for themselves beside
    it (``<client>/<key>``); what they keep now is in the updates' ``private``.
    """
    return as_sent(fed, state, local_updates(fed, state, clients, round_number))


def local_updates(
    fed: Federation, state: State, clients: Sequence[Client], round_number: int
) -> list[ClientUpdate]:
    """The first half of :func:`train_clients`: what local training gives."""
    known = compression.without_residuals(state)
    return fed.algorithm.local_round(known, clients, fed.task, round_number)


def as_sent(
    fed: Federation, state: State, updates: Sequence[ClientUpdate]
) -> list[ClientUpdate]:
    """The second half: updates as they travel, compressed where that is asked."""
    if not fed.algorithm.communicates:
        return list(updates)
    sent = fed.algorithm.update_like(state)
    return compression.compress(updates, state, sent, fed.task.train)


def next_state(
    fed: Federation, counted: Tally, state: State, round_number: int
) -> State:
    """The server's side of a round, after screening: the state that follows.

    What clients keep for themselves, where ``state`` holds it, stays as it is.
    """
    train, seed, sound = fed.task.train, fed.task.seed, counted.sound
    sent = fed.algorithm.update_like(state)
    if train.private or type(fed.algorithm).aggregate is not Algorithm.aggregate:
        sound = compression.decoded(sound, sent)
    if train.private:
        asked = len(counted.participants)
        entropy = privacy.noise_entropy(train, seed, round_number)
        sound = [privacy.private_update(sound, sent, train, asked, entropy)]
    return {**state, **fed.algorithm.aggregate(sound, state, fed.task)}


def shared_state(fed: Federation, state: State) -> State:
    """``state`` without what clients keep for themselves, if anything is shared."""
    return fed.algorithm.update_like(state) if fed.algorithm.communicates else state


def score_state(fed: Federation, state: State) -> tuple[Scores, float | None]:
    """Accuracies of all clients, and of the held-out target if there is one."""
    state = shared_state(fed, state)
    clients = score_clients(fed.algorithm, state, fed.clients, fed.task)
    return clients, score_target(fed.algorithm, state, fed.target, fed.task)


def scored(train: TrainConfig, round_number: int) -> bool:
    """Whether a round ends with scores: every ``eval_every``-th does, and the last."""
    return round_number % train.eval_every == 0 or round_number >= train.rounds


def score_round(
    fed: Federation, state: State, round_number: int
) -> tuple[Scores, float | None]:
    """:func:`score_state` in the rounds that are scored; nothing in the others."""
    if not scored(fed.task.train, round_number):
        return {}, None
    return score_state(fed, state)


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
        mean_val=selection_score(clients) if clients else None,
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
    config = fed.task.train
    seed = privacy.drawing_seed(config, fed.task.seed)
    chosen = participants(fed.clients, config.participation, seed, round_number)
    updates = train_clients(fed, state, chosen, round_number)
    names = [c.name for c in chosen]
    counted = tally(fed.algorithm, state, updates, names, config.distance_limit)
    after = next_state(fed, counted, state, round_number)
    after |= private_states(updates)
    trained = time.perf_counter()
    clients, target = score_round(fed, after, round_number)
    seconds = {"train": trained - start, "evaluate": time.perf_counter() - trained}
    return after, round_result(round_number, counted, clients, target, seconds)


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
    state = best = fed.algorithm.init(fed.task)
    progress = Progress()
    saved = checkpoint.load() if checkpoint else None
    if saved:
        progress, device = saved[0], fed.task.text.device
        state = _to(saved[1], device)
        best = shared_state(fed, _to(saved[2], device))
    yield Standing(progress, None, state, best)
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


def _within_budget(fed: Federation) -> Federation:
    train, count = fed.task.train, len(fed.clients)
    if not train.private:
        return fed
    asked = len(participants(fed.clients, train.participation, 0, 1))
    train = privacy.within_budget(train, count, asked)
    return replace(fed, task=replace(fed.task, train=train))


def _to(state: State, device: torch.device) -> State:
    return {key: value.to(device) for key, value in state.items()}


def as_dict(result: RoundResult) -> dict[str, object]:
    """A line of ``metrics.jsonl``; ``epsilon`` only where there is one."""
    line = asdict(result)
    if result.epsilon is None:
        del line["epsilon"]
    return line
