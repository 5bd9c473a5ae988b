"""Atomic files and checked safetensors: a reader sees the old file or the new one.

A process killed at any moment leaves no half-written file under its final name.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from .errors import RunError

CHECKSUM = "sha256"
_KEY = "fedclip"  # one metadata key: safetensors orders several at random


def cannot_write(path: Path, error: OSError) -> RunError:
    """The user error for a full or read-only disk."""
    return RunError(
        f"cannot write {path}: {error.strerror}; free some space or choose another "
        "directory (--out, or FEDCLIP_CACHE for the feature cache)"
    )


def write_bytes(path: Path, data: bytes, durable: bool = True) -> None:
    """Replace ``path`` by ``data`` in one step.

    ``durable`` waits for the disk (power loss); without it the file still survives
    ``kill -9``.  Raises RunError naming the path on a full or read-only disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def write_json(path: Path, value: Any) -> None:
    """Write JSON that every parser reads: no NaN, keys in the order given."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    write_bytes(path, text.encode())


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    durable: bool = True,
) -> None:
    """Atomic safetensors file with a checksum of the tensors in its metadata."""
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    fields = {**(metadata or {}), CHECKSUM: digest_tensors(plain)}
    header = {_KEY: json.dumps(fields, sort_keys=True)}
    write_bytes(path, safetensors.torch.save(plain, header), durable)


class DamagedFileError(Exception):
    """A tensor file that is truncated, altered or no safetensors file at all."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, checked against its checksum.

    Raises FileNotFoundError, or DamagedFileError with the reason.  A file without a
    checksum (written by other software) is read as it is.
    """
    data = path.read_bytes()
    try:
        tensors = safetensors.torch.load(data)
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size]).get("__metadata__", {})
        metadata: dict[str, str] = json.loads(header.get(_KEY, "{}"))
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedFileError(f"{path} is not a whole safetensors file") from error
    if CHECKSUM in metadata and metadata[CHECKSUM] != digest_tensors(tensors):
        raise DamagedFileError(f"{path} was altered: its checksum does not match")
    return tensors, metadata
