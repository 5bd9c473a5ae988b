"""What crosses between client and server: the adapter's state and its update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

State = dict[str, Tensor]
"""Named tensors; for FedCLIP ``0.weight 0.bias 2.weight 2.bias``, float32 on the CPU
or on the training device, as in the authors' code (``fed_at_clip.py: img_adap``)."""

Kept = dict[str, State]
"""Client -> what it keeps for its next round; none of it is ever sent."""


def on_device(state: Mapping[str, Tensor], device: torch.device | str) -> State:
    """``state`` where it is used; tensors that are there already are shared."""
    return {key: value.to(device) for key, value in state.items()}


@dataclass(frozen=True)
class ClientUpdate:
    """One client's answer in one round.

    ``num_examples`` counts the training rows; ``metrics`` holds plain floats, such as
    the mean ``loss`` of the round.  ``kept`` never leaves the client: what it keeps for
    its next round.  ``codec`` tells how ``state`` is compressed (``codecs.py``): client
    and server agree on it by configuration; the bytes do not say it.  ``weight`` is the
    server's own: how much the update counts in the mean, where it decides that.
    """

    client: str
    state: State
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    kept: State = field(default_factory=dict)
    codec: str = "none"
    weight: float | None = None


def remember(kept: Mapping[str, State], updates: Iterable[ClientUpdate]) -> Kept:
    """What clients keep after a round: key by key, the newest."""
    new = {u.client: {**kept.get(u.client, {}), **u.kept} for u in updates if u.kept}
    return {**kept, **new}


def private_part(kept: Mapping[str, Tensor]) -> State:
    """What predicts of what a client keeps.

    A key ``<name>:<what>`` is for training or sending alone: an optimizer's slot, the
    residual of compression.
    """
    return {key: value for key, value in kept.items() if ":" not in key}


def flatten(kept: Mapping[str, State]) -> State:
    """What clients keep as one state, ``<client>/<key>``: for a file."""
    return {f"{c}/{k}": v for c, state in kept.items() for k, v in state.items()}


def unflatten(tensors: Mapping[str, Tensor]) -> Kept:
    """The inverse of :func:`flatten`; a key has no ``/``, a client's name may."""
    kept: Kept = {}
    for name, value in tensors.items():
        client, _, key = name.rpartition("/")
        kept.setdefault(client, {})[key] = value
    return kept
