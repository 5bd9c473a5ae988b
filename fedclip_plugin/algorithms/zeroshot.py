"""Zero-shot CLIP: nothing is trained, nothing is sent (Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..wire.update import ClientUpdate, State
from .base import Algorithm, Client, Task


class ZeroShot(Algorithm):
    """The baseline of every report, as an algorithm of its own: one round, no bytes."""

    name = "zeroshot"
    trains = "nothing"
    learns = False
    open_vocabulary = True
    source = "Radford et al. 2021, arXiv 2103.00020"
    defaults: ClassVar = {"rounds": 1}
    communicates = False

    def init(self, task: Task) -> State:
        """No parameters."""
        return {}

    def local_train(
        self, state: State, client: Client, task: Task, round_number: int
    ) -> ClientUpdate:
        """Nothing to train."""
        return ClientUpdate(client.name, {}, len(client.train))

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: State, task: Task
    ) -> State:
        """Nothing to aggregate."""
        return state

    def predict(self, state: State, x: Tensor, task: Task) -> Tensor:
        """Scaled cosine of image and text features."""
        return task.logit_scale * F.normalize(x, dim=1) @ task.text.t()
