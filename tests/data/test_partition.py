from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.data.partition import (
    ClientRows,
    paper_split,
    partition_clients,
    resolve_targets,
)
from fedclip_plugin.errors import ConfigError

PACS = ("art_painting", "cartoon", "photo", "sketch")
SIZES = {"art_painting": 204, "cartoon": 230, "photo": 167, "sketch": 392}


def make_labels() -> dict[str, np.ndarray]:
    random = np.random.RandomState(5)
    return {name: np.sort(random.randint(0, 7, n)) for name, n in SIZES.items()}


def all_rows(clients: tuple[ClientRows, ...]) -> list[int]:
    return [r for c in clients for part in (c.train, c.val, c.test) for r in part]


@pytest.mark.parametrize("seed", [0, 1, 2, 7, 42, 2**32 - 1])
def test_paper_split_is_the_authors(seed: int) -> None:
    for n in (*range(0, 40), 99, 100, 255, 256, 1670, 2048, 2344, 3929):
        index = np.arange(n)  # what prepare_data_dg_clip.py does, line by line
        np.random.seed(seed)
        np.random.shuffle(index)
        l1, l2, l3 = int(n * 0.6), int(n * 0.2), int(n * 0.2)
        split = paper_split(n, seed)
        assert np.array_equal(split.train, index[:l1])
        assert np.array_equal(split.val, index[l1 : l1 + l2])
        assert np.array_equal(split.test, index[l1 + l2 : l1 + l2 + l3])
        assert {part.dtype for part in (split.train, split.val, split.test)} == {
            np.dtype(np.int64)
        }


def test_paper_split_does_not_change_with_numpy() -> None:
    assert paper_split(10, 0).train.tolist() == [2, 8, 4, 9, 1, 6]


def test_the_global_generator_is_left_alone() -> None:
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    data = DataConfig(partition="dirichlet", clients=5, shots=2)
    partition_clients(make_labels(), data, "photo", 0)
    assert np.random.rand() == expected


def test_seeds_that_numpy_cannot_take() -> None:
    with pytest.raises(ConfigError, match="--seed 4294967296"):
        paper_split(10, 2**32)


def test_domain_clients_are_the_other_domains() -> None:
    labels = make_labels()
    clients = partition_clients(labels, DataConfig(), "cartoon", 1)
    assert [(c.name, c.index) for c in clients] == [
        *(("art_painting", 0), ("photo", 2), ("sketch", 3))
    ]
    start = SIZES["art_painting"] + SIZES["cartoon"]  # the target's rows count
    split = paper_split(SIZES["photo"], 1)
    assert np.array_equal(clients[1].train, start + split.train)
    assert np.array_equal(clients[1].val, start + split.val)
    assert np.array_equal(clients[1].test, start + split.test)


def test_a_client_does_not_depend_on_which_domain_is_held_out() -> None:
    labels = make_labels()
    for target in ("art_painting", "cartoon", None):
        clients = partition_clients(labels, DataConfig(), target, 0)
        sketch = next(c for c in clients if c.name == "sketch")
        base = partition_clients(labels, DataConfig(), "photo", 0)[-1]
        assert sketch.index == base.index == 3
        assert np.array_equal(sketch.train, base.train)
    assert len(partition_clients(labels, DataConfig(), None, 0)) == 4


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
@pytest.mark.parametrize("target", [None, "art_painting", "sketch"])
def test_pooled_rows_go_to_one_client_each(partition: str, target: str | None) -> None:
    labels = make_labels()
    data = DataConfig(partition=partition, clients=7)
    clients = partition_clients(labels, data, target, 0)
    assert [c.name for c in clients] == [f"client-{i:03d}" for i in range(7)]
    rows = all_rows(clients)
    assert len(set(rows)) == len(rows)
    n = sum(SIZES.values()) - (SIZES[target] if target else 0)
    assert n - 2 * 7 <= len(rows) <= n  # the paper's rule leaves up to two out
    if target == "art_painting":
        assert min(rows) >= SIZES["art_painting"]
    if target == "sketch":
        assert max(rows) < sum(SIZES.values()) - SIZES["sketch"]
    sizes = [len(c.train) for c in clients]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_pooled_partitions_follow_the_seed(partition: str) -> None:
    data = DataConfig(partition=partition, clients=4)
    first, again, other = (
        all_rows(partition_clients(make_labels(), data, None, seed))
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_smaller_alpha_is_more_skewed() -> None:
    labels = {"a": np.repeat(np.arange(10), 300)}

    def classes_per_client(alpha: float) -> float:
        data = DataConfig(partition="dirichlet", clients=10, alpha=alpha)
        clients = partition_clients(labels, data, None, 0)
        shares = [np.bincount(labels["a"][c.train], minlength=10) for c in clients]
        return float(np.mean([np.exp(_entropy(s / s.sum())) for s in shares]))

    spread = [classes_per_client(alpha) for alpha in (0.01, 0.5, 1e6)]
    assert spread[0] < 3 < spread[1] < 7
    assert spread[2] > 9.5


def _entropy(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


@pytest.mark.parametrize("alpha", [1e-300, 1e-12, 1e-3, 1e12])
def test_extreme_alpha_still_shares_every_row_out(alpha: float) -> None:
    labels = {"a": np.array([0] * 100 + [3] * 7 + [5])}
    data = DataConfig(partition="dirichlet", clients=9, alpha=alpha)
    clients = partition_clients(labels, data, None, 0)
    assert [len(c.train) for c in clients] == [7] * 9  # 12 rows each
    assert len(set(all_rows(clients))) == len(all_rows(clients))


def test_shots_keep_the_first_rows_of_each_class() -> None:
    labels = make_labels()
    full = partition_clients(labels, DataConfig(), "photo", 0)
    few = partition_clients(labels, DataConfig(shots=3), "photo", 0)
    y = np.concatenate(list(labels.values()))
    for whole, client in zip(full, few):
        count: Counter[int] = Counter()
        expected = []
        for row in whole.train:
            if count[y[row]] < 3:
                expected.append(row)
            count[y[row]] += 1
        assert client.train.tolist() == expected
        assert np.array_equal(client.val, whole.val)
        assert np.array_equal(client.test, whole.test)


def test_tiny_clients_may_have_empty_parts() -> None:
    labels = {"a": np.zeros(3, np.int64), "b": np.zeros(0, np.int64)}
    one, two = partition_clients(labels, DataConfig(), None, 0)
    assert (len(one.train), len(one.val)) == (1, 0)
    assert len(two.train) == 0
    with pytest.raises(ConfigError, match="only 3 images"):
        partition_clients(labels, DataConfig(partition="iid", clients=4), None, 0)


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_thousands_of_clients_sort_by_name_as_they_come(partition: str) -> None:
    random = np.random.RandomState(0)
    labels = {"a": random.randint(0, 7, 12_345)}
    data = DataConfig(partition=partition, clients=10_000)
    clients = partition_clients(labels, data, None, 0)
    names = [c.name for c in clients]
    assert names[:2] == ["client-0000", "client-0001"]
    assert len(set(names)) == 10_000
    assert names == sorted(names)
    rows = all_rows(clients)
    assert len(set(rows)) == len(rows)
    # one row is too few for a training part, two are enough
    assert sum(len(c.train) for c in clients) == 12_345 - 10_000


def test_one_split_serves_clients_of_one_size_and_is_nobodys_to_change() -> None:
    first = paper_split(50, 0)
    first.train[:] = -1
    assert np.array_equal(paper_split(50, 0).val, first.val)
    assert paper_split(50, 0).train.min() >= 0


def test_resolve_targets() -> None:
    assert resolve_targets(PACS, ()) == PACS
    assert resolve_targets(PACS, ("Art Painting", "SKETCH")) == (PACS[0], PACS[3])
    assert resolve_targets(PACS, ("2", "photo")) == ("photo",)
    assert resolve_targets(PACS, ("none",)) == (None,)
    assert resolve_targets(("1", "0"), ("0",)) == ("0",)  # a name goes first
    with pytest.raises(ConfigError, match=r"'None': --target none means .* rename it"):
        resolve_targets(("None", "some"), ("some",))
    assert resolve_targets(("only",), ("none",)) == (None,)


def test_unknown_targets_name_the_known() -> None:
    with pytest.raises(ConfigError, match=r"did you mean sketch.*cartoon"):
        resolve_targets(PACS, ("sketsh",))
    with pytest.raises(ConfigError, match="--target 4"):
        resolve_targets(PACS, ("4",))
    with pytest.raises(ConfigError, match="did you mean photo"):
        partition_clients(make_labels(), DataConfig(), "phto", 0)


def test_a_client_must_be_left() -> None:
    for targets in ((), ("only",)):
        with pytest.raises(ConfigError, match="leaves no client"):
            resolve_targets(("only",), targets)
    with pytest.raises(ConfigError, match="leaves no client"):
        partition_clients({"only": np.zeros(9, np.int64)}, DataConfig(), "only", 0)
