"""Lying clients in whole runs: what screening and the rules make of them.

That a rule holds below its breakdown point, update by update, is in test_robust.py.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from benchmarks.accuracy.attack_models import LIES, Attacked, attackers
from benchmarks.accuracy.attacks import heat_map
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig, ServerConfig, TrainConfig
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.engine import RunState, federate
from fedclip_plugin.server.aggregation import RULES
from tests.federation.toy import toy_features


def build(rule: str = "mean", share: float = 0.3, rounds: int = 15) -> Federation:
    """Twenty iid clients of two toy domains; the third is held out."""
    train = TrainConfig(rounds=rounds, lr=1e-2, weight_decay=0.0, eval_every=rounds)
    server = ServerConfig(aggregation=rule, byzantine=min(0.45, max(0.3, share)))
    data = DataConfig(dataset="toy", partition="iid", clients=20)
    config = RunConfig(data=data, train=train, server=server)
    return build_federation(toy_features(rows=400), config, "photo", seed=0)


def attacked(fed: Federation, attack: str, share: float) -> RunState:
    liars = attackers(fed.clients, share, seed=0)
    *_, last = federate(replace(fed, algorithm=Attacked(attack, liars)))
    return last


@functools.cache
def accuracy(attack: str, rule: str, share: float) -> float:
    found = attacked(build(rule, share), attack, share).result.target
    assert found is not None
    return found


@pytest.mark.parametrize("rule", RULES)
def test_a_minority_of_flipped_labels_does_little_a_majority_much(rule):
    few, some, most = (accuracy("label-flip", rule, s) for s in (0.1, 0.3, 0.7))
    assert few > 0.8
    assert some > 0.75
    assert most < few - 0.04


@pytest.mark.parametrize("attack", ["sign-flip", "gaussian"])
def test_a_clipped_mean_bounds_what_a_minority_can_do(attack):
    assert accuracy(attack, "clipped-mean", 0.3) > accuracy(attack, "mean", 0.3) + 0.02
    assert accuracy(attack, "clipped-mean", 0.7) < 0.7


@pytest.mark.parametrize("share", [0.1, 0.3, 0.45])
@pytest.mark.parametrize("attack", ["nan", "shapes", "scale-1e6"])
def test_screening_alone_loses_not_a_bit(attack, share):
    """The same as if those clients had never answered."""
    fed = build(rounds=3)
    last = attacked(fed, attack, share)
    liars = attackers(fed.clients, share, seed=0)
    honest = tuple(c for c in fed.clients if c.name not in liars)
    *_, alone = federate(replace(fed, clients=honest))
    assert last.progress.quarantined == 3 * len(liars) == 60 * share
    assert all(torch.equal(last.state[k], v) for k, v in alone.state.items())


@pytest.mark.parametrize("attack", sorted(set(LIES) - {"nan", "shapes", "scale-1e6"}))
def test_other_lies_pass_the_screening(attack):
    fed = build(rounds=1)
    assert attacked(fed, attack, 0.3).progress.quarantined == 0


def test_those_who_collude_say_the_same():
    fed = build()
    liars = attackers(fed.clients, 0.3, seed=0)
    state = fed.algorithm.init(fed.task)
    algorithm = Attacked("inner-product", liars)
    updates = algorithm.local_round(state, fed.clients, fed.task, 1)
    told = [u.state["0.weight"] for u in updates if u.client in liars]
    honest = [u.state["0.weight"] for u in updates if u.client not in liars]
    assert len(told) == 6
    assert all(torch.equal(told[0], t) for t in told)
    middle = torch.stack(honest).mean(dim=0) - state["0.weight"]
    torch.testing.assert_close(told[0] - state["0.weight"], -middle)


def test_the_picture_colours_from_bad_to_good():
    values = {0.1: 0.9, 0.3: 0.2, 0.45: None}
    found = heat_map(
        ["a<b"], ["mean"], list(values), lambda a, r, s: values[s], (0.2, 0.9)
    )
    assert "a&lt;b" in found
    assert 'fill="rgb(27,120,55)"' in found
    assert 'fill="rgb(178,24,43)"' in found
    assert found.count("<rect") == 3  # the ground and the two cells that are known
