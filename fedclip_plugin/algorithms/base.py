"""An algorithm is two hooks, ``local_train`` and ``aggregate``, beside two more.

``init`` gives the first state, ``predict`` the class scores.  Everything is a function
of its arguments: the same task, state, client and round give the same bits, in every
host and after every restart.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..config.fields import Section
from ..config.schema import (
    PrivacyConfig,
    RunConfig,
    ServerConfig,
    TrainConfig,
    WireConfig,
    hides_examples,
)
from ..errors import ConfigError, RunError
from ..ops import BufferPool
from ..server.aggregation import aggregate
from ..wire.update import ClientUpdate, State, private_part
from .module import StateModule

if TYPE_CHECKING:
    from ..clip.whole import WholeClip


@dataclass(frozen=True)
class Samples:
    """Features ``x`` (N, D) float32, raw, and labels ``y`` (N,) int64.

    ``rows`` (N,) int64 counts over all domains in their order; without it, algorithms
    that need the images themselves cannot run.
    """

    x: Tensor
    y: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return self.y.shape[0]  # len() of a tensor takes four times as long

    def __getitem__(self, index: slice | Tensor) -> Samples:
        rows = None if self.rows is None else self.rows[index]
        return Samples(self.x[index], self.y[index], rows)


@dataclass(frozen=True)
class Client:
    """One participant: its place in the federation and its three splits.

    ``kept`` is what it keeps from its last round (:attr:`ClientUpdate.kept`): what its
    algorithm put there, and what compression left over.  ``unlabelled`` (N, D) float32
    are raw features without labels that an algorithm aligns to, where it is
    ``transductive``: of the held-out domain, or of the other clients.
    """

    name: str
    index: int
    train: Samples
    val: Samples
    test: Samples
    kept: State = field(default_factory=dict, kw_only=True)
    unlabelled: Tensor | None = field(default=None, kw_only=True)

    def with_kept(self, kept: Mapping[str, State]) -> Client:
        """The client with its own of what all ``kept``."""
        return replace(self, kept=kept.get(self.name, {}))


@dataclass(frozen=True)
class Task:
    """What all clients share: text features, scale, hyper-parameters and the seed.

    ``text`` (C, D) float32 normalised; ``logit_scale`` is the factor (100 for CLIP).
    ``params`` is of the algorithm's ``Params``; ``pool`` the memory of trained states.
    """

    text: Tensor
    logit_scale: float
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    clip: WholeClip | None = None
    server: ServerConfig = field(default_factory=ServerConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    params: Any = None
    pool: BufferPool = field(default_factory=BufferPool, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        config: RunConfig,
        params: Any,
        text: Tensor,
        logit_scale: float,
        seed: int,
        clip: WholeClip | None = None,
    ) -> Task:
        """The task of a run; ``params`` stands where the config has none."""
        return cls(
            text,
            logit_scale,
            config.train,
            seed,
            clip,
            config.server,
            config.wire,
            config.privacy,
            params if config.params is None else config.params,
        )

    @property
    def whole_clip(self) -> WholeClip:
        """The CLIP itself; raises ConfigError where there are only features."""
        if self.clip is None:
            raise ConfigError(
                "this algorithm runs CLIP itself and needs the images: use "
                "`fedclip run --root DIR`, not --features, and none of the hosts"
            )
        return self.clip

    @property
    def distance_limit(self) -> float:
        """``max_norm_ratio``; 0 with privacy: an update's fate must be its own."""
        hidden = self.privacy.private or hides_examples(self.params)
        return 0.0 if hidden else self.server.max_norm_ratio

    @property
    def dim(self) -> int:
        """Embedding width D."""
        return self.text.shape[1]


@dataclass(frozen=True)
class NoParams(Section):
    """Of an algorithm that has no hyper-parameters of its own."""


class Algorithm(abc.ABC):
    """Base class; ``name`` is what users select by ``--alg``."""

    name: str = ""
    Params: ClassVar[type] = NoParams
    """Its own hyper-parameters: a frozen dataclass with defaults.  Every field is an
    option (``[name]`` in TOML, ``--name-field``), see ``config.fields.option``."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Field -> value where the user says nothing; of the shared sections or its own."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Name for ``--preset`` -> the same over ``defaults``."""
    trains: str = ""
    """What is trained and travels, in a few words; "" is the class's first line."""
    learns = True
    """Whether rounds train: where they do not, no client needs a training image."""
    needs: str = "features"
    """Of the frozen CLIP, what a run needs: features, text tower or images."""
    transductive = False
    """Whether training sees unlabelled images of the held-out domain, and then only
    with ``--transductive``; without such a domain those of the other clients'
    validation splits.  See :attr:`Client.unlabelled`."""
    source: str = ""
    """The paper."""
    communicates = True
    """Whether states go to and fro; bytes are counted only then."""
    moves = True
    """Whether a round moves the state that was sent; one that makes it anew has nothing
    that a server optimizer could go on with."""
    text_at_server = False
    """Whether ``init`` or ``aggregate`` use the text features: a server without data
    then gets them from a client."""
    averages = True
    """Whether a weighted mean of updates is a sound next state, where more is not to
    be had: under secure aggregation, or with a host's own defenses."""
    personal = False
    """Whether what clients keep predicts for them (:attr:`ClientUpdate.kept`), over
    the shared state; an unseen domain is judged by the shared state alone."""
    open_vocabulary = False
    """Whether ``predict`` goes by the text features, or the captions, of the task that
    it is given: then a trained state predicts classes that it never saw, too."""
    needs_clip = False
    """Whether features are not enough, see :attr:`Task.whole_clip`."""
    personalizes = True
    """Whether what ``local_train`` gives of one client predicts by itself, so that the
    client can go on alone (``--personalize``)."""
    rows_at_once = 4096
    """Rows scored at once: bounds memory, changes no result."""

    @property
    def why_clip(self) -> str:
        """What one that ``needs_clip`` does with it, after its name."""
        text = self.needs == "text tower"
        return "trains through CLIP's text tower" if text else "trains CLIP itself"

    @abc.abstractmethod
    def init(self, task: Task) -> State:
        """The state that the first round sends out."""

    @abc.abstractmethod
    def local_train(
        self, state: State, client: Client, task: Task, round_number: int
    ) -> ClientUpdate:
        """Train on one client from ``state``, which stays as it is."""

    def local_round(
        self, state: State, clients: Sequence[Client], task: Task, round_number: int
    ) -> list[ClientUpdate]:
        """Train on all ``clients``; see :class:`RoundAlgorithm`."""
        return [self.local_train(state, c, task, round_number) for c in clients]

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: State, task: Task
    ) -> State:
        """The next state from screened updates and the ``state`` that was sent.

        Their mean, by ``weighting``, or a robust rule; compressed updates as they are.
        An override is given them decoded.
        """
        return aggregate(updates, self.update_like(state), task.server)

    @abc.abstractmethod
    def predict(self, state: State, x: Tensor, task: Task) -> Tensor:
        """Class scores (N, C) of raw features ``x`` (N, D)."""

    def inputs(self, samples: Samples, task: Task) -> Tensor:
        """What :meth:`predict` takes of ``samples``: their features."""
        return samples.x

    def update_like(self, state: State) -> State:
        """What goes down of the server's ``state``: all of it, or some of its keys."""
        return state

    def doubt(self, update: ClientUpdate, sent: State) -> str | None:
        """Why no honest client can have sent what a screened ``update`` holds, or None.

        Judged by itself: no other update of the round is known.  Compressed updates
        come decoded, under the ``codec`` that they travelled in.
        """
        return None

    def epsilon(self, task: Task) -> float | None:
        """What a run's one round costs in privacy of examples; None: no such promise.

        Privacy of clients is not the algorithm's, see ``server/privacy.py``.
        """
        return None

    def module(self, state: State, task: Task) -> nn.Module:
        """A module whose ``state_dict`` is ``state``, for hosts that pass models on."""
        return StateModule(state)

    def answer_like(self, sent: State, task: Task) -> State:
        """What a sound update has the keys, shapes and dtypes of, in a round that
        ``sent`` this down; compression and screening measure from its values."""
        return sent

    def model_of(self, sent: State) -> State:
        """What predicts of what was ``sent``: kept of the best round, and exported."""
        return sent

    def remarks(
        self, state: State, clients: Sequence[Client], task: Task
    ) -> Sequence[str]:
        """Lines on what was left out or cut in a finished run, for its notes."""
        return ()

    def client_state(self, state: State, client: Client) -> State:
        """The state that ``client`` predicts with: the shared one, and over it, key by
        key, what it keeps of a ``personal`` algorithm."""
        own = private_part(client.kept) if self.personal else {}
        return {**state, **own} if own else state

    def target_states(self, state: State, clients: Sequence[Client]) -> list[State]:
        """The states that judge an unseen domain; their accuracies are averaged."""
        return [state]


class RoundAlgorithm(Algorithm):
    """Its hook is ``local_round``: one call serves all the clients of a round."""

    def local_train(
        self, state: State, client: Client, task: Task, round_number: int
    ) -> ClientUpdate:
        """A round of one client."""
        return self.local_round(state, [client], task, round_number)[0]

    @abc.abstractmethod
    def local_round(
        self, state: State, clients: Sequence[Client], task: Task, round_number: int
    ) -> list[ClientUpdate]:
        """Train on all ``clients`` from ``state``, which stays as it is."""


def kept_state(client: Client, first: State) -> State:
    """What ``client`` keeps under the keys of ``first``, which stands in for the rest.

    Raises RunError for a tensor of another shape or dtype, as from a damaged file.
    """
    kept = {key: client.kept.get(key, value) for key, value in first.items()}
    for key, value in kept.items():
        like = first[key]
        if value.shape != like.shape or value.dtype != like.dtype:
            raise RunError(
                f"{client.name}: {key}, kept from the round before, is "
                f"{tuple(value.shape)} {value.dtype}, expected {tuple(like.shape)} "
                f"{like.dtype}; start the run again"
            )
    return kept


def sample_order(
    count: int, seed: int, round_number: int, client: int, epoch: int
) -> Tensor:
    """The order (N,) int64 in which a client visits its rows in one local epoch.

    A function of its arguments alone: no state to save, so a resumed run and every
    host draw the same order.
    """
    generator = generator_of(seed, round_number, client, epoch)
    return torch.randperm(count, generator=generator)


def generator_of(*entropy: int) -> torch.Generator:
    """A generator on the CPU, seeded by all of ``entropy``, whole numbers >= 0."""
    mixed = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
