"""What crosses between client and server: the adapter's state and its update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

State = dict[str, Tensor]
"""Named tensors; for FedCLIP ``0.weight 0.bias 2.weight 2.bias``, float32 on the CPU
or on the training device, as in the authors' code (``fed_at_clip.py: img_adap``)."""


@dataclass(frozen=True)
class ClientUpdate:
    """One client's answer in one round.

    ``num_examples`` counts the training rows; ``metrics`` holds plain floats, such as
    the mean ``loss`` of the round.  ``private`` never leaves the client: what it keeps
    for its next round.
    """

    client: str
    state: State
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    private: State = field(default_factory=dict)
