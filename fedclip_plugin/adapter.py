"""The attention adapter, its seeded initial state, and the paper's loss.

Source: Lu et al. 2023, section 3.2; authors' code ``nets/models.py: initdgatal``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ops
from .plugins import Registry
from .update import State

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


def initial_state(dim: int, seed: int, adapter: str = ATTENTION) -> State:
    """State of a fresh adapter (PyTorch's default initialisation), float32 on the CPU.

    The global random state is left as it was; the same seed gives the same bits.
    """
    build = ADAPTERS.get(adapter)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build(dim)
    return {key: value.detach() for key, value in module.state_dict().items()}


def apply_adapter(state: State, x: Tensor, adapter: str = ATTENTION) -> Tensor:
    """Normalised gated features (N, D) of raw features ``x`` (N, D)."""
    with torch.no_grad():
        if adapter == ATTENTION:
            return ops.adapter(x, *(state[key] for key in KEYS))[0]
        module = ADAPTERS.get(adapter)(x.shape[1]).to(x.device).eval()
        z: Tensor = torch.func.functional_call(module, state, (x,))
        return z


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
