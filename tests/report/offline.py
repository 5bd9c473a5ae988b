"""What Weights & Biases left in a run's folder."""

from __future__ import annotations

import time
from pathlib import Path

from tests.waiting import SECONDS


def assert_logged(run: Path, *words: bytes) -> None:
    """The offline log names all ``words``.

    Its service writes the file, and may still do so when ``finish`` has returned.
    """
    (log,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    end = time.monotonic() + SECONDS
    while not all(word in log.read_bytes() for word in words):
        assert time.monotonic() < end, f"{words} not in {log.stat().st_size} bytes"
        time.sleep(0.05)
