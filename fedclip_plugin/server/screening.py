"""Screening: the updates that may enter the aggregation.  On by default."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..config.schema import ServerConfig
from ..storage.shapes import MOST_COUNT
from ..wire.compression import PLAIN, fault, payload_squares
from ..wire.spool import in_turn, portions
from ..wire.update import ClientUpdate, State

_log = logging.getLogger("fedclip")


@dataclass(frozen=True)
class Quarantined:
    """An update that was left out, why, and the distances that decided it, if any."""

    client: str
    reason: str
    norm: float | None = None
    median_norm: float | None = None


def screen(
    updates: Sequence[ClientUpdate],
    expected: State,
    max_norm_ratio: float = ServerConfig.max_norm_ratio,
) -> tuple[list[ClientUpdate], list[Quarantined]]:
    """Split updates into screened and quarantined ones.

    ``expected`` is the state that was sent out: an update must have its keys, shapes
    and dtypes, finite values, and must not be farther from it (L2) than
    ``max_norm_ratio`` times the round's median update; 0 allows any distance.  A bad
    update never stops the round.
    """
    finite: list[tuple[ClientUpdate, float]] = []
    bad, fitting = [], []
    for update in in_turn(updates):
        reason = _fault(update, expected)
        if reason is None:
            fitting.append(update)
        else:
            bad.append(Quarantined(update.client, reason))
    for update, distance in zip(fitting, distances(fitting, expected)):
        if math.isfinite(distance):
            finite.append((update, distance))
        else:
            bad.append(Quarantined(update.client, _not_finite(update.state)))
    near, far = _by_distance(finite, max_norm_ratio)
    for quarantined in (*bad, *far):
        _log.warning(
            "update of client %s left out: %s", quarantined.client, quarantined.reason
        )
    return near, [*bad, *far]


def _fault(update: ClientUpdate, expected: State) -> str | None:
    if not 0 <= update.num_examples <= MOST_COUNT:
        return f"num_examples is {update.num_examples}"
    if update.codec != PLAIN:
        return fault(update.codec, update.state, expected)
    if set(update.state) != set(expected):
        return f"keys {sorted(update.state)}, expected {sorted(expected)}"
    for key, want in expected.items():
        got = update.state[key]
        if got.shape != want.shape or got.dtype != want.dtype:
            return (
                f"{key} is {tuple(got.shape)} {got.dtype}, "
                f"expected {tuple(want.shape)} {want.dtype}"
            )
    return None


def distances(updates: Sequence[ClientUpdate], expected: State) -> list[float]:
    """L2 distances over all tensors; NaN or infinite where a value is.

    Those of compressed updates are computed on the payloads.
    """
    by_place: dict[int, float] = {}
    for codec in sorted({u.codec for u in updates}):
        places = [i for i, u in enumerate(updates) if u.codec == codec]
        squares = _plain_squares if codec == PLAIN else payload_squares
        coded = [updates[i] for i in places]
        total = torch.cat([squares(part, expected) for part in portions(coded)])
        by_place.update(zip(places, total.sqrt().tolist()))
    return [by_place[i] for i in range(len(updates))]


def _plain_squares(updates: Sequence[ClientUpdate], expected: State) -> Tensor:
    total = torch.zeros(len(updates), dtype=torch.float64)
    for key, origin in expected.items():
        total += ops.squared_distances([u.state[key] for u in updates], origin).cpu()
    return total


def _not_finite(state: State) -> str:
    for key, value in state.items():
        if not bool(torch.isfinite(value).all()):
            return f"{key} holds NaN or Inf"
    return "its values are so large that their squares overflow"


def _by_distance(
    finite: Sequence[tuple[ClientUpdate, float]], ratio: float
) -> tuple[list[ClientUpdate], list[Quarantined]]:
    distances = sorted(d for u, d in finite if u.num_examples > 0)
    # the lower of two middle ones: of two updates the larger is the absurd one
    median = distances[(len(distances) - 1) // 2] if distances else 0.0
    near, far = [], []
    for update, distance in finite:
        if ratio and median > 0 and distance > ratio * median:
            reason = (
                f"it moved {distance:.3g} from what was sent, "
                f"{distance / median:.3g} times the round's median"
            )
            far.append(Quarantined(update.client, reason, distance, median))
        else:
            near.append(update)
    return near, far
