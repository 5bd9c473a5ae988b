"""Hashes of files, remembered by path, size, times and inode.

So a second run does not read 600 MB of weights to learn that nothing has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from ..config.paths import PathError, as_path
from ..errors import ConfigError, RunError, WeightsError
from .files import write_json

MEMO_NAME = "file-hashes.json"
SETTLED_SECONDS = 2.0  # a younger file may change again within one clock tick


def cache_dir() -> Path:
    """Where features and hashes are cached: $FEDCLIP_CACHE, or ~/.cache/fedclip.

    Raises ConfigError for a variable that names no place, RunError for a user without
    a home.
    """
    for name, below in (("FEDCLIP_CACHE", ""), ("XDG_CACHE_HOME", "fedclip")):
        if chosen := os.environ.get(name):
            try:
                return as_path(chosen) / below
            except PathError as error:
                raise ConfigError(f"{name}: {error}") from error
    return home() / ".cache" / "fedclip"


def home() -> Path:
    """The user's home; raises RunError for a user without one, as in containers."""
    if os.name != "posix" or os.environ.get("HOME"):
        return Path.home()
    import pwd

    try:  # HOME may be empty, which is not the root of the disk
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        raise RunError(
            "this user has no home directory, and HOME is not set: set FEDCLIP_CACHE "
            "to a folder for the feature cache"
        ) from None


def file_sha256(file: Path) -> str:
    """SHA-256 (hex) of a file's bytes; WeightsError if it cannot be read."""
    try:
        stat = file.stat()
        # another file may have the time stamp of the old one, but not its ctime
        stamp = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        key = str(file.resolve())
        entry = _read_memo().get(key)
        if isinstance(entry, list) and [*entry[:2], *entry[3:]] == stamp:
            return str(entry[2])
        digest = _hash(file)
    except OSError as error:
        raise WeightsError(f"cannot read {file}: {error.strerror}") from error
    if time.time() - stat.st_mtime > SETTLED_SECONDS:
        _remember(key, [*stamp[:2], digest, *stamp[2:]])
    return digest


def _hash(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_memo() -> dict[str, Any]:
    try:
        memo = json.loads((cache_dir() / MEMO_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing, or damaged: only time is lost
        return {}
    return memo if isinstance(memo, dict) else {}


def _remember(key: str, value: list[Any]) -> None:
    # Replaced in one step; of two processes the later wins, and the other hashes again.
    try:
        write_json(cache_dir() / MEMO_NAME, {**_read_memo(), key: value})
    except RunError:
        return  # a read-only cache directory
