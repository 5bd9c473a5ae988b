"""``--evaluate FILE``: a method whose state comes from a file and is never trained.

Every client of a host, or of ``fedclip run``, scores the state on its own rows in one
round, zero-shot beside it; what goes up is one number, which says that it has it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError, reason
from ..storage.tensors import DamagedFileError, read_tensors
from ..wire.update import ClientUpdate, State, on_device
from .base import Algorithm, Client, Samples, Task

SEEN = "evaluated"  # all that an answer holds


class Evaluated(Algorithm):
    """A method's predictions from the state in ``path``; a round changes nothing.

    The state is what all clients share: what single ones keep is left out of it.
    """

    averages = False
    moves = False
    learns = False

    def __init__(self, inner: Algorithm, path: Path) -> None:
        if not inner.communicates or inner.needs_clip:
            why = inner.why_clip if inner.needs_clip else "shares no state"
            raise ConfigError(f"--evaluate: --alg {inner.name} {why}")
        self.inner, self.path = inner, path
        self.name, self.source, self.needs = inner.name, inner.source, inner.needs
        self.trains = "nothing: a given state is scored"
        self.rows_at_once = inner.rows_at_once
        self.open_vocabulary = inner.open_vocabulary

    def init(self, task: Task) -> State:
        """The state of the file; ConfigError where it is not one of this method."""
        try:
            found, _ = read_tensors(self.path)
        except (OSError, DamagedFileError) as error:
            raise ConfigError(
                f"--evaluate {self.path}: {reason(error)}; name the "
                "adapter.safetensors of a run, which every site has to have"
            ) from error
        state = {key: value for key, value in found.items() if "/" not in key}
        like = self.inner.model_of(self.inner.init(task))
        for key in sorted(like.keys() | state.keys()):
            got, want = state.get(key), like.get(key)
            if got is None or want is None or got.shape != want.shape:
                raise ConfigError(
                    f"--evaluate {self.path} is not a state of --alg {self.name} on "
                    f"these features and classes: {key} is {_shape(got)} in the file, "
                    f"and {_shape(want)} here"
                )
        return on_device(state, task.text.device)

    def classes(self) -> tuple[str, ...] | None:
        """The classes that the state was trained on, as far as the file says."""
        with suppress(OSError, DamagedFileError, KeyError, ValueError, TypeError):
            _, meta = read_tensors(self.path)
            return tuple(json.loads(meta["classes"]))
        return None

    def answer_like(self, sent: State, task: Task) -> State:
        """One number."""
        return {SEEN: task.text.new_zeros(1)}

    def local_train(
        self, state: State, client: Client, task: Task, round_number: int
    ) -> ClientUpdate:
        """That the state is there."""
        return ClientUpdate(client.name, {SEEN: torch.ones(1)}, len(client.train))

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: State, task: Task
    ) -> State:
        """The state as it was."""
        return dict(state)

    def predict(self, state: State, x: Tensor, task: Task) -> Tensor:
        """The method's own."""
        return self.inner.predict(state, x, task)

    def inputs(self, samples: Samples, task: Task) -> Tensor:
        """The method's own."""
        return self.inner.inputs(samples, task)


def _shape(value: Tensor | None) -> str:
    return "absent" if value is None else f"of shape {tuple(value.shape)}"
