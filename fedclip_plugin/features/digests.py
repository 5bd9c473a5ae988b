"""SHA-256 of images, remembered by the change stamps of their files."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from ..data.dataset import ImageDomain
from ..data.progress import Progress, silent
from ..errors import DataError
from ..storage.files import write_json

_log = logging.getLogger("fedclip")


def digest_domain(
    domain: ImageDomain, cache: Path, progress: Progress = silent, skip: bool = False
) -> list[str]:
    """SHA-256 (hex) of every image's bytes; files with a known stamp are not read.

    With ``skip`` an unreadable file gets an empty digest instead of a DataError.
    """
    memo_path = cache / "digests" / (_memo_name(domain) + ".json")
    memo = _read_memo(memo_path) if domain.stat else {}
    digests, fresh = [], False
    for i, file in enumerate(domain.files):
        entry = memo.get(file)
        stamp = _stamp(domain, i)
        if not stamp or entry is None or entry[0] != stamp:
            entry = (stamp, _digest(domain, i, skip))
            memo[file], fresh = entry, True
            if i % 512 == 511:
                progress(f"hash {domain.name}", i + 1, len(domain.files))
        digests.append(entry[1])
    if domain.stat and fresh:
        write_json(memo_path, {f: v for f, v in memo.items() if v[1]})
    return digests


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
