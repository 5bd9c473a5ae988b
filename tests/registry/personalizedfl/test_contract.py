"""What every host must do, under PersonalizedFL's loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.registry.contract import Contract
from tests.registry.personalizedfl.world import Loop, open_world


class TestLoop(Contract):
    @pytest.fixture
    def world(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> Loop:
        return Loop(open_world(tmp_path, monkeypatch), capsys)
