"""A state as a module, for hosts that pass models on rather than tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..wire.update import State


class StateModule(nn.Module):
    """Holds any state under its own keys, dots included; it computes nothing.

    ``load_state_dict`` takes whatever it is given: what a client gets of a server's
    state may have other keys than the server's own.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        self.load_state_dict(state)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Hold copies of these tensors in the place of what was there."""
        copies = {k: v.detach().clone() for k, v in state_dict.items()}
        self._modules.clear()
        self._buffers.clear()
        for key, value in copies.items():
            *folders, name = key.split(".")
            owner: nn.Module = self
            for folder in folders:
                if folder not in owner._modules:
                    owner.add_module(folder, nn.Module())
                owner = owner.get_submodule(folder)
            owner.register_buffer(name, value)
        return super().load_state_dict(copies, strict)

    def forward(self, x: Tensor) -> Tensor:
        """Nothing: an algorithm predicts with the state itself."""
        raise NotImplementedError("a state predicts by its algorithm's `predict`")
