"""What crosses between client and server: the adapter's state and its update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

State = dict[str, Tensor]
"""Named tensors; for FedCLIP ``0.weight 0.bias 2.weight 2.bias``, float32 on the CPU
or on the training device, as in the authors' code (``fed_at_clip.py: img_adap``).
What a client keeps for itself stands beside them as ``<client>/<key>``."""


def on_device(state: Mapping[str, Tensor], device: torch.device | str) -> State:
    """``state`` where it is used; tensors that are there already are shared."""
    return {key: value.to(device) for key, value in state.items()}


@dataclass(frozen=True)
class ClientUpdate:
    """One client's answer in one round.

    ``num_examples`` counts the training rows; ``metrics`` holds plain floats, such as
    the mean ``loss`` of the round.  ``private`` never leaves the client: what it keeps
    for its next round.  ``codec`` tells how ``state`` is compressed (``codecs.py``):
    client and server agree on it by configuration, it is no part of the bytes.
    """

    client: str
    state: State
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    private: State = field(default_factory=dict)
    codec: str = "none"


def private_states(updates: Iterable[ClientUpdate]) -> State:
    """What clients keep, as ``<client>/<key>``: in the state, but never sent."""
    return {f"{u.client}/{k}": v for u in updates for k, v in u.private.items()}
