"""A CLIP of which only the shapes are there: what it would train and send is known.

Built on PyTorch's meta device from the model's config alone: no weights, no images, and
hardly any time or memory.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..config.inputs import DataConfig
from .load import without_weights
from .resolve import resolve_config
from .tokenizer import load_tokenizer
from .whole import Pixels, WholeClip


class Outline(NamedTuple):
    """A CLIP without values, and the width D of its features."""

    clip: WholeClip
    dim: int


def outline(model: str, classes: int, config_dir: str | None = None) -> Outline:
    """Of the ``model`` that a user names, with captions of so many ``classes``.

    The captions begin as those of a run without ``--prompt``.  Raises WeightsError for
    a model that is not known.
    """
    source = resolve_config(model, config_dir)
    tokenize = load_tokenizer(source)
    context = tokenize([""]).shape[1]
    meta = torch.device("meta")
    tokens = torch.empty(classes, context, dtype=torch.int64, device=meta)
    names = tuple(f"class {i}" for i in range(classes))
    (prompt,) = DataConfig().prompts
    module = without_weights(source, meta).eval().requires_grad_(False)
    clip = WholeClip(module, tokenize, tokens, names, prompt, Pixels.none(meta))
    return Outline(clip, int(source.config["embed_dim"]))
