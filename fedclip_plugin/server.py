"""The server's side: screening, weighting and averaging of client updates.

Published rule (Lu et al. 2023, eq. 5; ``fed_at_clip.py: communication``): the uniform
mean of the participating clients' adapters.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from . import ops
from .update import ClientUpdate, State

_log = logging.getLogger("fedclip")


@dataclass(frozen=True)
class Quarantined:
    """An update that was left out, and why."""

    client: str
    reason: str


def screen(
    updates: Sequence[ClientUpdate], expected: State
) -> tuple[list[ClientUpdate], list[Quarantined]]:
    """Split updates into sound ones and quarantined ones.

    ``expected`` is the state that was sent out: an update must have its keys, shapes
    and dtypes, and finite values.  A bad update never stops the round.
    """
    sound, bad = [], []
    for update in updates:
        reason = _fault(update, expected)
        if reason is None:
            sound.append(update)
        else:
            bad.append(Quarantined(update.client, reason))
            _log.warning("update of client %s left out: %s", update.client, reason)
    return sound, bad


def _fault(update: ClientUpdate, expected: State) -> str | None:
    if set(update.state) != set(expected):
        return f"keys {sorted(update.state)}, expected {sorted(expected)}"
    for key, want in expected.items():
        got = update.state[key]
        if got.shape != want.shape or got.dtype != want.dtype:
            return (
                f"{key} is {tuple(got.shape)} {got.dtype}, "
                f"expected {tuple(want.shape)} {want.dtype}"
            )
        if not bool(torch.isfinite(got).all()):
            return f"{key} holds NaN or Inf"
    if update.num_examples < 0:
        return f"num_examples is {update.num_examples}"
    return None


def average(
    updates: Sequence[ClientUpdate], state: State, weighting: str = "uniform"
) -> State:
    """Weighted mean of the updates' states, in the order of the clients' names.

    ``weighting`` is ``uniform`` (as published) or ``examples``.  Clients without a
    training row say nothing and are left out; with none left the ``state`` that was
    sent out stays.  The order of arrival does not matter: same bits.
    """
    voters = sorted((u for u in updates if u.num_examples > 0), key=lambda u: u.client)
    if not voters:
        return state
    weights = torch.tensor(
        [1.0 if weighting == "uniform" else float(u.num_examples) for u in voters]
    )
    return {
        key: ops.weighted_mean([u.state[key] for u in voters], weights) for key in state
    }
