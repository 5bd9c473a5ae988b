"""The parts of a round, the same for the embedded loop and for every host."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from ..algorithms import Algorithm, Client
from ..config.schema import TrainConfig
from ..server import adjustment, optimizer, privacy
from ..server.screening import Quarantined, screen
from ..stats import mean
from ..wire import compression
from ..wire.codec import is_finite
from ..wire.message import state_bytes, update_bytes
from ..wire.spool import AT_ONCE, in_turn, spool_for
from ..wire.update import ClientUpdate, State, private_part
from . import downlink
from .build import Federation
from .downlink import Broadcast
from .evaluation import (
    score_clients,
    score_rows,
    score_target,
    selection_score,
)

_log = logging.getLogger("fedclip")

Scores = dict[str, dict[str, float | None]]
"""Client -> its validation and test accuracy, ``{"val", "test"}``, and ``selection``
where the best round is chosen by something else."""


@dataclass(frozen=True)
class RoundResult:
    """What one round did; bytes and seconds are of this round alone.

    ``clients`` is empty, and ``mean_val`` None, where nobody was scored.  ``selection``
    is name -> the clients' mean of what the best round is chosen by, if not accuracy.
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
    selection: dict[str, float | None] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """What the best round is chosen by."""
        return next(iter(self.selection.values()), self.mean_val)

    def as_dict(self) -> dict[str, Any]:
        """A line of ``metrics.jsonl``; ``epsilon`` only where there is one."""
        line = asdict(self)
        if self.epsilon is None:
            del line["epsilon"]
        if not self.selection:
            del line["selection"]
        return line


@dataclass(frozen=True)
class Screened:
    """The updates of a round after screening, and the bytes that they cost.

    ``participants`` are all clients that ``sent`` went to, also who did not answer.
    """

    participants: list[str]
    sound: list[ClientUpdate]
    quarantined: list[Quarantined]
    bytes_up: int
    bytes_down: int
    sent: Broadcast


# ------------------------------------------------------------------ the clients' side


def train_clients(
    fed: Federation, seen: State, clients: Sequence[Client], round_number: int
) -> list[ClientUpdate]:
    """What each of ``clients`` sends back to a server whose state they ``seen``.

    What they keep now is in the updates' ``kept``.  Updates that are too many for the
    memory wait on the disk (``wire/spool.py``).
    """
    spool = None
    if fed.algorithm.communicates:
        like = fed.algorithm.answer_like(seen, fed.task)
        spool = spool_for(len(clients), like, fed.task.text.device)
    if spool is None:
        return _trained(fed, seen, clients, round_number)
    updates: list[ClientUpdate] = []
    for start in range(0, len(clients), AT_ONCE):
        part = clients[start : start + AT_ONCE]
        updates += spool.keep(_trained(fed, seen, part, round_number))
    fed.task.pool.let_go()
    return updates


def _trained(
    fed: Federation, seen: State, clients: Sequence[Client], round_number: int
) -> list[ClientUpdate]:
    updates = fed.algorithm.local_round(seen, clients, fed.task, round_number)
    updates = measured(fed, seen, clients, updates)
    return as_sent(fed, seen, updates, {c.name: c.kept for c in clients})


def measured(
    fed: Federation,
    seen: State,
    clients: Sequence[Client],
    updates: Sequence[ClientUpdate],
) -> list[ClientUpdate]:
    """What ``clients`` made of what they ``seen``, with their gaps where these weigh.

    A client keeps the loss of its own model, to compare the next mean with.
    """
    if fed.task.server.weighting != adjustment.GAP:
        return list(updates)
    return [_with_gap(fed, seen, c, u) for c, u in zip(clients, updates)]


def _with_gap(
    fed: Federation, seen: State, client: Client, update: ClientUpdate
) -> ClientUpdate:
    rows, metrics = client.train, dict(update.metrics)
    before = client.kept.get(adjustment.OWN_LOSS)
    if before is not None:
        shared, _ = score_rows(fed, fed.algorithm.client_state(seen, client), rows)
        metrics[adjustment.GAP] = shared - float(before)
    after = replace(client, kept={**client.kept, **update.kept})
    own = fed.algorithm.client_state(dict(update.state), after)
    loss, _ = score_rows(fed, own, rows)
    if not math.isfinite(loss):
        return replace(update, metrics=metrics)
    told = torch.tensor(loss, dtype=torch.float64)
    kept = {**update.kept, adjustment.OWN_LOSS: told}
    return replace(update, metrics=metrics, kept=kept)


def as_sent(
    fed: Federation,
    seen: State,
    updates: Sequence[ClientUpdate],
    kept: Mapping[str, State],
) -> list[ClientUpdate]:
    """What local training gave, as it travels: compressed where that is asked.

    A client whose training ended in NaN or Inf goes on with the private state that it
    had: it cannot know what the server will leave out.
    """
    if not fed.algorithm.communicates:
        return list(updates)
    if fed.algorithm.personal:
        updates = [u if _is_sound(u) else _without_private(u) for u in updates]
    like = fed.algorithm.answer_like(seen, fed.task)
    return compression.compress(updates, kept, like, fed.task.wire)


def _is_sound(update: ClientUpdate) -> bool:
    values = (*update.state.values(), *private_part(update.kept).values())
    return all(map(is_finite, values))


def _without_private(update: ClientUpdate) -> ClientUpdate:
    private = private_part(update.kept)
    kept = {key: value for key, value in update.kept.items() if key not in private}
    return replace(update, kept=kept)


# ------------------------------------------------------------------- the server's side


def screen_round(
    fed: Federation,
    sent: Broadcast,
    updates: Sequence[ClientUpdate],
    participants: Sequence[str],
) -> Screened:
    """Screen the updates of the ``participants`` who answered what was ``sent``.

    Bytes are those of safetensors; a host that counts its own wire replaces them.
    """
    sound, bad = screen(updates, sent.answer, fed.task.distance_limit)
    if type(fed.algorithm).doubt is not Algorithm.doubt:
        sound, doubted = _without_doubt(fed.algorithm, sound, sent.answer)
        bad += doubted
    up = sum(update_bytes(u) for u in updates)
    down = len(participants) * state_bytes(sent.payload)
    if not fed.algorithm.communicates:
        up = down = 0
    return Screened(list(participants), sound, bad, up, down, sent)


def _without_doubt(
    algorithm: Algorithm, updates: Sequence[ClientUpdate], seen: State
) -> tuple[list[ClientUpdate], list[Quarantined]]:
    """Updates that an honest client can have sent, and those that none can."""
    sound, bad = [], []
    for update in in_turn(updates):
        (plain,) = compression.decoded([update], seen)
        reason = algorithm.doubt(replace(plain, codec=update.codec), seen)
        if reason is None:
            sound.append(update)
        else:
            _log.warning("update of client %s left out: %s", update.client, reason)
            bad.append(Quarantined(update.client, reason))
    return sound, bad


def next_state(
    fed: Federation,
    screened: Screened,
    state: State,
    round_number: int,
    memory: State | None = None,
) -> tuple[State, State]:
    """What follows on the server's ``state`` from a round's screened updates.

    ``memory`` is what the server remembers of earlier rounds; returned with the state.
    """
    config, sound, sent = fed.task.privacy, screened.sound, screened.sent
    memory = memory or {}
    if not sound and not config.private:
        return dict(state), memory
    if config.private or type(fed.algorithm).aggregate is not Algorithm.aggregate:
        sound = compression.decoded(sound, sent.answer)
    if config.private:
        entropy = privacy.noise_entropy(config, fed.task.seed, round_number)
        asked = len(screened.participants)
        sound = [privacy.private_update(sound, sent.seen, config, asked, entropy)]
    server, rounds = fed.task.server, fed.task.train.rounds
    if server.weighting == adjustment.GAP:
        step = adjustment.step_size(server, round_number, rounds)
        sound, memory = adjustment.weighed(sound, memory, step)
    after = fed.algorithm.aggregate(sound, {**state, **sent.seen}, fed.task)
    return stepped(fed, after, state, sent, memory)


def stepped(
    fed: Federation, after: State, state: State, sent: Broadcast, memory: State
) -> tuple[State, State]:
    """The server's step from its ``state`` towards the mean ``after``; its memory."""
    after, memory = optimizer.step(after, sent.seen, memory, fed.task.server)
    return {**state, **downlink.with_unsent(fed, after, state, sent)}, memory


def score_state(fed: Federation, state: State) -> tuple[Scores, float | None]:
    """Accuracies of all clients, and of the held-out target if there is one.

    ``state`` is what clients see of the server's.
    """
    clients = score_clients(fed.algorithm, state, fed.clients, fed.task)
    return clients, score_target(
        fed.algorithm, state, fed.target, fed.task, fed.clients
    )


def scored(train: TrainConfig, round_number: int) -> bool:
    """Whether a round ends with scores: every ``eval_every``-th does, and the last."""
    return round_number % train.eval_every == 0 or round_number >= train.rounds


def round_result(
    number: int,
    screened: Screened,
    clients: Scores,
    target: float | None,
    seconds: dict[str, float],
    select_by: str = "accuracy",
) -> RoundResult:
    """The record of a round from its screened updates and its accuracies."""
    selection = {select_by: selection_score(clients, select_by)}
    return RoundResult(
        round=number,
        loss=mean([u.metrics.get("loss") for u in screened.sound]),
        target=target,
        clients=clients,
        mean_val=selection_score(clients),
        mean_test=mean([s["test"] for s in clients.values()]),
        participants=screened.participants,
        bytes_up=screened.bytes_up,
        bytes_down=screened.bytes_down,
        quarantined=len(screened.quarantined),
        seconds=seconds,
        left_out=[asdict(q) for q in screened.quarantined],
        selection={} if select_by == "accuracy" else selection,
    )
