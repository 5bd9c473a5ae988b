"""Aggregation: the mean, and robust rules for when clients may lie.

Each rule takes the states in client order and the state that was sent; below its
breakdown point, a share of attackers, no attacker can move the result without bound.

=================  ==============================================================
``median``         per coordinate (Yin et al. 2018, arXiv 1803.01498); below 1/2
``trimmed-mean``   per coordinate, a share cut at both ends (ibid.); below that share
``krum``           the update nearest its neighbours (Blanchard et al. 2017,
                   arXiv 1703.02757); n > 2 f + 2
``multi-krum``     the mean of the n - f best of them
``geometric-median``  least sum of distances (Pillutla et al. 2019,
                   arXiv 1912.13445); below 1/2
``clipped-mean``   mean of the updates cut to the median length; bounds what one
                   attacker can do, but is pulled by many
=================  ==============================================================

All but the first two need only the Gram matrix of the updates, and end in one weighted
mean.  Updates that lie on the disk (``wire/spool.py``) are read in client order, a few
at a time, or some coordinates of all; only the Gram matrix grows with all pairs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .. import ops
from ..config.schema import ServerConfig
from ..wire.compression import PLAIN, decoded
from ..wire.compression import mean as coded_mean
from ..wire.spool import PART_BYTES, gathered, let_go, on_disk, portions
from ..wire.update import ClientUpdate, State


def aggregate(
    updates: Sequence[ClientUpdate], state: State, server: ServerConfig
) -> State:
    """The next state, from updates of ``state``, in the order of the clients' names.

    ``server.weighting`` is ``uniform`` (as published) or ``examples``, unless the
    updates have a ``weight``;
    ``server.aggregation`` the mean or a robust rule.  Clients without training rows are
    left out; with none left the ``state`` that was sent out stays.  The
    order of arrival does not matter: same bits.  The mean of compressed updates is
    taken without decoding them first.
    """
    voters = voters_of(updates)
    if not voters or not state:
        return state
    weights = vote_weights(voters, server)
    coded = {u.codec for u in voters}
    if server.aggregation == "mean" and len(coded) == 1 and PLAIN not in coded:
        return coded_mean(voters, weights, state)
    voters = decoded(voters, state)
    states = [{key: u.state[key] for key in state} for u in voters]
    return combine(server.aggregation, states, weights, state, server.byzantine)


def voters_of(updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
    """The updates that count, by their clients' names: those with training rows."""
    return sorted((u for u in updates if u.num_examples > 0), key=lambda u: u.client)


def vote_weights(voters: Sequence[ClientUpdate], server: ServerConfig) -> Tensor:
    """How much each counts in the mean, (K,) float32."""
    uniform = server.weighting == "uniform"
    usual = [1.0 if uniform else float(u.num_examples) for u in voters]
    return torch.tensor(
        [w if u.weight is None else u.weight for u, w in zip(voters, usual)]
    )


_log = logging.getLogger("fedclip")
COLUMNS = 1 << 16  # coordinates at a time: bounds memory
ITERATIONS = 100
TOLERANCE = 1e-10


def combine(
    rule: str,
    states: Sequence[State],
    weights: Tensor,
    sent: State,
    byzantine: float,
) -> State:
    """The aggregate of ``states`` by ``rule``, one of :data:`RULES` or ``mean``.

    ``weights`` (K,) are non-negative; the rules per coordinate and ``krum`` ignore
    them.  ``byzantine`` is the assumed share of attackers.
    """
    if rule == "mean" or len(states) == 1:
        return mean(states, weights)
    return RULES[rule](states, weights.double(), sent, byzantine)


def mean(states: Sequence[State], weights: Tensor) -> State:
    """Weighted mean, one call of the kernel a tensor; of spooled ones, group by group.

    The same bits.
    """
    if on_disk() and len(states) > ops.GROUP:
        return _mean_in_groups(states, weights)
    return {
        key: ops.weighted_mean([s[key] for s in states], weights) for key in states[0]
    }


def _mean_in_groups(states: Sequence[State], weights: Tensor) -> State:
    shares = ops.shares_of(weights.cpu())
    totals: State = {}
    for first in range(0, len(states), ops.GROUP):
        part = slice(first, first + ops.GROUP)
        for key in states[0]:
            group = ops.group_sum([s[key] for s in states[part]], shares[part]).double()
            totals[key] = totals[key].add_(group) if first else group
        let_go()
    return {key: totals[key].to(value.dtype) for key, value in states[0].items()}


def median(
    states: Sequence[State], weights: Tensor, sent: State, byzantine: float
) -> State:
    """Median of every coordinate; of an even number the mean of the middle two."""
    low, high = (len(states) - 1) // 2, len(states) // 2 + 1
    return _sorted_mean(states, low, high)


def trimmed_mean(
    states: Sequence[State], weights: Tensor, sent: State, byzantine: float
) -> State:
    """Mean of every coordinate without the lowest and highest ``byzantine`` share."""
    cut = min(attackers(len(states), byzantine), (len(states) - 1) // 2)
    return _sorted_mean(states, cut, len(states) - cut)


def attackers(count: int, byzantine: float) -> int:
    """How many of ``count`` clients are assumed to be attackers."""
    return int(byzantine * count + 0.5)


def _sorted_mean(states: Sequence[State], low: int, high: int) -> State:
    """Mean of the order statistics ``low`` to ``high`` (excluded), per coordinate."""

    def one(parts: Sequence[Tensor]) -> Tensor:
        flat = [p.reshape(-1) for p in parts]
        chunks = []
        step = _columns(len(flat))
        for start in range(0, max(1, len(flat[0])), step):
            rows = gathered([f[start : start + step] for f in flat])  # (K, c)
            middle = _sorted(rows)[low:high]
            chunks.append(middle.double().mean(dim=0).to(rows.dtype))
        return torch.cat(chunks).reshape(parts[0].shape)

    return {key: one([s[key] for s in states]) for key in states[0]}


def _columns(count: int) -> int:
    """Coordinates of ``count`` updates to take at a time."""
    return max(1, min(COLUMNS, PART_BYTES // (4 * count))) if on_disk() else COLUMNS


def _sorted(rows: Tensor) -> Tensor:
    """``rows`` (K, c) with every column in order; NumPy's sort is four times faster."""
    if rows.device.type == "cpu" and rows.dtype == torch.float32:
        return torch.from_numpy(np.sort(rows.numpy(), axis=0))
    return rows.sort(dim=0).values


def gram(states: Sequence[State], sent: State) -> Tensor:
    """(K, K) float64 inner products of the updates ``state - sent``, on the CPU."""
    total = torch.zeros(len(states), len(states), dtype=torch.float64)
    if on_disk():
        _log.warning(
            "the rule compares all pairs of %d updates: %.1f GB of memory",
            len(states), 3 * total.nbytes / 1e9,
        )  # fmt: skip
    step = _columns(len(states))
    for key, start in sent.items():
        origin = start.reshape(-1)
        for i in range(0, len(origin), step):
            part = slice(i, i + step)
            rows = gathered([s[key].reshape(-1)[part] for s in states])
            rows = (rows - origin[part]).double()  # (K, c)
            total += (rows @ rows.t()).cpu()
    return total


def _krum_order(states: Sequence[State], sent: State, byzantine: float) -> Tensor:
    """Clients from the best score to the worst; of equals the first."""
    products = gram(states, sent)
    squares = products.diagonal()
    distances = (squares[:, None] + squares - 2 * products).clamp_min(0)
    distances.fill_diagonal_(torch.inf)
    near = max(1, len(states) - attackers(len(states), byzantine) - 2)
    near = min(near, len(states) - 1)
    return distances.sort(dim=1).values[:, :near].sum(dim=1).argsort(stable=True)


def krum(
    states: Sequence[State], weights: Tensor, sent: State, byzantine: float
) -> State:
    """The one update with the least sum of squared distances to its neighbours."""
    best = int(_krum_order(states, sent, byzantine)[0])
    return dict(states[best])


def multi_krum(
    states: Sequence[State], weights: Tensor, sent: State, byzantine: float
) -> State:
    """Mean of the updates with the best Krum scores, as many as are assumed honest."""
    keep = max(1, len(states) - attackers(len(states), byzantine))
    chosen = sorted(_krum_order(states, sent, byzantine)[:keep].tolist())
    return mean([states[i] for i in chosen], weights[chosen])


def geometric_median(
    states: Sequence[State], weights: Tensor, sent: State, byzantine: float
) -> State:
    """Weiszfeld's iteration on the coefficients of the mean; only the Gram counts."""
    products = gram(states, sent)
    weights = weights.cpu() / weights.sum().cpu()
    share = weights
    for _ in range(ITERATIONS):
        inside = products @ share
        squares = products.diagonal() - 2 * inside + share @ inside
        floor = TOLERANCE * float(products.diagonal().max())
        nearer = weights / squares.clamp_min(max(floor, 1e-300)).sqrt()
        nearer = nearer / nearer.sum()
        moved, share = float((nearer - share).abs().max()), nearer
        if moved < TOLERANCE:
            break
    return mean(states, share)


def clipped_mean(
    states: Sequence[State], weights: Tensor, sent: State, byzantine: float
) -> State:
    """Mean of the updates, none longer than the median one."""
    norms = torch.stack([_norm(s, sent) for part in portions(states) for s in part])
    limit = norms.median()  # of an even number the lower
    scale = (limit / norms.clamp_min(1e-300)).clamp_max(1)
    share = scale * weights.cpu() / weights.sum().cpu()
    rest = (1 - share.sum()).clamp_min(0)[None]
    return mean([*states, sent], torch.cat([share, rest]))


def _norm(state: State, sent: State) -> Tensor:
    parts = [(state[k] - v).double().square().sum().cpu() for k, v in sent.items()]
    return torch.stack(parts).sum().sqrt()


Rule = Callable[[Sequence[State], Tensor, State, float], State]

RULES: dict[str, Rule] = {
    "median": median,
    "trimmed-mean": trimmed_mean,
    "krum": krum,
    "multi-krum": multi_krum,
    "geometric-median": geometric_median,
    "clipped-mean": clipped_mean,
}
