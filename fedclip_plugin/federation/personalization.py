"""Personalization: after the federation each client makes the adapter its own.

``finetune`` goes on training on the client alone; ``mix`` interpolates between the
shared and the fine-tuned adapter.  How far is decided on the client's validation split,
where the shared adapter wins a tie; so is a client that has no validation rows kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ..algorithms import Algorithm, Client, Samples, Task
from ..data.partition import paper_split
from ..stats import ci95, mean
from ..storage.files import file_names
from ..wire.update import State
from .build import Federation
from .evaluation import predict_labels, zero_shot_labels
from .metrics import accuracy

NEW_CLIENT = "target"
EPOCHS = (1, 2, 4, 8)
SHARES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Personal:
    """One client's choice and what it gives on the test split, as fractions.

    ``choice`` is the number of local epochs, or the share of the fine-tuned adapter;
    0 is the shared adapter as it is.
    """

    client: str
    choice: float
    zero_shot: float | None
    shared: float | None
    personal: float | None


def personalize(
    fed: Federation, shared: State, method: str, keep: Callable[[str, State], None]
) -> dict[str, Any]:
    """What personalization gives every client, and the states that they chose.

    A held-out target counts as a new client: split as the others are, it starts from an
    adapter that never saw it.  Returns what ``summary.json`` holds; ``keep`` gets a
    file's name and the state of client after client, so that one is in memory.
    """
    clients = [*fed.clients, *new_clients(fed)]
    names = file_names([client.name for client in fed.clients], (NEW_CLIENT,))
    results: list[Personal] = []
    for client in clients:
        personal, state = _choose(fed.algorithm, shared, client, fed.task, method)
        new = len(results) >= len(fed.clients)
        keep(NEW_CLIENT if new else names[client.name], state)
        results.append(personal)
    count = len(fed.clients)
    return {
        "method": method,
        "clients": {p.client: _plain(p) for p in results[:count]},
        "new_clients": {p.client: _plain(p) for p in results[count:]},
        **_gains(results[:count]),
    }


def new_clients(fed: Federation) -> list[Client]:
    """The held-out target as a client of its own, split 60/20/20 like the others."""
    if fed.target is None or len(fed.target) == 0:
        return []
    target = fed.target
    split = paper_split(len(target), fed.task.seed)

    index = 1 + max(c.index for c in fed.clients)
    parts = (split.train, split.val, split.test)
    return [
        Client(
            NEW_CLIENT,
            index,
            *(target[torch.from_numpy(p).to(target.y.device)] for p in parts),
            unlabelled=target.x[:0] if fed.algorithm.transductive else None,
        )
    ]


def _plain(personal: Personal) -> dict[str, Any]:
    return {k: v for k, v in asdict(personal).items() if k != "client"}


def _gains(results: list[Personal]) -> dict[str, Any]:
    gains: dict[str, Any] = {}
    for base in ("shared", "zero_shot"):
        each = [
            p.personal - start
            for p in results
            if p.personal is not None and (start := getattr(p, base)) is not None
        ]
        gains[f"gain_over_{base}"] = {"mean": mean(each), "ci95": ci95(each)}
    return gains


def _choose(
    algorithm: Algorithm, shared: State, client: Client, task: Task, method: str
) -> tuple[Personal, State]:
    own = algorithm.client_state(shared, client)

    def score(state: State, part: Samples) -> float | None:
        return accuracy(predict_labels(algorithm, state, part, task), part.y)

    best, choice, best_score = own, 0.0, score(own, client.val)
    if best_score is not None and len(client.train):
        for value, state in _candidates(algorithm, shared, client, task, method):
            reached = score(state, client.val)
            if reached is not None and reached > best_score:
                best, choice, best_score = state, value, reached
    test = client.test
    zero_shot = accuracy(zero_shot_labels(test, task), test.y)
    return (
        Personal(client.name, choice, zero_shot, score(own, test), score(best, test)),
        best,
    )


def _candidates(
    algorithm: Algorithm, shared: State, client: Client, task: Task, method: str
) -> Iterator[tuple[float, State]]:
    def tuned(epochs: int) -> State:
        longer = replace(task, train=replace(task.train, local_epochs=epochs))
        after = task.train.rounds + 1
        update = algorithm.local_train(shared, client, longer, after)
        kept = {**client.kept, **update.kept}
        return algorithm.client_state(update.state, replace(client, kept=kept))

    if method == "finetune":
        for epochs in EPOCHS:
            yield float(epochs), dict(tuned(epochs))
        return
    start, own = algorithm.client_state(shared, client), tuned(EPOCHS[-1])
    for share in SHARES:
        yield share, {k: start.get(k, v).lerp(v, share) for k, v in own.items()}
