"""How work on images reports where it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``: called while work proceeds."""


def silent(what: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""
