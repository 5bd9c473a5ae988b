"""FedTPG: a network that makes the prompt from the class names; it alone travels.

Qiu et al., "Federated Text-driven Prompt Generation for Vision-Language Models", ICLR
2024, arXiv 2310.06123, section 3, from the paper alone.  With ``T`` (C, D) the text
features of the class names, and everything but ``T`` learned::

    K = T W_K   V = T W_V   A = softmax(Q K' / sqrt(d)) V    four heads, Q (M, W)
    context = MLP(LayerNorm(A))                              (M, W)
    p(c | x) = softmax(s cos(x, text tower of [context, class name c]))

The prompt follows the classes at hand, so a trained network serves classes that no
client had: :meth:`FedTpg.predict` with a task of other classes.

The paper trains by SGD at 0.003; the default here is Adam, as everywhere.  What the
network gives is scaled by the spread of the text tower's token embeddings, so that an
untrained one puts vectors of a word's length before the class name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..clip.prompts import captions
from ..clip.whole import WholeClip
from ..config.fields import Section, option
from ..errors import ConfigError
from ..wire.update import ClientUpdate, State
from .base import Algorithm, Client, Task
from .context import scores_of, text_under, token_embedding
from .training import fit_state, fresh_state

HEADS = 4


@dataclass(frozen=True)
class FedTpgParams(Section):
    """The length of the prompt; the default is the paper's."""

    length: int = option(
        4, "fedtpg: vectors before the class name", within="[1, 64]")  # fmt: skip


class PromptGenerator(nn.Module):
    """Text features of any number of class names (C, D) -> a prompt (M, W)."""

    def __init__(self, dim: int, width: int, length: int) -> None:
        super().__init__()
        self.heads = math.gcd(HEADS, width)
        self.query = nn.Parameter(torch.randn(length, width))
        self.key = nn.Linear(dim, width, bias=False)
        self.value = nn.Linear(dim, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, names: Tensor) -> Tensor:
        """The prompt (M, W) for the class names' text features (C, D)."""
        q, k, v = (
            rows.unflatten(1, (self.heads, -1)).transpose(0, 1)  # (heads, rows, W / 4)
            for rows in (self.query, self.key(names), self.value(names))
        )
        share = (q @ k.transpose(1, 2) / math.sqrt(q.shape[2])).softmax(dim=2)
        attended = (share @ v).transpose(0, 1).flatten(1)  # (M, W)
        prompt: Tensor = self.mlp(self.norm(attended))
        return prompt


@dataclass(frozen=True)
class _Names:
    """Of a CLIP's classes: text features (C, D), captions (C, L), a word's spread."""

    features: Tensor
    tokens: Tensor
    spread: Tensor


class FedTpg(Algorithm):
    """State: the weights of a :class:`PromptGenerator`."""

    name = "fedtpg"
    trains = "a network from class names to the prompt"
    needs = "text tower"
    open_vocabulary = True
    source = "Qiu et al. 2024, arXiv 2310.06123"
    needs_clip = True
    Params = FedTpgParams
    defaults: ClassVar = {"lr": 1e-3, "weight_decay": 0.0, "weighting": "examples"}

    def __init__(self) -> None:
        self._read: tuple[WholeClip, int, _Names] | None = None

    def init(self, task: Task) -> State:
        """A fresh network, drawn from the task's seed."""
        return fresh_state(lambda: self._generator(task), task)

    def local_train(
        self, state: State, client: Client, task: Task, round_number: int
    ) -> ClientUpdate:
        """Local epochs on the cross-entropy over all classes."""

        def loss(params: State, rows: Tensor) -> Tensor:
            scores = scores_of(self.text(params, task), client.train.x[rows], task)
            return F.cross_entropy(scores, client.train.y[rows])

        return fit_state(state, loss, client, task, round_number)

    def predict(self, state: State, x: Tensor, task: Task) -> Tensor:
        """Scaled cosine with the captions under the prompt for the task's classes."""
        with torch.no_grad():
            return scores_of(self.text(state, task), x, task)

    def text(self, state: State, task: Task) -> Tensor:
        """Normalised text features (C, D) of the task's classes."""
        names = self._names(task)
        with torch.device("meta"):  # all values are the state's
            generator = self._generator(task)
        prompt: Tensor = functional_call(generator, state, (names.features,))
        context = names.spread * prompt
        return text_under(context, names.tokens, task.whole_clip, self.name)

    def _generator(self, task: Task) -> PromptGenerator:
        embedding = token_embedding(task.whole_clip, self.name)
        width, length = embedding.weight.shape[1], task.params.length
        return PromptGenerator(task.dim, width, length)

    def _names(self, task: Task) -> _Names:
        """Read once for each CLIP; what the frozen text tower says does not change."""
        clip, length = task.whole_clip, task.params.length
        if self._read is None or self._read[0] is not clip or self._read[1] != length:
            self._read = (clip, length, _read_names(clip, length, self.name))
        return self._read[2]


def _read_names(clip: WholeClip, length: int, name: str) -> _Names:
    device = clip.tokens.device
    alone = clip.tokenize(captions(clip.classes, "{}")).to(device)
    after = clip.prompt.partition("{}")[2]  # of the caption, what follows the class
    tokens = clip.tokenize(captions(clip.classes, "{}" + after)).to(device)
    room = tokens.shape[1] - length
    if room < 3 or bool((tokens[:, room:] != 0).any()):
        raise ConfigError(
            f"--fedtpg-length {length}: with the class names that is more than the "
            f"{tokens.shape[1]} tokens of the text tower"
        )
    # any token will do before the name: its embedding is replaced
    fill = tokens[:, 1:2].expand(-1, length)
    tokens = torch.cat([tokens[:, :1], fill, tokens[:, 1:room]], dim=1)
    spread = token_embedding(clip, name).weight.detach().std()
    model: nn.Module = clip.model
    with torch.no_grad():
        features = model.encode_text(alone, normalize=True)  # type: ignore[operator]
    return _Names(features, tokens, spread)
