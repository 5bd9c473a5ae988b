"""What a PersonalizedFL run tells beside the host's own tables: on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from ..errors import FedClipError

SECONDS = 5.0  # between two lines of progress


def say(text: str) -> None:
    """A line of news."""
    print(f"fedclip: {' '.join(text.split())}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """A FedClipError ends ``main.py`` in one line and exit code 2; also a decorator."""
    try:
        yield
    except FedClipError as error:
        say(f"error: {error}")
        raise SystemExit(2) from error


class Progress:
    """Images hashed and encoded, a line every few seconds."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """``digests.Progress``: one more step of ``what`` is done."""
        if time.monotonic() - self._said > SECONDS:
            self._said = time.monotonic()
            say(f"{what}: {done}/{total}")
