"""The mean of low-rank products: exact where the rank suffices, else the best one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedclip_plugin.algorithms import Task
from fedclip_plugin.algorithms.lora import FedAvgLora, LoraParams, mean_product
from fedclip_plugin.config.schema import PrivacyConfig, ServerConfig, WireConfig
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.wire.update import ClientUpdate, State

A, B = "layer.lora_A.default.weight", "layer.lora_B.default.weight"


def factors(
    count: int, rank: int, out: int, wide: int, seed: int = 0
) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    kind = torch.float64
    return [
        (
            torch.randn(rank, wide, generator=g, dtype=kind),
            torch.randn(out, rank, generator=g, dtype=kind),
        )
        for _ in range(count)
    ]


def literal(pairs: list[tuple[Tensor, Tensor]], weights: list[float]) -> Tensor:
    """``sum w_i B_i A_i / sum w``, entry by entry."""
    (rank, wide), out = pairs[0][0].shape, len(pairs[0][1])
    total = torch.zeros(out, wide, dtype=torch.float64)
    for (a, b), w in zip(pairs, weights):
        for i in range(out):
            for j in range(wide):
                product = sum(float(b[i, k]) * float(a[k, j]) for k in range(rank))
                total[i, j] += w * product / sum(weights)
    return total


@pytest.mark.parametrize(("out", "wide"), [(9, 7), (5, 12), (3, 3)])
def test_the_mean_product_is_exact_where_the_rank_suffices(out: int, wide: int):
    shared = factors(1, 2, out, wide)[0][0]  # of one row space, so of rank 2 together
    pairs = [
        (torch.cat([shared, torch.zeros(1, wide)]), b)
        for _, b in factors(4, 3, out, wide, seed=1)
    ]
    weights = [1.0, 2.0, 0.5, 3.0]
    a, b = mean_product(pairs, torch.tensor(weights))
    torch.testing.assert_close(b @ a, literal(pairs, weights))


@pytest.mark.parametrize(("out", "wide", "rank"), [(9, 7, 2), (12, 20, 3), (4, 30, 1)])
def test_it_is_the_best_of_its_rank(out: int, wide: int, rank: int):
    pairs, weights = factors(5, rank, out, wide), [1.0, 4.0, 2.0, 0.0, 1.0]
    want = literal(pairs, weights)
    a, b = mean_product(pairs, torch.tensor(weights))
    left_out = torch.linalg.svdvals(want)[rank:]
    error = torch.linalg.norm(b @ a - want)
    torch.testing.assert_close(error, left_out.square().sum().sqrt())
    total = sum(weights)
    plain_a = sum(w / total * p[0] for w, p in zip(weights, pairs))
    plain_b = sum(w / total * p[1] for w, p in zip(weights, pairs))
    assert torch.linalg.norm(plain_b @ plain_a - want) > 1.05 * error


def test_one_client_keeps_its_product():
    ((a, b),) = factors(1, 3, 6, 8)
    new_a, new_b = mean_product([(a, b)], torch.ones(1))
    torch.testing.assert_close(new_b @ new_a, b @ a)


def test_products_of_zero_can_be_trained_on():
    pairs = [(a, torch.zeros_like(b)) for a, b in factors(3, 2, 6, 8)]
    a, b = mean_product(pairs, torch.ones(3))
    assert not bool(b.any())
    torch.testing.assert_close(a @ a.t(), torch.eye(2, dtype=a.dtype))


def test_a_layer_narrower_than_the_rank():
    pairs, weights = factors(3, 4, 6, 2), [1.0, 1.0, 1.0]
    a, b = mean_product(pairs, torch.tensor(weights))
    assert (a.shape, b.shape) == ((4, 2), (6, 4))
    torch.testing.assert_close(b @ a, literal(pairs, weights))


def task(mean: str = "products", **more: Any) -> Task:
    text = F.normalize(torch.eye(3, 8), dim=1)
    return Task(text, 100.0, params=LoraParams(mean=mean), **more)


def updates() -> tuple[list[ClientUpdate], State]:
    found = [
        ClientUpdate(name, {A: a.float(), B: b.float()}, rows)
        for name, rows, (a, b) in zip("bac", (3, 5, 0), factors(3, 2, 6, 8))
    ]
    return found, {key: torch.zeros_like(v) for key, v in found[0].state.items()}


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_the_server_weighs_the_products(weighting: str):
    found, state = updates()
    server = ServerConfig(weighting=weighting)
    after = FedAvgLora().aggregate(found, state, task(server=server))
    pairs = [(u.state[A].double(), u.state[B].double()) for u in found[:2]]
    weights = [1.0, 1.0] if weighting == "uniform" else [3.0, 5.0]
    u, s, vh = torch.linalg.svd(literal(pairs, weights))
    best = (u[:, :2] * s[:2]) @ vh[:2]
    torch.testing.assert_close(
        (after[B] @ after[A]).double(), best, rtol=1e-4, atol=1e-5
    )
    again = FedAvgLora().aggregate(found[::-1], state, task(server=server))
    assert all(torch.equal(after[k], again[k]) for k in after)
    assert FedAvgLora().aggregate(found[2:], state, task()) is state


def test_factors_are_averaged_as_before():
    found, state = updates()
    after = FedAvgLora().aggregate(found, state, task("factors"))
    for key, value in after.items():
        mean = (found[0].state[key] + found[1].state[key]) / 2
        torch.testing.assert_close(value, mean)


@pytest.mark.parametrize(
    "more",
    [
        {"server": ServerConfig(aggregation="median")},
        {"server": ServerConfig(server_optimizer="adam")},
        {"server": ServerConfig(server_ema=0.9)},
        {"privacy": PrivacyConfig(dp_noise_multiplier=1.0, dp_clip=1.0)},
        {"wire": WireConfig(compress="int8")},
        {"wire": WireConfig(compress_down="fp16")},
    ],
    ids=lambda more: next(iter(more)),
)
def test_what_builds_on_the_former_factors_is_refused(more: dict[str, Any]):
    with pytest.raises(
        ConfigError, match="--lora-mean products makes the factors anew"
    ):
        FedAvgLora().init(task(**more))
