"""Many nodes: the server asks those that a round draws, and no others."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")

from flwr.app import Context, RecordDict

from fedclip_plugin.registry import flower_host
from fedclip_plugin.registry.flower import nodes as nodes_module
from fedclip_plugin.registry.flower.records import to_state
from tests.federation.toy import own_directories
from tests.registry.flower.grid import LocalGrid, equal, options

CLIENTS = 18  # of ten rows
EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "flower" / "app"


class Sea(dict[int, dict[str, Any]]):
    """A million nodes, which are made as they are asked."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(5, 1_000_005))

    def __missing__(self, node: int) -> dict[str, Any]:
        self[node] = {"partition-id": node % CLIENTS}
        return self[node]


def played(toy: Path, nodes: dict[int, dict[str, Any]], **more: Any) -> Any:
    run_config = options(toy, partition="iid", clients=CLIENTS, **more)
    strategy = flower_host.FedClip(run_config)
    grid = LocalGrid(nodes, run_config)
    result = strategy.start(grid)
    return strategy, grid, to_state(result.arrays)


def test_three_of_a_million_are_asked_and_train(toy: Path) -> None:
    strategy, grid, _ = played(toy, Sea(), fraction_train=3e-6)
    kinds = [kind for kind, _, _ in grid.traffic]
    assert len(grid.nodes.keys()) <= 6  # three a round, who were made
    assert kinds.count("train") == kinds.count("evaluate") == 6
    assert kinds.count("query") == len(grid.nodes.keys())
    assert strategy.nodes.drawn_from == 1_000_000
    assert strategy.host_run.now.result.mean_test is not None
    once = {"fraction_train": 3e-6, "num_server_rounds": 1}
    asked = [
        set(played(toy, Sea(), seed=seed, **once)[1].nodes.keys()) for seed in (0, 1)
    ]
    assert asked[0] < set(grid.nodes.keys())
    assert asked[1].isdisjoint(asked[0])


def test_a_share_of_the_rounds_nodes_measures(toy: Path) -> None:
    nodes = {100 - i: {"partition-id": i} for i in range(CLIENTS)}
    more = {"fraction_train": 0.22, "ask_nodes": "drawn", "num_server_rounds": 1}
    _, grid, _ = played(toy, nodes, fraction_evaluate=0.5, **more)
    kinds = [kind for kind, _, _ in grid.traffic]
    assert [kinds.count(k) for k in ("query", "train", "evaluate")] == [4, 4, 2]


def test_a_few_nodes_are_all_asked(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {100 - i: {"partition-id": i} for i in range(CLIENTS)}
    more = {"fraction_train": 0.22, "num_server_rounds": 1}
    _, grid, state = played(toy, nodes, **more)
    kinds = [kind for kind, _, _ in grid.traffic]
    assert (kinds.count("query"), kinds.count("train")) == (CLIENTS, 4)
    monkeypatch.setattr(nodes_module, "MOST_ASKED", 10)
    _, told, same = played(toy, nodes, ask_nodes="all", **more)
    assert len(told.traffic) == len(grid.traffic)
    assert equal(state, same)
    _, few, _ = played(toy, nodes, **more)
    assert [kind for kind, _, _ in few.traffic].count("query") == 4


def test_who_is_refused_is_missing_in_its_round(
    toy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes: dict[int, dict[str, Any]] = {
        i: {"partition-id": 0 if i == 1 else i} for i in range(3)
    }
    run_config = options(toy, ask_nodes="drawn", num_server_rounds=1)
    strategy = flower_host.FedClip(run_config)
    strategy.start(LocalGrid(nodes, run_config))
    assert "is client art already" in caplog.text
    assert len(strategy.host_run.now.result.participants) == 2  # type: ignore[union-attr]


def test_the_app_of_the_example_takes_names_and_data_from_the_node_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    server = importlib.import_module("fedclip_app.server_app")
    client = importlib.import_module("fedclip_app.client_app")
    monkeypatch.setattr(flower_host, "client_app", client.app, raising=False)
    paths = own_directories(tmp_path / "own")
    nodes = {
        50 - i: {"partition-id": i, "client-name": name, "features": str(path)}
        for i, (name, path) in enumerate(zip(("north", "west", "south"), paths))
    }
    run_config = {
        **options(None), "dataset": "hospitals", "out": str(tmp_path / "run"),
    }  # fmt: skip
    context = Context(1, 1, {}, RecordDict(), run_config)
    server.app(LocalGrid(nodes, run_config), context)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["result"]["clients"].keys() == {"north", "west", "south"}
    for name in [n for n in sys.modules if n.startswith("fedclip_app")]:
        del sys.modules[name]
