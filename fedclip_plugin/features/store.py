"""The files of the feature cache: shards of one encoder's features, by image digest.

A shard is written in one step and checked when read, so a killed run resumes after its
last shard, and a damaged one costs only its own images.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import RunError
from ..storage.files import cannot_write, refused, remove_leftovers, write_json
from ..storage.locks import BaseFileLock, Timeout, take
from ..storage.tensors import DamagedFileError, read_tensors, write_tensors

SHARD_ROWS = 512
SHARD_SECONDS = 10.0  # a slow encoder saves its work at least this often
_log = logging.getLogger("fedclip")


class FeatureStore:
    """Shards under ``directory``; safe under several processes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def lock(self) -> BaseFileLock:
        """The lock of the one who encodes, taken; freed if its process dies."""
        path = self.directory / "lock"
        try:
            try:
                return take(path, seconds=0.1)
            except Timeout:
                _log.warning("another process is encoding these images; waiting for it")
                return take(path, seconds=-1)
        except OSError as error:
            raise cannot_write(path, error) from error

    def load(self, wanted: set[str]) -> dict[str, Tensor]:
        """Stored features (D,) by digest; a damaged shard is deleted with a warning."""
        features: dict[str, Tensor] = {}
        for path in sorted(self.directory.glob("shard-*.safetensors")):
            try:
                keys, rows = _read_shard(path)
            except FileNotFoundError:
                continue  # dropped by another process meanwhile
            except DamagedFileError as error:
                _log.warning("%s; its images are encoded again", error)
                path.unlink(missing_ok=True)
                continue
            features.update((k, r) for k, r in zip(keys, rows) if k in wanted)
        return features

    def remove_leftovers(self) -> None:
        """Remove temporary files of killed encoders; for the owner of the lock."""
        remove_leftovers(self.directory, "shard-*")

    def add(self, digests: Sequence[str], image: Tensor) -> None:
        """Write one shard: ``image`` (N, D) float32 for N digests."""
        name = hashlib.sha256("".join(digests).encode()).hexdigest()[:24]
        raw = torch.tensor([list(bytes.fromhex(d)) for d in digests], dtype=torch.uint8)
        write_tensors(
            self.directory / f"shard-{name}.safetensors",
            {"digest": raw, "image": image},
        )

    def load_text(
        self, captions: Sequence[Sequence[str]]
    ) -> tuple[Tensor, float] | None:
        """Text features (C, D) and logit scale of these captions, or None."""
        path = self._text_path(captions)
        try:
            tensors, meta = read_tensors(path)
            text, scale = tensors["text"], float(meta["logit_scale"])
            fine = _is_table(text, len(captions[0])) and 0 < scale < math.inf
        except FileNotFoundError:
            return None
        except (DamagedFileError, KeyError, ValueError) as error:
            _log.warning("%s; the captions are encoded again", error)
            return None
        if not fine:
            _log.warning("%s holds no text features; captions are encoded again", path)
            return None
        return text, scale

    def add_text(
        self, captions: Sequence[Sequence[str]], text: Tensor, logit_scale: float
    ) -> None:
        """Write the text features (C, D) of these captions, unless it may only be read.

        They cost a second, and every image may be there.
        """
        meta = {"logit_scale": repr(logit_scale)}
        try:
            write_tensors(self._text_path(captions), {"text": text}, meta)
        except RunError as error:
            if not refused(error):
                raise
            _log.warning("%s; the captions are encoded in every run", error)

    def _text_path(self, captions: Sequence[Sequence[str]]) -> Path:
        key = hashlib.sha256(json.dumps(captions).encode()).hexdigest()[:32]
        return self.directory / f"text-{key}.safetensors"

    @property
    def precision(self) -> str:
        """The precision in which this store's images were encoded, or ``unknown``."""
        try:
            saved = json.loads((self.directory / "encoder.json").read_text())
            return str(saved["precision"])
        except (OSError, ValueError, KeyError):
            return "unknown"

    @precision.setter
    def precision(self, value: str) -> None:
        write_json(self.directory / "encoder.json", {"precision": value})


def _read_shard(path: Path) -> tuple[list[str], Tensor]:
    """Digests and features (N, D) of a shard; raises DamagedFileError."""
    tensors, _ = read_tensors(path)
    digest, image = tensors.get("digest"), tensors.get("image")
    if (
        digest is None
        or digest.dtype is not torch.uint8
        or digest.dim() != 2
        or image is None
        or not _is_table(image, len(digest))
    ):
        raise DamagedFileError(f"{path} has no valid image features")
    return [bytes(row).hex() for row in digest.numpy()], image.float()


def _is_table(value: Tensor, rows: int) -> bool:
    """Whether ``value`` holds ``rows`` rows of floats."""
    return value.dim() == 2 and len(value) == rows and value.dtype.is_floating_point


class ShardWriter:
    """Rows waiting to be written; flushed by count and by time."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._keys: list[str] = []
        self._rows: list[Tensor] = []
        self._since = time.monotonic()

    def extend(self, digests: Sequence[str], image: Tensor) -> None:
        """Add rows: ``image`` (N, D) float32 for N digests."""
        self._keys.extend(digests)
        self._rows.append(image)
        late = time.monotonic() - self._since > SHARD_SECONDS
        if len(self._keys) >= SHARD_ROWS or late:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if self._keys:
            self._store.add(self._keys, torch.cat(self._rows))
        self._keys, self._rows, self._since = [], [], time.monotonic()
