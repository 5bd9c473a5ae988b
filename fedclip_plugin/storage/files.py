"""Atomic files and checked safetensors: a reader sees the old file or the new one.

A process killed at any moment leaves no half-written file under its final name.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import RunError

_SCRAP = ".tmp"
MAX_NAME = 200  # bytes; 255 are allowed, and an ending and a number follow
# signs that some system refuses, a dot in front, a dot or blank at the end
_UNSAFE = re.compile(r"""[%\x00-\x1f\x7f-\x9f<>:"/\\|?*]|^\.|[. ]$""")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def cannot_write(path: Path, error: OSError) -> RunError:
    """The user error for a disk that is full, read-only or broken."""
    return RunError(
        f"cannot write {path}: {error.strerror}; {remedy(error)}, or choose another "
        "directory (--out, --to, or FEDCLIP_CACHE for the feature cache)"
    )


def remedy(error: OSError) -> str:
    """What to do about an error of writing."""
    if error.errno in _FULL:
        return "free some space"
    if error.errno in _REFUSED:
        return "get the right to write there"
    return "check the disk"


def refused(error: RunError) -> bool:
    """Whether a place may only be read, unlike one that is full or broken."""
    return getattr(error.__cause__, "errno", None) in _REFUSED


def file_names(names: Sequence[str], ours: Collection[str] = ()) -> dict[str, str]:
    """A file's name for each of a user's: itself where every system takes it.

    No two names have the same one, in any case, nor has one of ``ours``, which lie
    beside them.
    """
    keys = Counter(name.casefold() for name in (*ours, *dict.fromkeys(names)))
    return {name: _file_name(name, keys[name.casefold()] > 1) for name in names}


def _file_name(name: str, taken: bool) -> str:
    def escaped(match: re.Match[str]) -> str:
        return "".join(f"%{byte:02X}" for byte in match[0].encode())

    safe = _UNSAFE.sub(escaped, name)
    if not taken and len(safe.encode()) <= MAX_NAME:
        return safe
    digest = hashlib.sha256(name.encode()).hexdigest()
    return f"{safe[:40]}%{digest[:24]}"


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
                    _sync(file.fileno())
            with suppress(OSError):  # CIFS, NTFS and FUSE may have modes of their own
                os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
            if durable and hasattr(os, "O_DIRECTORY"):
                _sync_directory(path.parent)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def _sync(handle: int) -> None:
    """Wait for the disk, where the file system can."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def _sync_directory(directory: Path) -> None:
    """Wait until the new name, too, is on the disk; not every file system can."""
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def remove_leftovers(directory: Path, name: str = "*") -> None:
    """Remove temporary files of killed writers; nobody else may be writing now."""
    for scrap in directory.glob(f".{name}{_SCRAP}"):
        with suppress(OSError):  # of another user, or read-only
            scrap.unlink()


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
