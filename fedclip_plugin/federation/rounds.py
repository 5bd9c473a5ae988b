"""One round in its parts, the same for the embedded engine and for every host."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..algorithms import Algorithm, Client
from ..config.schema import TrainConfig
from ..server import privacy
from ..server.screening import Quarantined, screen
from ..stats import mean
from ..wire import compression
from ..wire.message import state_bytes, update_bytes
from ..wire.update import ClientUpdate, State, private_states
from . import downlink
from .build import Federation, participants
from .downlink import Broadcast
from .evaluation import score_clients, score_target, selection_score

Scores = dict[str, dict[str, float | None]]
"""Client -> its validation and test accuracy, ``{"val", "test"}``."""


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


@dataclass(frozen=True)
class Tally:
    """The updates of a round after screening, the bytes that they cost, and what was
    sent to get them."""

    participants: list[str]
    sound: list[ClientUpdate]
    quarantined: list[Quarantined]
    bytes_up: int
    bytes_down: int
    sent: Broadcast


def tally(
    fed: Federation,
    sent: Broadcast,
    updates: Sequence[ClientUpdate],
    participants: Sequence[str],
) -> Tally:
    """Screen the updates of the ``participants`` who answered what was ``sent``.

    Bytes are those of safetensors; a host that counts its own wire replaces them.
    """
    sound, bad = screen(updates, sent.seen, fed.task.train.distance_limit)
    up = sum(update_bytes(u) for u in updates)
    down = len(participants) * state_bytes(sent.payload)
    if not fed.algorithm.communicates:
        up = down = 0
    return Tally(list(participants), sound, bad, up, down, sent)


def train_clients(
    fed: Federation, state: State, clients: Sequence[Client], round_number: int
) -> list[ClientUpdate]:
    """The clients' side of a round: what each of ``clients`` sends back.

    ``state`` is what they see of the server's, with what they kept for themselves
    beside it (``<client>/<key>``); what they keep now is in the updates' ``private``.
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
    """The server's side of a round, after screening: what follows on its ``state``.

    What clients keep for themselves, where ``state`` holds it, stays as it is.
    """
    train, seed, sound = fed.task.train, fed.task.seed, counted.sound
    if not sound and not train.private:
        return dict(state)
    sent = counted.sent.seen
    if train.private or type(fed.algorithm).aggregate is not Algorithm.aggregate:
        sound = compression.decoded(sound, sent)
    if train.private:
        asked = len(counted.participants)
        entropy = privacy.noise_entropy(train, seed, round_number)
        sound = [privacy.private_update(sound, sent, train, asked, entropy)]
    after = fed.algorithm.aggregate(sound, {**state, **sent}, fed.task)
    return {**state, **downlink.carried(fed, after, state, counted.sent)}


def shared_state(fed: Federation, state: State) -> State:
    """What clients see of the server's ``state``; all of it, if nothing is shared."""
    if not fed.algorithm.communicates:
        return state
    return downlink.broadcast(fed, state).seen


def score_state(fed: Federation, state: State) -> tuple[Scores, float | None]:
    """Accuracies of all clients, and of the held-out target if there is one.

    ``state`` is one that :func:`shared_state` gave.
    """
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
    return score_state(fed, shared_state(fed, state))


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
    sent = downlink.broadcast(fed, state)
    updates = train_clients(fed, {**state, **sent.seen}, chosen, round_number)
    counted = tally(fed, sent, updates, [c.name for c in chosen])
    after = next_state(fed, counted, state, round_number)
    after |= private_states(updates)
    trained = time.perf_counter()
    clients, target = score_round(fed, after, round_number)
    seconds = {"train": trained - start, "evaluate": time.perf_counter() - trained}
    return after, round_result(round_number, counted, clients, target, seconds)
