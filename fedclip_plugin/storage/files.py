"""Atomic files and checked safetensors: a reader sees the old file or the new one.

A process killed at any moment leaves no half-written file under its final name.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import RunError

_SCRAP = ".tmp"


def cannot_write(path: Path, error: OSError) -> RunError:
    """The user error for a full or read-only disk."""
    return RunError(
        f"cannot write {path}: {error.strerror}; free some space, or choose another "
        "directory (--out, --to, or FEDCLIP_CACHE for the feature cache)"
    )


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Replace ``path`` by ``data`` in one step; see :func:`write_parts`."""
    write_parts(path, (data,), durable)


def write_parts(path: Path, parts: Iterable[bytes], durable: bool = True) -> None:
    """Replace ``path`` by ``parts``, one after the other, in one step.

    ``durable`` waits for the disk (power loss); without it the file still survives
    ``kill -9``.  Raises RunError naming the path on a full or read-only disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(_SCRAP, f".{path.name}.", path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(parts)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
            if durable and hasattr(os, "O_DIRECTORY"):
                _sync_directory(path.parent)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def _sync_directory(directory: Path) -> None:
    """Wait until the new name, too, is on the disk."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(directory: Path, name: str = "*") -> None:
    """Remove temporary files of killed writers; nobody else may be writing now."""
    for scrap in directory.glob(f".{name}{_SCRAP}"):
        scrap.unlink(missing_ok=True)


@functools.cache
def _umask() -> int:
    """The process's umask; it can be read only by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def write_json(path: Path, value: Any) -> None:
    """Write JSON that every parser reads: no NaN, keys in the order given."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_bytes(path, text.encode())
