"""Answers that are no model (moments, Gaussians) over Flower's messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("flwr", reason="needs Flower: pip install 'fedclip-plugin[flower]'")

from tests.registry.flower.world import Messages


@pytest.mark.parametrize(
    "more",
    [
        {"alg": "linear", "augment": "ggeur", "augment_per_class": 20},
        {"alg": "fedclip", "augment": "ggeur", "augment_per_class": 20},
        {"alg": "linear", "augment": "ggeur", "compress": "int8"},
        {"alg": "fedpft", "rounds": 1, "compress": "fp16"},
        {"alg": "tofa", "rounds": 1},
    ],
    ids=str,
)
def test_states_are_those_of_the_embedded_engine(more: dict[str, Any], toy: Path):
    world = Messages(toy)
    more = {"rounds": 3, **more}
    ended, last = world.run(**more), world.embedded(**more)
    found = ended.run.now
    assert found.state.keys() == last.state.keys()
    assert all(torch.equal(found.state[k], v) for k, v in last.state.items())
    assert found.result is not None
    assert last.result is not None
    assert found.result.clients == last.result.clients
