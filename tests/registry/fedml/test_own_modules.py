"""Modules that stay with a client, and unlabelled features of others, in FedML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

from tests.registry.contract import distance
from tests.registry.fedml.world import SingleProcess, fresh_fedml  # noqa: F401


@pytest.mark.parametrize("alg", ["fedmedclip", "faa-clip", "facmic"])
def test_it_is_that_of_the_embedded_engine(alg: str, features: Path) -> None:
    world = SingleProcess(features)
    more: dict[str, Any] = {"alg": alg, "rounds": 2, "lr": 3e-3}
    ended, last = world.run(**more), world.embedded(**more)
    assert distance(ended.run.state, last.state) == 0
    assert ended.run.now.result is not None
    assert last.result is not None
    assert ended.run.now.result.clients == last.result.clients
