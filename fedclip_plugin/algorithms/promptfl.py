"""PromptFL: clients learn the prompt's context vectors, which alone travel.

Guo et al. 2023 (arXiv 2208.11625), over CoOp (Zhou et al. 2022, arXiv 2109.01134):
continuous vectors take the place of the words before the class name, one set for all
classes, started from the words of ``--prompt``.  Images stay frozen features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.fields import Section, option
from ..errors import ConfigError
from ..wire.update import ClientUpdate, State
from .base import Algorithm, Client, Task
from .context import scores_of, text_under, token_embedding
from .training import fit_state


class PromptFL(Algorithm):
    """State ``context`` (M, W): M vectors of the text tower's width."""

    name = "promptfl"
    trains = "the words before the class name"
    needs = "text tower"
    open_vocabulary = True
    source = "Guo et al. 2023, arXiv 2208.11625"
    needs_clip = True
    defaults: ClassVar = {"lr": 1e-3, "weight_decay": 0.0, "weighting": "examples"}

    def init(self, task: Task) -> State:
        """The embeddings of the words before the class name."""
        clip = task.whole_clip
        words = clip.prompt.partition("{}")[0].strip()
        if not words:
            raise ConfigError(
                f"--alg {self.name} starts from the words before the class name: "
                f"--prompt {clip.prompt!r} has none"
            )
        tokens = clip.tokenize([words])[0]  # start, words, end, padding
        count = int((tokens != 0).sum()) - 2
        embedding = token_embedding(clip, self.name)
        with torch.no_grad():
            context: Tensor = embedding(tokens[1 : 1 + count].to(clip.tokens.device))
        return {"context": context.clone()}

    def local_train(
        self, state: State, client: Client, task: Task, round_number: int
    ) -> ClientUpdate:
        """Local epochs on the cross-entropy over all classes."""

        def loss(params: State, rows: Tensor) -> Tensor:
            text = self.text(params["context"], task)
            scores = scores_of(text, client.train.x[rows], task)
            error = F.cross_entropy(scores, client.train.y[rows])
            return error + self.penalty(text, task)

        return fit_state(state, loss, client, task, round_number)

    def penalty(self, text: Tensor, task: Task) -> Tensor | float:
        """What is added to the loss for the learned text features ``text`` (C, D)."""
        return 0.0

    def predict(self, state: State, x: Tensor, task: Task) -> Tensor:
        """Scaled cosine with the captions under the learned context."""
        with torch.no_grad():
            return scores_of(self.text(state["context"], task), x, task)

    def text(self, context: Tensor, task: Task) -> Tensor:
        """Normalised text features (C, D) of the captions under ``context`` (M, W)."""
        clip = task.whole_clip
        return text_under(context, clip.tokens, clip, self.name)


@dataclass(frozen=True)
class KgCoOpParams(Section):
    """What KgCoOp has beside PromptFL; the default is the paper's."""

    weight: float = option(
        8.0, "kgcoop: weight of the distance from the hand-written captions",
        within="[0, inf)")  # fmt: skip


class KgCoOp(PromptFL):
    """PromptFL held near the hand-written captions, so that it forgets less.

    Yao, Zhang, Xu 2023, "Visual-Language Prompt Tuning with Knowledge-guided Context
    Optimization", eq. 4 to 6: ``CE + weight / C sum_c |t_c - t_c^hand|^2``.
    """

    name = "kgcoop"
    source = "Yao et al. 2023, arXiv 2303.13283, on PromptFL"
    Params = KgCoOpParams

    def penalty(self, text: Tensor, task: Task) -> Tensor | float:
        """``weight`` times the mean squared distance of learned and written text."""
        weight: float = task.params.weight
        return weight * (text - task.text).square().sum(dim=1).mean()
