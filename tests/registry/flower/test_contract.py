"""What every host must do, over real Flower messages: in one process, and deployed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when Flower is imported
pytest.importorskip("flwr", reason="needs Flower: pip install 'fedclip-plugin[flower]'")

from tests.registry.contract import Contract
from tests.registry.flower.deployment import Deployed, deployed
from tests.registry.flower.world import Messages
from tests.registry.processes import ProcessContract


class TestMessages(Contract):
    @pytest.fixture
    def world(self, toy: Path) -> Messages:
        return Messages(toy)


@pytest.mark.slow
class TestDeployed(ProcessContract):
    @pytest.fixture(scope="class")
    def world(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
        with deployed(tmp_path_factory.mktemp("deployment")) as world:
            yield world

    def test_the_nodes_speak_tls(self, world: Deployed) -> None:
        assert "https://127.0.0.1" in world.deployment.log("superlink")
