"""Text features under learned context: vectors in the place of a caption's words.

Zhou et al. 2022, "Learning to Prompt for Vision-Language Models" (CoOp), arXiv
2109.01134: the text tower stays frozen, and reads vectors of its token embedding's
width between the start token and the class name.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..clip.whole import WholeClip
from ..errors import ConfigError
from .base import Task


def text_under(context: Tensor, tokens: Tensor, clip: WholeClip, name: str) -> Tensor:
    """Normalised text features (C, D) of captions that begin with ``context`` (M, W).

    ``tokens`` (C, L) have M tokens after the start whose embeddings it replaces.
    """
    count = len(context)

    def put(module: Any, inputs: Any, embedded: Tensor) -> Tensor:  # (C, L, W)
        own = context.expand(len(embedded), -1, -1)
        return torch.cat([embedded[:, :1], own, embedded[:, 1 + count :]], dim=1)

    model: Any = clip.model
    hook = token_embedding(clip, name).register_forward_hook(put)
    try:
        text: Tensor = model.encode_text(tokens, normalize=True)
    finally:
        hook.remove()
    return text


def scores_of(text: Tensor, x: Tensor, task: Task) -> Tensor:
    """(N, C) scores of raw features ``x`` (N, D) for text features (C, D)."""
    scores: Tensor = task.logit_scale * F.normalize(x, dim=1) @ text.t()
    return scores


def token_embedding(clip: WholeClip, name: str) -> Any:
    """The text tower's embedding of tokens; ConfigError where it has none to reach.

    ``name`` is of the algorithm.
    """
    model: Any = clip.model
    embedding = getattr(model, "token_embedding", None)
    if embedding is None:
        embedding = getattr(getattr(model, "text", None), "token_embedding", None)
    if embedding is None:
        raise ConfigError(
            f"--alg {name} needs a text tower with a token embedding of open_clip's "
            "own; this model's is another"
        )
    return embedding
