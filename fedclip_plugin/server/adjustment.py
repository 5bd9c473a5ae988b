"""Generalisation adjustment: clients weigh more where the shared model falls behind.

Zhang, Xu, Yao, Wang, "Federated Domain Generalization With Generalization Adjustment",
CVPR 2023 (FedDG-GA), for any algorithm.  Client ``i`` measures on its training rows how
much worse the mean of the last round is than the model that it had sent into it, its
gap ``G_i``; then, in round ``r`` of ``R`` (from 0)::

    G_i = loss_i(mean) - loss_i(own)
    a_i <- a_i + (G_i - mean_j G_j) / max_j |G_j - mean_k G_k| * d (1 - r / R)
    a_i <- max(a_i, 0) / sum_j max(a_j, 0)                ``d`` 0.2, at first all alike

The paper has every client in every round.  Here a round shares out anew what its own
voters weigh together; who is away keeps its weight, who is new enters with the mean of
those known, and who tells no gap, or none that is finite, is not adjusted.  A liar's
gap moves its own weight by ``d`` a round at most.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..config.schema import ServerConfig
from ..wire.update import ClientUpdate, State
from .aggregation import voters_of

GAP = "gap"  # the weighting, and the metric that a client sends
WEIGHT = "weight/"
OWN_LOSS = "gap:loss"  # what a client keeps of its last round
LEAST_SPREAD = 1e-6  # of gaps; less is what rounding leaves of equal losses
_log = logging.getLogger("fedclip")


def step_size(config: ServerConfig, round_number: int, rounds: int) -> float:
    """``d (1 - r / R)``: from ``gap_step`` down, never below 0."""
    return config.gap_step * max(0.0, 1 - (round_number - 1) / rounds)


def weighed(
    updates: Sequence[ClientUpdate], memory: State, step: float
) -> tuple[list[ClientUpdate], State]:
    """The updates with their weights in the mean, and the memory with all weights."""
    voters = voters_of(updates)
    if not voters:
        return list(updates), memory
    before = _weights(voters, memory)
    mass = sum(before)
    gaps = [u.metrics.get(GAP, math.nan) for u in voters]
    if not any(map(math.isfinite, gaps)) and any(
        map(memory.__contains__, _keys(voters))
    ):
        _log.warning("no client of the round tells its gap: their weights stay")
    share = adjusted([w / mass for w in before], gaps, step)
    weights = {u.client: w for u, w in zip(voters, share)}
    new = {k: torch.tensor(mass * w, dtype=torch.float64)
           for k, w in zip(_keys(voters), share)}  # fmt: skip
    return [replace(u, weight=weights.get(u.client)) for u in updates], memory | new


def _keys(voters: Sequence[ClientUpdate]) -> list[str]:
    return [WEIGHT + u.client for u in voters]


def _weights(voters: Sequence[ClientUpdate], memory: State) -> list[float]:
    """What each weighs so far; all alike where nothing is left of any."""
    former = [float(v) for k, v in sorted(memory.items()) if k.startswith(WEIGHT)]
    usual = sum(former) / len(former) if former else 1 / len(voters)
    weights = [float(memory.get(k, usual)) for k in _keys(voters)]
    return weights if sum(weights) > 0 else [1 / len(voters)] * len(voters)


def adjusted(
    weights: Sequence[float], gaps: Sequence[float], step: float
) -> list[float]:
    """``weights``, of sum 1, moved by the finite ``gaps``; of sum 1."""
    finite = [g for g in gaps if math.isfinite(g)]
    middle = sum(finite) / len(finite) if finite else 0.0
    if not math.isfinite(middle):
        return list(weights)  # absurd gaps: their sum overflows
    largest = max((abs(g - middle) for g in finite), default=0.0)
    if largest <= LEAST_SPREAD:
        return list(weights)
    moved = [
        max(0.0, w + (g - middle) / largest * step) if math.isfinite(g) else w
        for w, g in zip(weights, gaps)
    ]
    total = sum(moved)
    return [w / total for w in moved] if total > 0 else list(weights)


def misfit(memory: State) -> str | None:
    """Which remembered weight is not a number of at least 0, if any."""
    for name, value in memory.items():
        if name.startswith(WEIGHT) and (
            value.shape != () or not 0 <= float(value) < math.inf
        ):
            return f"memory/{name} is not a weight"
    return None
