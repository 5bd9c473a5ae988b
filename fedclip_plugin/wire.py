"""A ClientUpdate as bytes and back: safetensors with a checksum, never pickle.

The bytes are what a client would send in one round; their length is what the reports
count.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache

import safetensors.torch
import torch
from safetensors import SafetensorError

from .errors import UpdateError
from .storage import digest_tensors
from .update import ClientUpdate, State

_CHECKSUM = "sha256"
_KEY = "fedclip"  # one metadata key: safetensors orders several at random


def _fields(update: ClientUpdate) -> dict[str, object]:
    return {
        "client": update.client,
        "num_examples": update.num_examples,
        "metrics": {k: float(v) for k, v in update.metrics.items()},
    }


def _checksum(state: State, fields: object) -> str:
    text = json.dumps(fields, sort_keys=True) + digest_tensors(state)
    return hashlib.sha256(text.encode()).hexdigest()


def _envelope(fields: dict[str, object], checksum: str) -> str:
    return json.dumps({**fields, _CHECKSUM: checksum}, sort_keys=True)


def encode_update(update: ClientUpdate) -> bytes:
    """Bytes of an update: a safetensors file whose metadata tells client and rows."""
    fields = _fields(update)
    return _save(update.state, _envelope(fields, _checksum(update.state, fields)))


def _save(state: State, envelope: str | None = None) -> bytes:
    plain = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    return safetensors.torch.save(plain, {_KEY: envelope} if envelope else None)


def decode_update(data: bytes, where: str = "update") -> ClientUpdate:
    """The update in ``data``; raises UpdateError on anything torn, altered or foreign.

    ``where`` names the sender in messages.
    """
    try:
        state = safetensors.torch.load(data)
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        fields = json.loads(header["__metadata__"][_KEY])
        expected = fields.pop(_CHECKSUM)
        client, count = fields["client"], fields["num_examples"]
        metrics = {str(k): float(v) for k, v in fields["metrics"].items()}
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UpdateError(f"{where}: not a whole fedclip update ({error})") from error
    if _checksum(state, fields) != expected:
        raise UpdateError(f"{where}: altered on the way, its checksum does not match")
    if not isinstance(client, str) or not isinstance(count, int) or count < 0:
        raise UpdateError(f"{where}: client or num_examples is malformed")
    return ClientUpdate(client, state, count, metrics)


def update_bytes(update: ClientUpdate) -> int:
    """``len(encode_update(update))``, without building the bytes every round."""
    envelope = _envelope(_fields(update), "0" * 64)
    return _length(_signature(update.state), len(json.dumps(envelope)) - 2)


def state_bytes(state: State) -> int:
    """Length of the safetensors bytes of a state, as the server sends it down."""
    return _length(_signature(state), None)


_Signature = tuple[tuple[str, tuple[int, ...], torch.dtype], ...]


def _signature(state: State) -> _Signature:
    return tuple((k, tuple(v.shape), v.dtype) for k, v in sorted(state.items()))


@lru_cache(maxsize=256)
def _length(signature: _Signature, envelope: int | None) -> int:
    state = {key: torch.zeros(shape, dtype=dtype) for key, shape, dtype in signature}
    return len(_save(state, "x" * envelope if envelope else None))
