"""How a test waits for what must come: it is ended only where something hangs."""

from __future__ import annotations

import time
from collections.abc import Callable

SECONDS = 900.0  # many times what a loaded machine of two cores needs


def wait_until(
    done: Callable[[], bool],
    pause: float = 0.001,
    otherwise: Callable[[], str] = lambda: "",
) -> None:
    """Look every ``pause`` seconds; at the end fail with what ``otherwise`` says."""
    end = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < end, otherwise() or f"nothing for {SECONDS:.0f} s"
        time.sleep(pause)
