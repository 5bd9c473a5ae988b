"""What Weights & Biases left in a run's folder."""

from __future__ import annotations

from pathlib import Path

from tests.waiting import wait_until


def assert_logged(run: Path, *words: bytes) -> None:
    """The offline log names all ``words``.

    Its service writes the file, and may still do so when ``finish`` has returned.
    """
    (log,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
    wait_until(
        lambda: all(word in log.read_bytes() for word in words),
        pause=0.05,
        otherwise=lambda: f"{words} not in {log.stat().st_size} bytes",
    )
