"""What no honest client of gda can have sent is left out of its round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fedclip_plugin.config.schema import COMPRESSIONS
from fedclip_plugin.federation.engine import Run, federate
from fedclip_plugin.federation.rounds import train_clients
from fedclip_plugin.wire.update import State
from tests.algorithms.test_gda import make

Lie = Callable[[State], State]


def _rank_one(state: State) -> State:
    """A direction that swallows all variance; its trace is 1."""
    dim = state["sums"].shape[1]
    direction = torch.randn(dim, generator=torch.Generator().manual_seed(0))
    direction /= direction.norm()
    row, column = torch.triu_indices(dim, dim)
    return {**state, "second": direction[row] * direction[column]}


LIES: dict[str, tuple[Lie, str]] = {
    "sign-flip": (lambda s: {k: -v for k, v in s.items()}, "class shares"),
    "scale": (lambda s: {k: 10 * v for k, v in s.items()}, "class shares"),
    "long means": (lambda s: {**s, "sums": 3 * s["sums"]}, "longer than the features"),
    "turned means": (lambda s: {**s, "sums": s["sums"].flip(1)}, "not a sum of"),
    "poisoned covariance": (_rank_one, "not a sum of squares"),
    "negative covariance": (lambda s: {**s, "second": -s["second"]}, "the trace -1"),
    "large covariance": (lambda s: {**s, "second": 50 * s["second"]}, "the trace 50"),
    "negative hits": (lambda s: {**s, "hits": s["hits"] - 1}, "validation rows"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_left_out_to_the_bits_of_a_run_without_it(name: str) -> None:
    lie, reason = LIES[name]
    fed = make(max_norm_ratio=0.0)
    liar = fed.clients[0].name
    run = Run(fed)
    opened = run.open_round()
    told = [
        replace(u, state=lie(u.state)) if u.client == liar else u
        for u in train_clients(fed, opened.sent.seen, opened.cohort, 1)
    ]
    state = run.aggregate(opened, told, [c.name for c in fed.clients])
    (left_out,) = opened.screened.quarantined
    assert left_out.client == liar
    assert reason in left_out.reason
    *_, alone = federate(replace(fed, clients=fed.clients[1:]))
    assert all(torch.equal(state[key], alone.state[key]) for key in state)


@pytest.mark.parametrize("compress", COMPRESSIONS)
@pytest.mark.parametrize("rows", [1, 2, 1000])
def test_no_honest_client_is_left_out(compress: str, rows: int) -> None:
    fed = make(compress=compress)
    few = tuple(replace(c, train=c.train[:rows]) for c in fed.clients)
    *_, last = federate(replace(fed, clients=few))
    assert last.progress.quarantined == 0


@pytest.mark.parametrize("compress", ["none", "fp16", "int8"])
def test_nor_one_with_features_of_zeros(compress: str) -> None:
    """As of a blank image: such a row counts in its class and has no direction."""
    fed = make(compress=compress)
    first = fed.clients[0]
    blank = first.train.x.clone()
    blank[: len(blank) // 2] = 0
    client = replace(first, train=replace(first.train, x=blank))
    *_, last = federate(replace(fed, clients=(client, *fed.clients[1:])))
    assert last.progress.quarantined == 0


def test_nor_in_a_second_round_nor_without_rows() -> None:
    fed = make(rounds=2)
    empty = replace(fed.clients[0], train=fed.clients[0].train[:0])
    *_, last = federate(replace(fed, clients=(empty, *fed.clients[1:])))
    assert last.progress.quarantined == 0
