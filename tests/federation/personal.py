"""A small algorithm whose clients keep a part that predicts for them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fedclip_plugin.algorithms import Client, Task
from fedclip_plugin.algorithms.base import kept_state
from fedclip_plugin.algorithms.linear import Linear
from fedclip_plugin.wire.update import ClientUpdate, State


class OwnBias(Linear):
    """The linear head; every client keeps a bias of its own, the log of its classes."""

    name = "own-bias"
    personal = True

    def local_train(
        self, state: State, client: Client, task: Task, round_number: int
    ) -> ClientUpdate:
        """The head's training; the kept bias gains a count a round."""
        update = super().local_train(state, client, task, round_number)
        own = kept_state(client, {"own": task.text.new_zeros(len(task.text))})["own"]
        seen = torch.bincount(client.train.y, minlength=len(own)).to(own)
        return replace(update, kept={"own": own + seen / max(1, len(client.train))})

    def predict(self, state: State, x: Tensor, task: Task) -> Tensor:
        """The head's scores, moved by what the client keeps."""
        scores = super().predict(state, x, task)
        return scores + state["own"] if "own" in state else scores
