"""Clients that lie, for the tables of this folder: attacks on federated averaging.

An attack wraps an algorithm by its public hook ``local_round``: the attackers train as
the others do, and send something else.  No part of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import torch

from fedclip_plugin.algorithms import Client, FedClip, Task
from fedclip_plugin.wire.update import ClientUpdate, State

Lie = Callable[[State, State, Sequence[State], torch.Generator, int], State]
"""(own update, what was sent, the honest updates, randomness, clients) -> what is told.

The colluding attacks know the honest updates, which real attackers guess from their
own data: the worst case.
"""


def _scaled(factor: float) -> Lie:
    """The own update, ``factor`` times as long; negative turns it round."""
    return lambda own, sent, *_: {
        key: sent[key] + factor * (value - sent[key]) for key, value in own.items()
    }


def _gaussian(
    own: State, sent: State, honest: object, generator: torch.Generator, count: int
) -> State:
    """Noise in the place of the update: as long as screening by distance allows."""
    length = torch.stack([(own[k] - v).square().sum() for k, v in sent.items()]).sum()
    size = sum(v.numel() for v in sent.values())
    scale = 90 * float(length.sqrt()) / size**0.5
    return {
        key: value + scale * torch.randn(value.shape, generator=generator)
        for key, value in sent.items()
    }


def _little(
    own: State, sent: State, honest: Sequence[State], generator: object, count: int
) -> State:
    """A little is enough (Baruch et al. 2019, arXiv 1902.06156).

    All send the honest mean less z standard deviations, z as large as goes unnoticed
    where the rule trusts a majority.
    """
    attackers = count - len(honest)
    supporters = count // 2 + 1 - attackers
    share = (count - attackers - supporters) / (count - attackers)
    z = NormalDist().inv_cdf(min(max(share, 0.01), 0.99))
    found = {}
    for key in sent:
        rows = torch.stack([h[key] for h in honest])
        found[key] = rows.mean(dim=0) - z * rows.std(dim=0)
    return found


def _inner_product(
    own: State, sent: State, honest: Sequence[State], generator: object, count: int
) -> State:
    """Inner-product manipulation (Xie et al. 2019, arXiv 1903.03936).

    All send the honest mean turned round, and no longer than it is.
    """
    return {
        key: value - torch.stack([h[key] - value for h in honest]).mean(dim=0)
        for key, value in sent.items()
    }


def _nan(own: State, *_: object) -> State:
    return {key: torch.full_like(value, torch.nan) for key, value in own.items()}


def _shapes(own: State, *_: object) -> State:
    return {key: value.reshape(-1)[:-1] for key, value in own.items()}


LIES: dict[str, Lie] = {
    "sign-flip": _scaled(-3.0),
    "scale-10": _scaled(10.0),
    "scale-1e6": _scaled(1e6),
    "gaussian": _gaussian,
    "label-flip": _scaled(1.0),  # what lies is the data, see below
    "little-is-enough": _little,
    "inner-product": _inner_product,
    "nan": _nan,
    "shapes": _shapes,
}


COLLUDING = ("little-is-enough", "inner-product")  # all say the same


def attackers(clients: Sequence[Client], share: float, seed: int) -> frozenset[str]:
    """The names of the clients that lie, drawn by the seed."""
    count = int(share * len(clients) + 0.5)
    rng = np.random.default_rng([seed, 0xBAD])
    chosen = rng.choice(len(clients), size=count, replace=False)
    return frozenset(clients[i].name for i in chosen)


class Attacked(FedClip):
    """FedCLIP with liars among its clients."""

    def __init__(self, attack: str, liars: frozenset[str]) -> None:
        self.attack = attack
        self.liars = liars

    def local_round(
        self, state: State, clients: Sequence[Client], task: Task, round_number: int
    ) -> list[ClientUpdate]:
        """What each client sends, true or not."""
        if self.attack == "label-flip":
            clients = [self._flipped(c, len(task.text)) for c in clients]
        updates = super().local_round(state, clients, task, round_number)
        honest = [u.state for u in updates if u.client not in self.liars]
        generator = torch.Generator().manual_seed(1000 * task.seed + round_number)
        agreed: State = {}

        def told(update: ClientUpdate) -> ClientUpdate:
            nonlocal agreed
            if update.client not in self.liars:
                return update
            if not agreed or self.attack not in COLLUDING:
                agreed = LIES[self.attack](
                    update.state, state, honest, generator, len(updates)
                )
            return replace(update, state=agreed)

        return [told(update) for update in updates]

    def _flipped(self, client: Client, classes: int) -> Client:
        """Class ``i`` is called ``classes - 1 - i``."""
        if client.name not in self.liars:
            return client
        y = classes - 1 - client.train.y
        return replace(client, train=replace(client.train, y=y))
