"""Safetensors from strangers: what they declare is checked before it is trusted.

A header is read strictly (one meaning for every name, plain numbers, no nesting), and
what it declares must lie in the bytes that are there, so that reading takes no more
memory than a small multiple of them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import one_line
from .files import write_bytes

CHECKSUM = "sha256"
METADATA_KEY = "fedclip"  # a single one: safetensors orders several at random
MAX_HEADER = 4 << 20  # bytes; some 40,000 tensors
MAX_DIMS = 16
_LENGTH = 8  # bytes that hold the header's

_BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8},
    **{"U16": 16, "I16": 16, "F16": 16, "BF16": 16},
    **{"U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64},
    **{"F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8},
}

_FIELDS = {"dtype", "shape", "data_offsets"}


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
    header = {METADATA_KEY: json.dumps(fields, sort_keys=True)}
    write_bytes(path, safetensors.torch.save(plain, header), durable)


class DamagedFileError(Exception):
    """A tensor file that is truncated, altered or not a safetensors file at all."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, checked against its checksum.

    Raises FileNotFoundError, or DamagedFileError with the reason.  A file without a
    checksum (written by other software) is read as it is.
    """
    data = path.read_bytes()
    try:
        tensors, header = read_safetensors(data)
        metadata = strict_json(header.get(METADATA_KEY, "{}"))
    except TensorBytesError as error:
        raise DamagedFileError(
            f"{path} is not a whole safetensors file: {error}"
        ) from error
    if not _are_strings(metadata):
        raise DamagedFileError(f"{path}: its metadata values are not strings")
    if CHECKSUM in metadata and metadata[CHECKSUM] != digest_tensors(tensors):
        raise DamagedFileError(f"{path} was altered: its checksum does not match")
    return tensors, metadata


class TensorBytesError(ValueError):
    """Bytes that are not valid safetensors, or too many; the message says why."""


def strict_json(text: str | bytes) -> Any:
    """JSON with one meaning: TensorBytesError for a repeated name and for NaN."""
    try:
        return json.loads(
            text,
            object_pairs_hook=_once,
            parse_constant=_no_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise TensorBytesError(f"invalid JSON ({error})") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise TensorBytesError("a name occurs twice")
    return entries


def _no_constant(name: str) -> Any:
    raise TensorBytesError(f"{name} is not a number")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _no_constant(digits[:20])


def read_safetensors(
    data: bytes, limit: int | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata in ``data``; raises TensorBytesError, with the reason.

    ``limit`` is the largest accepted size in bytes; None accepts any.  Files written by
    other software pass if they are valid.
    """
    if limit is not None and len(data) > limit:
        raise TensorBytesError(f"{len(data)} bytes, expected at most {limit}")
    entries, metadata = _header(data)
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise TensorBytesError(one_line(error)) from error
    if tensors.keys() != entries.keys():
        raise TensorBytesError("its header is not what safetensors reads")
    return tensors, metadata


def _header(data: bytes) -> tuple[dict[str, Any], dict[str, str]]:
    """The entries of the tensors, each within the bytes, and the metadata."""
    size = int.from_bytes(data[:_LENGTH], "little")
    room = len(data) - _LENGTH
    if room < 2 or size > min(room, MAX_HEADER):
        raise TensorBytesError(f"{len(data)} bytes do not hold the header they declare")
    header = strict_json(data[_LENGTH : _LENGTH + size])
    if not isinstance(header, dict):
        raise TensorBytesError("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not _are_strings(metadata):
        raise TensorBytesError("its metadata values are not strings")
    for name, entry in header.items():
        _check_entry(name, entry, room - size)
    return header, metadata


def _are_strings(metadata: object) -> bool:
    return isinstance(metadata, dict) and all(
        isinstance(value, str) for value in metadata.values()
    )


def _check_entry(name: str, entry: object, room: int) -> None:
    """Refuse a tensor without the bytes that its shape and dtype need in ``room``."""
    if not isinstance(entry, Mapping) or entry.keys() != _FIELDS:
        raise TensorBytesError(f"tensor {name!r} is not described by {sorted(_FIELDS)}")
    shape, place = entry["shape"], entry["data_offsets"]
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise TensorBytesError(f"tensor {name!r} has an unknown dtype")
    if not _whole(shape) or len(shape) > MAX_DIMS:
        raise TensorBytesError(f"tensor {name!r} has no shape of <= {MAX_DIMS} sizes")
    if not _whole(place) or len(place) != 2 or not place[0] <= place[1] <= room:
        raise TensorBytesError(f"tensor {name!r} lies outside the bytes")
    # a zero beside huge sizes would hide them
    spread = math.prod(size or 1 for size in shape)
    bits = math.prod(shape) * _BITS[dtype]
    if spread > 2**62 or bits != 8 * (place[1] - place[0]):
        raise TensorBytesError(f"tensor {name!r} does not have the bytes of its shape")


def _whole(values: object) -> bool:
    """Whether ``values`` is a list of non-negative integers, booleans excluded."""
    return isinstance(values, list) and all(
        type(value) is int and value >= 0 for value in values
    )
