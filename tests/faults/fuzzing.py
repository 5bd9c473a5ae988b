"""How much the fuzzing tests try, and how quietly."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

few = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """A damaged shard is told in the log: not two thousand times."""
    log = logging.getLogger("fedclip")
    before, log.disabled = log.disabled, True
    yield
    log.disabled = before
