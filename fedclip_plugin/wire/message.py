"""A ClientUpdate as bytes and back: safetensors with a checksum, never pickle.

The bytes are what a client would send in one round; their length is what the reports
count.  Whoever sends them is a stranger: nothing in them is trusted unchecked.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import safetensors.torch
import torch

from ..errors import UpdateError
from ..storage.shapes import MOST_COUNT, has_control
from ..storage.tensors import (
    CHECKSUM,
    METADATA_KEY,
    TensorBytesError,
    digest_tensors,
    read_safetensors,
    strict_json,
)
from .update import ClientUpdate, State

MAX_NAME = 256  # characters
MARGIN = 1 << 20  # bytes that an update may have beyond those of what was sent out


def pack(state: State, fields: Mapping[str, object]) -> bytes:
    """Tensors of any dtype and plain ``fields`` (JSON) as bytes with a checksum."""
    return _save(state, _envelope(fields, _checksum(state, fields)))


def unpack(
    data: bytes, where: str, limit: int | None = None
) -> tuple[State, dict[str, Any]]:
    """The arguments of :func:`pack`; raises UpdateError on anything torn or altered.

    ``where`` names the sender in messages; more bytes than ``limit`` are refused.
    """
    try:
        state, metadata = read_safetensors(data, limit)
        if metadata.keys() != {METADATA_KEY}:
            raise TensorBytesError("its metadata are another software's")
        fields = strict_json(metadata[METADATA_KEY])
        if not isinstance(fields, dict):
            raise TensorBytesError("its metadata are not a JSON object")
    except TensorBytesError as error:
        raise UpdateError(f"{where}: not a whole fedclip update ({error})") from error
    if fields.pop(CHECKSUM, None) != _checksum(state, fields):
        raise UpdateError(f"{where}: altered on the way, its checksum does not match")
    return state, fields


def encode_update(update: ClientUpdate) -> bytes:
    """Bytes of an update: a safetensors file whose metadata names client and rows."""
    return pack(update.state, _fields(update))


def decode_update(
    data: bytes, where: str = "update", like: State | None = None
) -> ClientUpdate:
    """The update in ``data``; raises UpdateError on anything torn, altered or foreign.

    ``where`` names the sender in messages.  ``like`` is the state that was sent out:
    an update that is much larger is refused before it takes memory.  Whether keys,
    shapes and values are right is checked by the screening.
    """
    state, fields = unpack(data, where, None if like is None else size_limit(like))
    if fields.keys() != {"client", "num_examples", "metrics"}:
        raise UpdateError(f"{where}: expected client, num_examples and metrics")
    client, count, metrics = (
        fields[key] for key in ("client", "num_examples", "metrics")
    )
    if not _is_name(client) or not is_count(count):
        raise UpdateError(f"{where}: client or num_examples is malformed")
    if not isinstance(metrics, dict) or not all(
        _is_name(k) and isinstance(v, float) and math.isfinite(v)
        for k, v in metrics.items()
    ):
        raise UpdateError(f"{where}: metrics are not finite numbers")
    return ClientUpdate(client, state, count, metrics)


def is_count(value: object) -> bool:
    """Whether ``value`` is a count: a non-negative integer, not a boolean."""
    return type(value) is int and 0 <= value <= MOST_COUNT


def size_limit(like: State) -> int:
    """The most bytes that an honest update to the state ``like`` has."""
    return MARGIN + 2 * sum(v.numel() * v.element_size() for v in like.values())


def update_bytes(update: ClientUpdate) -> int:
    """``len(encode_update(update))``, without building the bytes every round."""
    envelope = _envelope(_fields(update), "0" * 64)
    return _length(_signature(update.state), len(json.dumps(envelope)) - 2)


def state_bytes(state: State) -> int:
    """Length of the safetensors bytes of a state, as the server sends it down."""
    return _length(_signature(state), None)


def _fields(update: ClientUpdate) -> dict[str, object]:
    metrics = {k: float(v) for k, v in update.metrics.items()}
    return {
        "client": update.client,
        "num_examples": update.num_examples,
        # JSON has no NaN: a mean over nothing is left out
        "metrics": {k: v for k, v in metrics.items() if math.isfinite(v)},
    }


def _is_name(text: object) -> bool:
    """Whether ``text`` can stand in a line of a log: short, no control characters."""
    return isinstance(text, str) and len(text) <= MAX_NAME and not has_control(text)


def _checksum(state: State, fields: Mapping[str, object]) -> str:
    text = json.dumps(fields, sort_keys=True) + digest_tensors(state)
    return hashlib.sha256(text.encode()).hexdigest()


def _envelope(fields: Mapping[str, object], checksum: str) -> str:
    return json.dumps({**fields, CHECKSUM: checksum}, sort_keys=True, allow_nan=False)


def _save(state: State, envelope: str | None = None) -> bytes:
    plain = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    return safetensors.torch.save(plain, {METADATA_KEY: envelope} if envelope else None)


_Signature = tuple[tuple[str, tuple[int, ...], torch.dtype], ...]


def _signature(state: State) -> _Signature:
    return tuple((k, tuple(v.shape), v.dtype) for k, v in sorted(state.items()))


@lru_cache(maxsize=256)
def _length(signature: _Signature, envelope: int | None) -> int:
    state = {key: torch.zeros(shape, dtype=dtype) for key, shape, dtype in signature}
    return len(_save(state, "x" * envelope if envelope else None))
