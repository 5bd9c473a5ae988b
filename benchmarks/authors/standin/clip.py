"""A stand-in for OpenAI's package ``clip``, for timing the authors' code without it.

Offers what that code calls: ``load(name, device, jit) -> (model, preprocess)`` and
``tokenize(texts)``, over open_clip's model of the same architecture.  The weights come
from the file that ``CLIP_STANDIN_WEIGHTS`` names; their values change no amount of
work.  ``CLIP_STANDIN_MODEL`` and ``CLIP_STANDIN_CONFIG`` choose another model.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import open_clip
import torch
from torch import Tensor

NAMES = {"ViT-B/32": "ViT-B-32-quickgelu", "ViT-B/16": "ViT-B-16-quickgelu"}


def load(
    name: str, device: str | torch.device = "cpu", jit: bool = False
) -> tuple[Any, Callable[..., Tensor]]:
    """The model in eval mode and its transform: (PIL image) -> (3, S, S) float32.

    As OpenAI's: fp32 on the CPU, fp16 weights on CUDA; nothing is frozen.
    """
    if folder := os.environ.get("CLIP_STANDIN_CONFIG"):
        open_clip.add_model_config(folder)
    model, _, preprocess = open_clip.create_model_and_transforms(
        os.environ.get("CLIP_STANDIN_MODEL") or NAMES[name],
        pretrained=os.environ["CLIP_STANDIN_WEIGHTS"],
        precision="fp16" if torch.device(device).type == "cuda" else "fp32",
        device=device,
    )
    return model.eval(), preprocess


def tokenize(texts: str | list[str], context_length: int = 77) -> Tensor:
    """Captions -> (N, 77) int64 with the byte-pair encoding of every CLIP."""
    tokens: Tensor = open_clip.tokenize(texts, context_length=context_length)
    return tokens
