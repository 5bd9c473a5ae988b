"""Local adapters: FedCLIP's training on every client alone, without communication.

What federation has to beat on the clients' own domains.  An unseen domain is judged by
each client's adapter; the accuracies are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConfigError
from ..wire.update import ClientUpdate, State
from .base import Client, Task
from .fedclip import FedClip


class Local(FedClip):
    """A state holds the common start and, under ``<client>/``, each one's own."""

    name = "local"
    communicates = False

    def init(self, task: Task) -> State:
        """The common start."""
        if task.train.optimizer_state != "reset":
            raise ConfigError("--alg local: --optimizer-state keep is not possible")
        return super().init(task)

    def local_round(
        self, state: State, clients: Sequence[Client], task: Task, round_number: int
    ) -> list[ClientUpdate]:
        """Every client goes on from its own adapter."""
        return [
            super(Local, self).local_round(
                self.client_state(state, c.name), [c], task, round_number
            )[0]
            for c in clients
        ]

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: State, task: Task
    ) -> State:
        """Each keeps its own."""
        own = {f"{u.client}/{k}": v for u in updates for k, v in u.state.items()}
        return {**state, **own}

    def client_state(self, state: State, client: str) -> State:
        """The client's own adapter; the common start before it has trained."""
        prefix = f"{client}/"
        own = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
        return own or self.update_like(state)

    def target_states(self, state: State) -> list[State]:
        """Every client's adapter."""
        names = sorted({key.rpartition("/")[0] for key in state if "/" in key})
        return [self.client_state(state, n) for n in names] or [state]
