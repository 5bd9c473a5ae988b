"""Partitions by class, shard, size and long tail, and inside domains."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from fedclip_plugin.config.fields import MOST_WHOLE
from fedclip_plugin.config.inputs import PARTITIONS, DataConfig
from fedclip_plugin.data.partition import ClientRows, partition_clients
from fedclip_plugin.data.pools import random_state
from fedclip_plugin.errors import ConfigError
from tests.data.test_partition import all_rows, make_labels

NEW: list[dict[str, Any]] = [
    {"partition": "classes", "classes_per_client": 2},
    {"partition": "shards", "shards_per_client": 2},
    {"partition": "quantity", "alpha": 0.5},
]


def rows_of(client: ClientRows) -> np.ndarray:
    return np.concatenate([client.train, client.val, client.test])


def labels_in_order(labels: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate(list(labels.values()))


@pytest.mark.parametrize("options", NEW, ids=lambda o: o["partition"])
@pytest.mark.parametrize("inside", [False, True])
def test_every_row_goes_to_one_client(options: dict[str, Any], inside: bool) -> None:
    labels = make_labels()
    count = {"clients_per_domain": 4} if inside else {"clients": 8}
    data = DataConfig(**options, **count)
    clients = partition_clients(labels, data, "photo", 3)
    rows = all_rows(clients)
    assert len(set(rows)) == len(rows)
    n = sum(len(y) for name, y in labels.items() if name != "photo")
    assert n - 2 * len(clients) <= len(rows) <= n
    again = partition_clients(labels, data, "photo", 3)
    assert all_rows(again) == rows
    assert all_rows(partition_clients(labels, data, "photo", 4)) != rows
    if inside:
        names = [c.name for c in clients]
        assert names[:4] == [f"art_painting-{i}" for i in range(4)]
        assert len({c.index for c in clients}) == len(clients) == 12
        first = np.concatenate([rows_of(c) for c in clients[:4]])
        assert first.max() < len(labels["art_painting"])


def test_a_client_inside_a_domain_is_the_same_whatever_is_held_out() -> None:
    data = DataConfig(partition="dirichlet", clients_per_domain=3, alpha=0.1)
    held = [partition_clients(make_labels(), data, t, 0) for t in ("photo", "cartoon")]
    last = [next(c for c in clients if c.name == "sketch-2") for clients in held]
    assert last[0].index == last[1].index
    assert np.array_equal(last[0].train, last[1].train)


def test_classes_are_disjoint_where_they_suffice_and_else_shared_evenly() -> None:
    labels = {"a": np.repeat(np.arange(6), 60)}

    def holders(clients: int, each: int) -> tuple[list[set[int]], Counter[int]]:
        data = DataConfig(partition="classes", clients=clients, classes_per_client=each)
        found = partition_clients(labels, data, None, 1)
        held = [set(labels["a"][rows_of(c)].tolist()) for c in found]
        return held, Counter(label for own in held for label in own)

    held, count = holders(3, 2)
    assert [len(own) for own in held] == [2, 2, 2]
    assert set(count.values()) == {1}
    assert len(count) == 6
    held, count = holders(5, 2)
    assert [len(own) for own in held] == [2] * 5
    assert set(count.values()) == {1, 2}
    assert len(count) == 6
    held, _ = holders(2, 6)
    assert held == [set(range(6))] * 2


def test_a_client_of_two_shards_has_few_classes() -> None:
    labels = {"a": np.repeat(np.arange(10), 100)}
    data = DataConfig(partition="shards", clients=10)
    clients = partition_clients(labels, data, None, 0)
    assert all(len(set(labels["a"][rows_of(c)])) <= 2 for c in clients)
    assert {len(rows_of(c)) for c in clients} == {100}


@pytest.mark.parametrize("alpha", [1e-300, 0.3, 1e6])
def test_quantities_sum_up_and_nobody_is_without(alpha: float) -> None:
    labels = {"a": np.repeat(np.arange(4), 250)}
    data = DataConfig(partition="quantity", clients=20, alpha=alpha)
    clients = partition_clients(labels, data, None, 0)
    sizes = [len(rows_of(c)) for c in clients]
    assert len(sizes) == 20
    assert 960 <= sum(sizes) <= 1000
    if alpha > 1:
        assert max(sizes) < 2 * min(sizes) + 20
    else:
        assert max(sizes) > 150


def test_a_long_tail_thins_the_training_rows_alone() -> None:
    labels = {"a": np.repeat(np.arange(5), 500)}
    usual = DataConfig(partition="iid", clients=4)
    data = DataConfig(partition="long-tail", clients=4, imbalance=100)
    plain = partition_clients(labels, usual, None, 0)
    clients = partition_clients(labels, data, None, 0)
    for one, other in zip(plain, clients):
        assert np.array_equal(one.test, other.test)
        assert np.array_equal(one.val, other.val)
        assert set(other.train) <= set(one.train)
    before, after = (
        np.bincount(np.concatenate([labels["a"][c.train] for c in found]), minlength=5)
        for found in (plain, clients)
    )
    assert after[0] == min(before[0], before.max())
    assert after[-1] == round(before.max() / 100)
    wanted = [round(before.max() * 100 ** (-c / 4)) for c in range(5)]
    assert after.tolist() == np.minimum(wanted, before).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partition": "iid", "clients": 9999}, "--clients 9999: only 993 images"),
        (
            {"partition": "iid", "clients_per_domain": 200},
            "--clients-per-domain 200: only 167 images",
        ),
        (
            {"partition": "classes", "clients": 3, "classes_per_client": 8},
            "--classes-per-client 8: there are only 7 classes",
        ),
        (
            {"partition": "classes", "clients": 3, "classes_per_client": 2},
            "would hold 6 of 7 classes; use at least 3",
        ),
        (
            {"partition": "shards", "clients": 900, "shards_per_client": 2},
            "900 clients need 1800 shards, but there are only 993 images",
        ),
    ],
)
def test_what_cannot_be_met_is_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        partition_clients(make_labels(), DataConfig(**options), None, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients_per_domain": 2}, "--clients-per-domain is for --partition iid"),
        (
            {"partition": "classes", "clients": 2},
            "--partition classes needs --classes-per-client",
        ),
        ({"partition": "shards"}, "--partition shards needs --clients N, or"),
        ({"partition": "iid", "clients": 2, "clients_per_domain": 2}, "not both"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(**options)


def test_every_partition_names_fields_that_exist() -> None:
    fields = vars(DataConfig())
    assert all(field in fields for own in PARTITIONS.values() for field in own)


def test_a_seed_is_what_every_option_may_be():
    assert random_state(MOST_WHOLE).randint(2) in (0, 1)
    for seed in (-1, MOST_WHOLE + 1):
        with pytest.raises(ConfigError, match=f"{seed}: .* from 0 to {MOST_WHOLE}$"):
            random_state(seed)
