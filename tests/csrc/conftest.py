"""Fixtures of the emulated CUDA operators, built once for all files that use them."""

from __future__ import annotations

import pytest
import torch

from tests.csrc.cuda_emulation import Emulation


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    return Emulation(tmp_path_factory.mktemp("emulation"))


@pytest.fixture
def gpu(built, monkeypatch):
    """The emulated operators on a device as it comes; memory starts as NaN."""
    monkeypatch.setenv("FEDCLIP_CUDA_GROUP", "")
    torch.use_deterministic_algorithms(True)
    yield built
    torch.use_deterministic_algorithms(False)
    built.reset()
