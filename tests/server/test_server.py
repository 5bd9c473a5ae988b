from __future__ import annotations

import itertools
import re

import pytest
import torch

from fedclip_plugin.config.schema import ServerConfig
from fedclip_plugin.server.aggregation import aggregate
from fedclip_plugin.server.screening import screen
from fedclip_plugin.wire.update import ClientUpdate


def update(name: str, value: float, count: int = 10) -> ClientUpdate:
    return ClientUpdate(name, {"w": torch.full((2, 3), value)}, count)


UNIFORM, EXAMPLES = ServerConfig(), ServerConfig(weighting="examples")
SENT = {"w": torch.zeros(2, 3)}


def test_uniform_mean_ignores_counts_and_examples_uses_them():
    updates = [update("a", 1.0, 10), update("b", 4.0, 30)]
    assert torch.allclose(
        aggregate(updates, SENT, UNIFORM)["w"], torch.full((2, 3), 2.5)
    )
    by_count = aggregate(updates, SENT, EXAMPLES)["w"]
    assert torch.allclose(by_count, torch.full((2, 3), 3.25))


def test_order_of_arrival_changes_no_bit():
    torch.manual_seed(0)
    updates = [ClientUpdate(f"c{i}", {"w": torch.randn(2, 3)}, i + 1) for i in range(4)]
    means = [aggregate(p, SENT, EXAMPLES)["w"] for p in itertools.permutations(updates)]
    assert all(torch.equal(means[0], m) for m in means)


def test_clients_without_rows_have_no_vote():
    mean = aggregate([update("a", 1.0), update("b", 9.0, 0)], SENT, UNIFORM)["w"]
    assert torch.equal(mean, torch.ones(2, 3))


def test_with_no_voter_the_state_stays():
    assert aggregate([], SENT, UNIFORM) is SENT
    assert aggregate([update("a", 1.0, 0)], SENT, UNIFORM) is SENT


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"v": torch.zeros(2, 3)}, "keys"),
        ({"w": torch.zeros(3, 2)}, r"\(3, 2\)"),
        ({"w": torch.zeros(2, 3).double()}, "float64"),
        ({"w": torch.full((2, 3), float("nan"))}, "NaN"),
        ({"w": torch.full((2, 3), float("inf"))}, "NaN or Inf"),
    ],
)
def test_bad_updates_are_left_out_with_the_reason(state, reason):
    good = update("good", 1.0)
    sound, bad = screen([ClientUpdate("bad", state, 5), good], SENT)
    assert sound == [good]
    assert bad[0].client == "bad"
    assert re.search(reason, bad[0].reason)


def test_mean_of_many_is_exact():
    torch.manual_seed(0)
    updates = [
        ClientUpdate(f"{i:04}", {"w": torch.randn(50, 7)}, 3) for i in range(500)
    ]
    exact = torch.stack([u.state["w"].double() for u in updates]).mean(0)
    got = aggregate(updates, {"w": torch.zeros(50, 7)}, UNIFORM)["w"].double()
    assert float((got - exact).abs().max() / exact.square().mean().sqrt()) < 2e-6
