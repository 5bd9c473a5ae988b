"""FedAVG of LoRA factors on all of CLIP: few bytes, but every image is encoded anew.

Hu et al. 2022 (arXiv 2106.09685) by the library peft, on every linear layer of both
towers; aggregated as in FedAVG.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, ClassVar

import torch
from torch import nn

from ..errors import ConfigError
from ..wire.update import State
from .base import Task
from .fedavg import FedAvg

RANK = 8


class FedAvgLora(FedAvg):
    """State: the factors A and B of every linear layer; B starts at zero."""

    name = "fedavg-lora"
    trains = "LoRA factors of every linear layer"
    source = "Hu et al. 2022, arXiv 2106.09685"
    defaults: ClassVar = {"lr": 1e-3, "weighting": "examples", "weight_decay": 0.0}

    def __init__(self) -> None:
        self._injected: tuple[nn.Module, nn.Module] | None = None

    def model(self, task: Task) -> nn.Module:
        """The CLIP with LoRA factors in it; a copy, made once."""
        plain = task.whole_clip.model
        if self._injected is None or self._injected[0] is not plain:
            self._injected = (plain, _inject(copy.deepcopy(plain), task.seed))
        return self._injected[1]

    def init(self, task: Task) -> State:
        """Factors whose product is zero: the pretrained CLIP."""
        return {k: v for k, v in super().init(task).items() if "lora_" in k}


def _inject(model: nn.Module, seed: int) -> nn.Module:
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            "--alg fedavg-lora needs peft: pip install 'fedclip-plugin[lora]'"
        ) from error
    # The projections of nn.MultiheadAttention are not called as layers.
    inside = {
        f"{name}.{child}"
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        for child, _ in module.named_modules()
    }
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in inside
    ]
    config: Any = peft.LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=layers, lora_dropout=0.0
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        injected: nn.Module = peft.inject_adapter_in_model(config, model)
    return injected.eval().requires_grad_(False)
