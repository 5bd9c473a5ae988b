"""What every host must do, over real Flower messages in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install 'fedclip-plugin[flower]'")

from tests.registry.contract import Contract
from tests.registry.flower.world import Messages


class TestMessages(Contract):
    @pytest.fixture
    def world(self, toy: Path) -> Messages:
        return Messages(toy)
