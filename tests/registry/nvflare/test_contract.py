"""What every host must do, over the bytes of NVFlare's messages; needs no NVFlare."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.registry.contract import Contract
from tests.registry.nvflare.world import Bytes


class TestBytes(Contract):
    @pytest.fixture(autouse=True)
    def talkative(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "fedclip")

    @pytest.fixture
    def world(self, toy: Path) -> Bytes:
        return Bytes(toy)
