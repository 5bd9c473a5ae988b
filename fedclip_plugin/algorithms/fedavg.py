"""FedAVG and FedProx on all of CLIP: what FedCLIP's paper compares with.

McMahan et al. 2017 (arXiv 1602.05629); Li et al. 2020 (arXiv 1812.06127).  Image and
text tower are fine-tuned on the paper's in-batch loss; every weight travels.  Batch
normalisation keeps the statistics of the pretraining.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..config.fields import Section, option
from ..wire.update import ClientUpdate, State
from .adapter import contrastive_loss
from .base import Algorithm, Client, Samples, Task
from .training import fit_state


class FedAvg(Algorithm):
    """State: every parameter of the model, by its name in open_clip."""

    name = "fedavg"
    trains = "all of CLIP"
    needs = "images"
    open_vocabulary = True
    source = "McMahan et al. 2017, arXiv 1602.05629"
    needs_clip = True
    rows_at_once = 256
    defaults: ClassVar = {"weighting": "examples", "weight_decay": 0.0}

    def model(self, task: Task) -> nn.Module:
        """The module that is trained."""
        return task.whole_clip.model

    def init(self, task: Task) -> State:
        """The pretrained CLIP."""
        parameters = self.model(task).named_parameters()
        return {name: p.detach().clone() for name, p in parameters}

    def inputs(self, samples: Samples, task: Task) -> Tensor:
        """The images themselves."""
        pixels = task.whole_clip.pixels
        assert samples.rows is not None  # where there are pixels, there are rows
        return pixels[samples.rows]

    def local_train(
        self, state: State, client: Client, task: Task, round_number: int
    ) -> ClientUpdate:
        """Local epochs of Adam on all weights."""
        model, tokens = self.model(task), task.whole_clip.tokens

        def loss(params: State, rows: Tensor) -> Tensor:
            batch = client.train[rows]
            present, column = torch.unique(batch.y, return_inverse=True)
            images, text, scale = functional_call(
                model, params, (self.inputs(batch, task), tokens[present])
            )[:3]
            contrast = contrastive_loss(images, column, text, scale)
            return contrast + self.proximal(params, state, task)

        # alone, a row has no negatives in the in-batch loss
        return fit_state(state, loss, client, task, round_number, least=2)

    def proximal(self, params: State, start: State, task: Task) -> Tensor | float:
        """What FedProx adds to the loss."""
        return 0.0

    def predict(self, state: State, x: Tensor, task: Task) -> Tensor:
        """Scaled cosine of image and text features of the trained model."""
        model, tokens = self.model(task), task.whole_clip.tokens
        with torch.no_grad():
            images, text, scale = functional_call(model, state, (x, tokens))[:3]
            scores: Tensor = scale * images @ text.t()
        return scores


@dataclass(frozen=True)
class FedProxParams(Section):
    """What FedProx has beside FedAVG."""

    mu: float = option(
        0.01, "fedprox: weight of the proximal term", name="mu",
        within="[0, inf)")  # fmt: skip


class FedProx(FedAvg):
    """FedAVG with ``mu / 2`` times the squared distance from the round's start."""

    name = "fedprox"
    source = "Li et al. 2020, arXiv 1812.06127"
    Params = FedProxParams

    def proximal(self, params: State, start: State, task: Task) -> Tensor | float:
        """``mu / 2 * |w - w_start|^2``."""
        squares = [(params[k] - start[k]).square().sum() for k in params]
        mu: float = task.params.mu
        return mu / 2 * torch.stack(squares).sum()
