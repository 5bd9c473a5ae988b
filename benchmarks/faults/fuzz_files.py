"""Files for the readers that are fuzzed, in a directory that goes with the process."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@functools.cache
def folder() -> Path:
    """A directory for files, in memory where the system has one; left to the system."""
    shared = Path("/dev/shm")
    where = shared if shared.is_dir() else None
    kept = tempfile.TemporaryDirectory(prefix="fedclip-fuzz-", dir=where)
    _KEPT.append(kept)
    return Path(kept.name)


_KEPT: list[Any] = []  # removed when the process ends


def put(name: str, data: bytes) -> Path:
    """A file in it, with its directories."""
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@contextmanager
def instead(path: Path, data: bytes) -> Iterator[None]:
    """Other bytes in a file, for a while."""
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)
