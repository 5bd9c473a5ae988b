"""A part of the model that is the client's own: its node keeps it, measures by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("flwr", reason="needs Flower: pip install 'fedclip-plugin[flower]'")

from fedclip_plugin.algorithms import ALGORITHMS
from fedclip_plugin.errors import FedClipError
from fedclip_plugin.registry import flower_host
from tests.federation.personal import OwnBias
from tests.federation.toy import own_directories
from tests.registry.flower.grid import LocalGrid, options
from tests.registry.flower.world import Messages


@pytest.fixture(autouse=True)
def own_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS._items, OwnBias.name, OwnBias)


@pytest.mark.parametrize(
    "more", [{}, {"compress": "int8"}, {"alg": "fedot", "lr": 3e-3}], ids=str
)
def test_scores_are_those_of_the_embedded_engine(more: dict[str, Any], toy: Path):
    world = Messages(toy)
    more = {"alg": "own-bias", "rounds": 3, **more}
    ended, last = world.run(**more), world.embedded(**more)
    assert last.result is not None
    assert ended.run.now.result is not None
    assert ended.run.now.result.clients == last.result.clients
    assert ended.run.now.progress.best_round == last.progress.best_round
    assert ended.run.now.kept == {}, "it left the clients"
    notes = ended.run.finish()["notes"]
    assert any("clients measured themselves" in note for note in notes)


@pytest.mark.parametrize("alg", ["fedmedclip", "faa-clip", "facmic"])
def test_modules_of_the_clients_own_stay_at_their_nodes(alg: str, toy: Path) -> None:
    world = Messages(toy)
    more: dict[str, Any] = {"alg": alg, "rounds": 2, "lr": 3e-3}
    ended, last = world.run(**more), world.embedded(**more)
    assert ended.run.state.keys() == last.state.keys()
    assert all(torch.equal(ended.run.state[k], v) for k, v in last.state.items())
    assert ended.run.now.result is not None
    assert last.result is not None
    assert ended.run.now.result.clients == last.result.clients
    assert not any("private" in key for key in ended.state)


@pytest.mark.parametrize("alg", ["faa-clip", "facmic"])
def test_nodes_with_data_of_their_own_see_no_others(
    alg: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = {
        50 - i: {"partition-id": i, "features": str(path)}
        for i, path in enumerate(own_directories(tmp_path / "own"))
    }
    strategy = flower_host.FedClip(options(None, alg=alg))
    with pytest.raises(FedClipError, match="no client can take part") as caught:
        strategy.start(LocalGrid(nodes))
    assert f"--alg {alg} aligns clients to each other's features" in str(caught.value)
