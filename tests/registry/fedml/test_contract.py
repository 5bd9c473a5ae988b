"""What every host must do, in FedML's simulation in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

from tests.registry.contract import Contract
from tests.registry.fedml.world import SingleProcess, fresh_fedml  # noqa: F401


class TestSingleProcess(Contract):
    @pytest.fixture
    def world(self, features: Path) -> SingleProcess:
        return SingleProcess(features)
