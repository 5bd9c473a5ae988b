"""A federated linear head on frozen, normalised features (a federated linear probe).

FedAVG (McMahan et al. 2017, arXiv 1602.05629) of multinomial logistic regression; it
knows the classes by the clients' labels alone, not by their names.  Started from the
text features (``--linear-init text``) it is zero-shot before the first round, as the
linear rows of FedOT's paper are (arXiv 2505.19888).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.fields import Section, option
from ..wire.update import ClientUpdate, State
from .base import Algorithm, Client, Task
from .training import fit_state


@dataclass(frozen=True)
class LinearParams(Section):
    """What the head starts from."""

    init: str = option(
        "zero", "linear: the head at the start; text is zero-shot, the text features "
        "times the logit scale", choices=("zero", "text"))  # fmt: skip


class Linear(Algorithm):
    """State ``weight`` (C, D) and ``bias`` (C,); trained by Adam."""

    name = "linear"
    trains = "a linear head"
    source = "McMahan et al. 2017, arXiv 1602.05629"
    Params = LinearParams
    text_at_server = True
    defaults: ClassVar = {"lr": 1e-2, "weight_decay": 0.0, "weighting": "examples"}

    def init(self, task: Task) -> State:
        """All classes alike, or zero-shot."""
        text = task.params.init == "text"
        weight = task.logit_scale * task.text if text else torch.zeros_like(task.text)
        return {"weight": weight, "bias": task.text.new_zeros(len(task.text))}

    def local_train(
        self, state: State, client: Client, task: Task, round_number: int
    ) -> ClientUpdate:
        """Local epochs on the cross-entropy over all classes."""

        def loss(params: State, rows: Tensor) -> Tensor:
            scores = self.predict(params, client.train.x[rows], task)
            return F.cross_entropy(scores, client.train.y[rows])

        return fit_state(state, loss, client, task, round_number)

    def predict(self, state: State, x: Tensor, task: Task) -> Tensor:
        """Class scores of normalised features."""
        return F.linear(F.normalize(x, dim=1), state["weight"], state["bias"])
