"""States for the tests of codecs."""

from __future__ import annotations

import torch

from fedclip_plugin.wire.codecs import CODECS
from fedclip_plugin.wire.update import State

NAMES = tuple(CODECS)


def states(shape: tuple[int, ...], seed: int = 0) -> tuple[State, State]:
    """What was sent, and what a client made of it."""
    generator = torch.Generator().manual_seed(seed)
    sent = {"w": torch.randn(shape, generator=generator)}
    step = 1e-3 * torch.randn(shape, generator=generator)
    return sent, {"w": sent["w"] + step}
