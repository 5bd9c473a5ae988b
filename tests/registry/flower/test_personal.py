"""A part of the model that is the client's own: its node keeps it, measures by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install 'fedclip-plugin[flower]'")

from fedclip_plugin.algorithms import ALGORITHMS
from tests.federation.personal import OwnBias
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
