"""Atomic files and checked safetensors: a reader sees the old file or the new one.

A process killed at any moment leaves no half-written file under its final name.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from .errors import RunError
from .tensor_bytes import TensorBytesError, read_safetensors, strict_json

CHECKSUM = "sha256"
_SCRAP = ".tmp"
_KEY = "fedclip"  # one metadata key: safetensors orders several at random


def cannot_write(path: Path, error: OSError) -> RunError:
    """The user error for a full or read-only disk."""
    return RunError(
        f"cannot write {path}: {error.strerror}; free some space or choose another "
        "directory (--out, or FEDCLIP_CACHE for the feature cache)"
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
    """The new name is on the disk too."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(directory: Path, name: str = "*") -> None:
    """Remove what killed writers of files ``name`` left; nobody else may write now."""
    for scrap in directory.glob(f".{name}{_SCRAP}"):
        scrap.unlink(missing_ok=True)


@functools.cache
def _umask() -> int:
    """What the user keeps from others; it can be read only by setting it."""
    found = os.umask(0o077)
    os.umask(found)
    return found


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
        tensors, header = read_safetensors(data)
        metadata = strict_json(header.get(_KEY, "{}"))
    except TensorBytesError as error:
        raise DamagedFileError(
            f"{path} is not a whole safetensors file: {error}"
        ) from error
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) for value in metadata.values()
    ):
        raise DamagedFileError(f"{path}: its metadata are no texts")
    if CHECKSUM in metadata and metadata[CHECKSUM] != digest_tensors(tensors):
        raise DamagedFileError(f"{path} was altered: its checksum does not match")
    return tensors, metadata
