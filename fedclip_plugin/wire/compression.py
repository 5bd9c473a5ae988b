"""Compressed updates: whole states in the codecs of ``codecs.py``, with error feedback.

What rounding and leaving out lose is not lost: the client keeps it and adds it to its
next difference (Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .. import ops
from ..config.schema import WireConfig
from .codec import Codec, Parts, is_finite, misfit
from .codecs import CODECS, TopK
from .spool import Spool, on_disk, portions
from .update import ClientUpdate, State

PLAIN = "none"
RESIDUAL = "residual:"  # before the key of what a client has not sent yet


def payload_keys(codec: str, sent: State) -> list[str]:
    """The names of the tensors that travel in the place of those of ``sent``."""
    return [
        key + part
        for key, value in sent.items()
        for part in (CODECS[codec].parts if value.is_floating_point() else ("",))
    ]


def _parts(codec: Codec, payload: Mapping[str, Tensor], key: str) -> Parts:
    return tuple([payload[key + part] for part in codec.parts])


def encode(
    codec: Codec, state: State, sent: State, residual: State
) -> tuple[State, State]:
    """What travels of ``state``, and the residual that the client keeps.

    Of a state with NaN or Inf nothing is kept: the server will not take it, and the
    client goes on with the ``residual`` that it had.
    """
    payload: State = {}
    kept: State = {}
    for key, start in sent.items():
        if not start.is_floating_point():
            payload[key] = state[key]
            continue
        x = state[key].float() - start.float()
        if key in residual:
            x = x + residual[key].to(x.device)
        parts = codec.pack(x)
        kept[key] = x - codec.unpack(parts, x.shape)
        payload |= {key + part: value for part, value in zip(codec.parts, parts)}
    return payload, kept if all(map(is_finite, kept.values())) else residual


def decode(codec: Codec, payload: State, sent: State) -> State:
    """The state that a payload without fault stands for."""
    return {
        key: _moved(start, codec.unpack(_parts(codec, payload, key), start.shape))
        if start.is_floating_point()
        else payload[key]
        for key, start in sent.items()
    }


def _moved(start: Tensor, step: Tensor) -> Tensor:
    return (start.float() + step).to(start.dtype)


def fault(codec: str, payload: State, sent: State) -> str | None:
    """Why ``payload`` cannot be decoded against ``sent``; None if it can."""
    if codec not in CODECS:
        return f"it is encoded as {codec!r}, which is none of {', '.join(CODECS)}"
    keys = payload_keys(codec, sent)
    if set(payload) != set(keys):
        return f"keys {sorted(payload)}, expected {sorted(keys)} ({codec})"
    coder = CODECS[codec]
    for key, start in sent.items():
        if start.is_floating_point():
            problem = coder.fault(_parts(coder, payload, key), start.shape)
        else:
            problem = misfit("it", payload[key], start.dtype, start.shape)
        if problem:
            return f"{key} ({codec}): {problem}"
    return None


def payload_squares(updates: Sequence[ClientUpdate], sent: State) -> Tensor:
    """Squared L2 distances that K updates of one codec moved, from what travelled.

    (K,) float64; the updates are without fault.
    """
    codec = CODECS[updates[0].codec]
    total = torch.zeros(len(updates), dtype=torch.float64)
    for key, start in sent.items():
        if start.is_floating_point():
            packed = [_parts(codec, u.state, key) for u in updates]
            total += codec.squares(packed, start.shape)
    return total


# ----------------------------------------------------------------------------- updates


def compress(
    updates: Sequence[ClientUpdate],
    kept: Mapping[str, State],
    sent: State,
    wire: WireConfig,
) -> list[ClientUpdate]:
    """The updates as they travel, by ``wire.compress``.

    The clients' residuals are in what they ``kept``, the new ones in the updates'.
    A state unlike ``sent`` stays as it is, for the screening to name.
    """
    if wire.compress == PLAIN:
        return list(updates)
    share = wire.topk_share
    codec = TopK(share) if wire.compress == "topk" else CODECS[wire.compress]

    def one(update: ClientUpdate) -> ClientUpdate:
        if not _alike(update.state, sent):
            return update
        own = kept.get(update.client, {})
        before = {k: own[RESIDUAL + k] for k in sent if RESIDUAL + k in own}
        payload, residual = encode(codec, update.state, sent, before)
        keeps = dict(update.kept)
        if wire.error_feedback == "on":
            keeps |= {RESIDUAL + key: value for key, value in residual.items()}
        return replace(update, state=payload, kept=keeps, codec=wire.compress)

    return [one(update) for update in updates]


def _alike(state: State, sent: State) -> bool:
    return state.keys() == sent.keys() and not any(
        misfit("it", state[key], start.dtype, start.shape)
        for key, start in sent.items()
    )


def decoded(updates: Sequence[ClientUpdate], sent: State) -> list[ClientUpdate]:
    """The updates with the states that they stand for; ``sent`` is what they answer.

    On the disk, where the updates are.
    """
    if all(u.codec == PLAIN for u in updates):
        return list(updates)
    spool = Spool() if on_disk() and len(updates) > 1 else None
    plain: list[ClientUpdate] = []
    for part in portions(updates):
        states = [_decoded(u, sent) for u in part]
        plain += spool.keep(states) if spool else states
    return plain


def _decoded(update: ClientUpdate, sent: State) -> ClientUpdate:
    if update.codec == PLAIN:
        return update
    state = decode(CODECS[update.codec], update.state, sent)
    return replace(update, state=state, codec=PLAIN)


def mean(updates: Sequence[ClientUpdate], weights: Tensor, sent: State) -> State:
    """Weighted mean of updates of one codec, without decoding them all at once."""
    codec = CODECS[updates[0].codec]

    def one(key: str, start: Tensor) -> Tensor:
        if not start.is_floating_point():
            return ops.weighted_mean([u.state[key] for u in updates], weights)
        packed = [_parts(codec, u.state, key) for u in updates]
        return _moved(start, codec.mean(packed, weights, start.shape))

    return {key: one(key, start) for key, start in sent.items()}
