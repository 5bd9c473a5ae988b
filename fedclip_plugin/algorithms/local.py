"""Local adapters: FedCLIP's training on every client alone, without communication.

What federation has to beat on the clients' own domains.  An unseen domain is judged by
each client's adapter; the accuracies are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import ConfigError
from ..wire.update import ClientUpdate, State
from .base import Client, Task
from .fedclip import FedClip


class Local(FedClip):
    """The state stays the common start; every client keeps an adapter of its own."""

    name = "local"
    trains = "the attention adapter, never sent"
    source = ""
    communicates = False
    personal = True

    def init(self, task: Task) -> State:
        """The common start."""
        if task.train.optimizer_state != "reset":
            raise ConfigError("--alg local: --optimizer-state keep is not possible")
        return super().init(task)

    def local_round(
        self, state: State, clients: Sequence[Client], task: Task, round_number: int
    ) -> list[ClientUpdate]:
        """Every client goes on from its own adapter."""
        train = super().local_round
        updates = [
            update
            for c in clients
            for update in train(self.client_state(state, c), [c], task, round_number)
        ]
        return [replace(update, kept=update.state) for update in updates]

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: State, task: Task
    ) -> State:
        """Nobody learns from anybody."""
        return state

    def target_states(self, state: State, clients: Sequence[Client]) -> list[State]:
        """Every client's adapter, in the order of their names."""
        return [c.kept for c in sorted(clients, key=lambda c: c.name) if c.kept] or [
            state
        ]
