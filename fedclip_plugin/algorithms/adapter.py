"""The attention adapter, its seeded initial state, and the paper's loss.

Source: Lu et al. 2023, section 3.2; authors' code ``nets/models.py: initdgatal``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..wire.update import State
from .plugins import Registry

M = TypeVar("M")
ATTENTION = "attention"
KEYS = ("0.weight", "0.bias", "2.weight", "2.bias")


class AttentionAdapter(nn.Sequential):
    """Linear, tanh, linear, softmax: a gate on the frozen image features.

    The state dict has the authors' keys ``0.weight 0.bias 2.weight 2.bias``, so their
    checkpoints load.  ``forward`` returns the normalised gated features ``z`` (N, D)
    for raw features ``x`` (N, D); ``gate`` the attention weights alone.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(
            nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim), nn.Softmax(dim=1)
        )

    def gate(self, x: Tensor) -> Tensor:
        """Attention weights (N, D); every row sums to 1."""
        for layer in self:
            x = layer(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Normalised gated features (N, D)."""
        return ops.adapter(x, *self.parameters())[0]


ADAPTERS: Registry[Callable[[int], nn.Module]] = Registry(
    "adapter", "fedclip_plugin.adapters"
)
"""Name -> what makes a module of a width D; its ``forward`` takes raw features (N, D)
to normalised ones (N, D), its state is float32.  ``attention`` alone has kernels."""
ADAPTERS.register(ATTENTION, AttentionAdapter)


class BottleneckAdapter(AttentionAdapter):
    """The attention adapter over D/8 hidden units: an eighth of the parameters."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        hidden = max(1, dim // 8)
        self[0], self[2] = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised gated features (N, D)."""
        return F.normalize(self.gate(x) * x, dim=1)


class ResidualAdapter(AttentionAdapter):
    """Half the feature as it is, half gated; untrained it is the identity.

    The second layer starts at zero, so that the gate ``D * softmax`` is 1 everywhere.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        for parameter in self[2].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised mix of features and gated features (N, D)."""
        gate = x.shape[1] * self.gate(x)  # (N, D), mean 1
        return F.normalize((0.5 + 0.5 * gate) * x, dim=1)


ADAPTERS.register("bottleneck", BottleneckAdapter)
ADAPTERS.register("residual", ResidualAdapter)


class TwoSides(nn.Module):
    """Adapters of the image and of the text features: one of them, or both.

    ``forward`` takes raw image features (N, D) and text features (C, D) to normalised
    ones.  The paper adapts the image side alone.
    """

    def __init__(self, dim: int, adapter: str, side: str) -> None:
        super().__init__()
        build = ADAPTERS.get(adapter)
        self.image = build(dim) if side != "text" else None
        self.text = build(dim) if side != "image" else None

    def forward(self, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised image (N, D) and text features (C, D)."""
        z = self.image(x) if self.image is not None else F.normalize(x, dim=1)
        t = self.text(text) if self.text is not None else F.normalize(text, dim=1)
        return z, t


def initial_state(
    dim: int, seed: int, adapter: str = ATTENTION, side: str = "image"
) -> State:
    """State of a fresh adapter (PyTorch's default initialisation), float32 on the CPU.

    The keys are the adapter's own for the image side, and begin with ``image.`` or
    ``text.`` otherwise.  The global random state is left as it was; the same seed gives
    the same bits.
    """
    module = seeded(lambda: TwoSides(dim, adapter, side), seed)
    return plain_keys(module.state_dict(), side)


def seeded(make: Callable[[], M], seed: int) -> M:
    """What ``make`` makes from ``seed``; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def plain_keys(state: Mapping[str, Tensor], side: str) -> State:
    """A state of :class:`TwoSides` under the keys that travel."""
    cut = "image." if side == "image" else ""
    return {key.removeprefix(cut): value.detach() for key, value in state.items()}


def full_keys(state: State, side: str) -> State:
    """The inverse of :func:`plain_keys`."""
    return {f"image.{k}": v for k, v in state.items()} if side == "image" else state


def apply_adapter(state: State, x: Tensor) -> Tensor:
    """Normalised gated features (N, D) of raw features ``x`` (N, D), as published."""
    with torch.no_grad():
        return ops.adapter(x, *(state[key] for key in KEYS))[0]


def apply_sides(
    state: State, x: Tensor, text: Tensor, adapter: str, side: str
) -> tuple[Tensor, Tensor]:
    """Normalised image (N, D) and text features (C, D) of any adapter and side."""
    if (adapter, side) == (ATTENTION, "image"):
        return apply_adapter(state, x), text
    module = TwoSides(x.shape[1], adapter, side).to(x.device).eval()
    with torch.no_grad():
        z, t = torch.func.functional_call(module, full_keys(state, side), (x, text))
    return z, t


def contrastive_loss(
    z: Tensor, y: Tensor, text: Tensor, logit_scale: float = 100.0
) -> Tensor:
    """The paper's in-batch symmetric cross-entropy, differentiable.

    ``z`` (B, D) normalised, ``y`` (B,) int64, ``text`` (C, D) normalised.  For local
    loops of your own; ``ops.local_epoch`` holds the fused form of the same loss.
    """
    logits = logit_scale * z @ text[y].t()  # (B, B)
    truth = torch.arange(len(y), device=z.device)
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.t(), truth)) / 2
