"""Facts about files on disk: their hash, and what a weights file gives away.

The hash of a big file is remembered by its path, size and time of change, so that a
second run does not read 600 MB to learn that nothing is new.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import RunError, WeightsError
from .storage import write_json

QUICKGELU = "-quickgelu"
MEMO_NAME = "file-hashes.json"
SETTLED_SECONDS = 2.0  # a younger file may change again within one clock tick


def cache_dir() -> Path:
    """Where features and hashes are kept: $FEDCLIP_CACHE, or ~/.cache/fedclip."""
    if chosen := os.environ.get("FEDCLIP_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fedclip"


def file_sha256(file: Path) -> str:
    """SHA-256 (hex) of a file's bytes; WeightsError if it cannot be read."""
    try:
        stat = file.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        key = str(file.resolve())
        known = _read_memo().get(key)
        if isinstance(known, list) and known[:2] == stamp and len(known) == 3:
            return str(known[2])
        digest = _hash(file)
    except OSError as error:
        raise WeightsError(f"cannot read {file}: {error.strerror}") from error
    if time.time() - stat.st_mtime > SETTLED_SECONDS:
        _remember(key, [*stamp, digest])
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


def read_json(file: Path) -> Mapping[str, Any]:
    """A JSON object, {} if it is another value; WeightsError if unreadable."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file}: not a readable JSON file: {error}") from error
    return value if isinstance(value, dict) else {}


def is_jit_archive(file: Path) -> bool:
    """Whether a checkpoint is a TorchScript archive, as OpenAI's downloads are."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(n.endswith("/constants.pkl") for n in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def origin_of(name: str, file: Path) -> Mapping[str, Any]:
    """What is known of a file by the place it was downloaded to; {} if nothing.

    A hub snapshot has ``open_clip_config.json`` beside the weights; failing that, the
    folder or the file is named as in open_clip's registry.  QuickGELU and the pixel
    normalisation cannot be read off the weights themselves.
    """
    sibling = file.with_name("open_clip_config.json")
    if sibling.is_file():
        config = read_json(sibling)
        quick = config.get("model_cfg", {}).get("quick_gelu", False)
        return {**config.get("preprocess_cfg", {}), "quick_gelu": bool(quick)}
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    base = name.removesuffix(QUICKGELU)
    folders = {part.rsplit("--", 1)[-1] for part in file.absolute().parts[:-1]}
    for tag in open_clip.list_pretrained_tags_by_model(base):
        known: dict[str, Any] = get_pretrained_cfg(base, tag)
        repository = known.get("hf_hub", "").rstrip("/").rsplit("/", 1)[-1]
        url_name = known.get("url", "").rsplit("/", 1)[-1]
        # OpenAI's files are plain "ViT-B-32.pt": too common a name to conclude from.
        if repository in folders or (tag != "openai" and url_name == file.name):
            return {"quick_gelu": False, **known}
    return {}
