"""SHA-256 of images, remembered by the change stamps of their files."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import time
from pathlib import Path

from ..data.dataset import ImageDomain
from ..data.progress import Progress, silent
from ..errors import DataError, RunError
from ..storage.files import refused, write_json

SAVE_SECONDS = 10.0  # of hashing are lost by kill -9, at most
_log = logging.getLogger("fedclip")


def digest_domain(
    domain: ImageDomain, cache: Path, progress: Progress = silent, skip: bool = False
) -> list[str]:
    """SHA-256 (hex) of every image's bytes; files with a known stamp are not read.

    With ``skip`` an unreadable file gets an empty digest instead of a DataError.
    """
    memo_path = cache / "digests" / (_memo_name(domain) + ".json")
    memo = _Memo(memo_path if domain.stat else None)
    digests = []
    try:
        for i, file in enumerate(domain.files):
            stamp = _stamp(domain, i)
            digest = memo.get(file, stamp)
            if digest is None:
                digest = _digest(domain, i, skip)
                memo.add(file, stamp, digest)
                if i % 512 == 511:
                    progress(f"hash {domain.name}", i + 1, len(domain.files))
            digests.append(digest)
    finally:
        memo.save()  # neither an unreadable image nor Ctrl-C loses what was hashed
    return digests


class _Memo:
    """File -> stamp and digest, in a JSON file; only a shortcut, and best effort."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries = _read_memo(path) if path else {}
        self._fresh = False
        self._since = time.monotonic()

    def get(self, file: str, stamp: str) -> str | None:
        """The digest of ``file``, if it is as it was."""
        entry = self._entries.get(file)
        return entry[1] if entry and stamp and entry[0] == stamp else None

    def add(self, file: str, stamp: str, digest: str) -> None:
        """Remember a digest; what is slow to read is saved on the way."""
        if stamp and digest:
            self._entries[file], self._fresh = (stamp, digest), True
        if time.monotonic() - self._since > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write what is new."""
        self._since = time.monotonic()
        if self._path is None or not self._fresh:
            return
        self._fresh = False
        try:
            write_json(self._path, self._entries)
        except RunError as error:
            if not refused(error):
                raise
            _warn(self._path.parent)
            self._path = None


@functools.cache
def _warn(folder: Path) -> None:
    """Told once, not for every domain."""
    _log.warning(
        "hashes of images cannot be kept in %s, which may only be read: every run "
        "reads all images again; set FEDCLIP_CACHE to a directory of yours",
        folder,
    )


def _stamp(domain: ImageDomain, i: int) -> str:
    """The change stamp of image ``i``, or "" where there is none to have."""
    try:
        return domain.stat(i) if domain.stat else ""
    except DataError:  # told when it is read
        return ""


def _digest(domain: ImageDomain, i: int, skip: bool) -> str:
    try:
        return hashlib.sha256(domain.read(i)).hexdigest()
    except DataError as error:
        if not skip:
            raise
        _log.warning("skipped: %s", error)
        return ""


def _memo_name(domain: ImageDomain) -> str:
    first = _stamp(domain, 0) if domain.files else ""
    names = "\n".join((domain.name, first, *domain.files[:1]))
    return hashlib.sha256(names.encode()).hexdigest()[:32]


def _read_memo(path: Path) -> dict[str, tuple[str, str]]:
    try:
        saved = json.loads(path.read_text())
        return {file: (str(stamp), str(sha)) for file, (stamp, sha) in saved.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # only a shortcut: without it the files are hashed again
