"""Tiny CLIPs for the tests: random weights, a second to make, any architecture."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import nn

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}


def write_config(folder: Path, name: str, vision: dict[str, Any], **top: Any) -> Path:
    folder.mkdir(exist_ok=True)
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, **top}
    file = folder / f"{name}.json"
    file.write_text(json.dumps(config))
    return file


def tiny_clip(
    folder: Path, name: str, vision: dict[str, Any] | None = None, **top: Any
) -> Path:
    """Write ``<name>.json`` and ``<name>.safetensors``; return the weights' file."""
    open_clip.add_model_config(write_config(folder, name, vision or VIT, **top))
    torch.manual_seed(0)
    model = open_clip.create_model(name)
    with torch.no_grad():
        model.logit_scale.fill_(4.6051702)
        for module in model.modules():  # statistics that a real network would have
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
    file = folder / f"{name}.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, file)
    return file


class _Empty(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def jit_archive(state: dict[str, torch.Tensor], file: Path) -> Path:
    """A TorchScript archive with these tensors, as OpenAI's downloads are made."""
    root = _Empty()
    extra = {k: torch.tensor(32) for k in ("input_resolution", "vocab_size")}
    for key, value in {**state, **extra}.items():
        *path, leaf = key.split(".")
        node: nn.Module = root
        for part in path:
            if part not in node._modules:
                node.add_module(part, _Empty())
            node = node.get_submodule(part)
        if value.is_floating_point():
            node.register_parameter(leaf, nn.Parameter(value.half()))
        else:
            node.register_buffer(leaf, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(root).save(str(file))
    return file
