"""What a run needs in memory: clients, target and task, from features and a config."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from ..algorithms import Algorithm, Client, Samples, Task, make_algorithm
from ..algorithms.evaluated import Evaluated
from ..clip.whole import WholeClip
from ..config.schema import RunConfig
from ..config.toml import to_toml
from ..data.listing import some
from ..data.partition import partition_clients
from ..errors import ConfigError
from ..features.feature_set import FeatureSet
from ..ops.kernels import resolve_device
from ..server import optimizer
from ..server.privacy import drawing_seed
from ..wire.update import State
from .alignment import check_alignment, with_unlabelled

T = TypeVar("T")


_SELECTION = 0xC11E  # keeps this draw apart from the sample orders


@dataclass(frozen=True)
class Federation:
    """Clients, the held-out target and the task: all that a run needs in memory."""

    algorithm: Algorithm
    task: Task
    clients: tuple[Client, ...]
    target: Samples | None

    @cached_property
    def first(self) -> State:
        """The state before the first round; not to be changed."""
        return self.algorithm.init(self.task)

    def with_kept(self, kept: Mapping[str, State]) -> Federation:
        """The federation with what its clients ``kept`` in their hands."""
        if not kept:
            return self
        return replace(self, clients=tuple(c.with_kept(kept) for c in self.clients))


def build_federation(
    features: FeatureSet,
    config: RunConfig,
    target: str | None,
    seed: int,
    clip: WholeClip | None = None,
) -> Federation:
    """Clients and target of one run; tensors on the training device.

    ``clip`` is for algorithms that train the CLIP itself.

    Raises ConfigError for an unknown target, algorithm or device.
    """
    algorithm = make_algorithm(config)
    check_together(config, algorithm)
    check_alignment(config, algorithm, target)
    check_evaluated(algorithm, features)
    device = resolve_device(config.model.device)
    labels = {d: features.label[d].numpy() for d in features.domains}
    held = partition_clients(labels, config.data, target, seed, features.files)
    parts = _share_out(
        features, [p for c in held for p in (c.train, c.val, c.test)], device
    )
    clients = tuple(
        Client(c.name, c.index, *parts[3 * i : 3 * i + 3]) for i, c in enumerate(held)
    )
    text = features.class_text.to(device)
    params, scale = algorithm.Params(), features.logit_scale
    task = Task.of(config, params, text, scale, seed, clip)
    held_out = target_samples(features, target, device)
    if algorithm.transductive:
        clients = with_unlabelled(clients, held_out, config.algorithm)
    return Federation(algorithm, task, clients, held_out)


def check_together(config: RunConfig, algorithm: Algorithm) -> None:
    """Refuse options that make no sense with the algorithm; raises ConfigError."""
    if config.privacy.private and not algorithm.communicates:
        raise ConfigError(
            f"--alg {config.algorithm} sends nothing to a server: there is nothing "
            "that --dp-noise-multiplier could hide"
        )
    if config.privacy.private and not algorithm.averages:
        raise ConfigError(
            f"{_asked(config)}: the server reads every update by itself, "
            "which --dp-noise-multiplier does not hide (docs/privacy.md)"
        )
    if config.privacy.private and algorithm.personal:
        raise ConfigError(
            f"--alg {config.algorithm}: what its clients keep ties rounds together, "
            "which --dp-noise-multiplier cannot account for (docs/privacy.md)"
        )
    if config.train.personalize != "none" and not algorithm.personalizes:
        raise ConfigError(
            f"--alg {config.algorithm}: what its clients send is not a model that one "
            "of them could go on with: leave out "
            f"--personalize {config.train.personalize}"
        )
    if not (algorithm.communicates and algorithm.moves):
        why = "makes its state anew each round"
        if not algorithm.communicates:
            why = "sends nothing to a server"
        for option in optimizer.chosen(config.server):
            raise ConfigError(
                f"--alg {config.algorithm} {why}: leave out {option}, which builds on "
                "the round before"
            )


def check_evaluated(algorithm: Algorithm, features: FeatureSet) -> None:
    """Refuse a state to evaluate that knows other classes, where it predicts no others.

    Raises ConfigError.
    """
    if not isinstance(algorithm, Evaluated) or algorithm.open_vocabulary:
        return
    if (known := algorithm.classes()) not in (None, features.classes):
        raise ConfigError(
            f"--evaluate {algorithm.path}: --alg {algorithm.name} predicts the classes "
            f"that it was trained on ({some(known or ())}), and these data have "
            f"{some(features.classes)}"
        )


def _asked(config: RunConfig) -> str:
    augment = config.train.augment
    return f"--alg {config.algorithm}" if augment == "none" else f"--augment {augment}"


def _share_out(
    features: FeatureSet, parts: Sequence[npt.NDArray[np.int64]], device: torch.device
) -> list[Samples]:
    """The rows of every part; slices of one tensor, however many parts there are."""
    sizes = torch.tensor([len(part) for part in parts])
    part_of = torch.repeat_interleave(torch.arange(len(parts)), sizes)
    rows = features.domain_order(torch.from_numpy(np.concatenate(parts)), part_of)
    x, y = features.rows(rows)
    slices = (t.to(device).split(sizes.tolist()) for t in (x, y, rows))
    return [Samples(*tensors) for tensors in zip(*slices)]


def target_samples(
    features: FeatureSet, target: str | None, device: torch.device
) -> Samples | None:
    """All rows of the held-out domain."""
    if target is None:
        return None
    before = features.domains[: features.domains.index(target)]
    first, y = sum(len(features.label[d]) for d in before), features.label[target]
    rows = torch.arange(first, first + len(y))
    x = features.image[target]
    return Samples(x.to(device), y.to(device), rows.to(device))


def identity(features: FeatureSet, config: RunConfig, target: str | None) -> str:
    """What a checkpoint belongs to; the number of rounds may grow.

    By ``features.key``, which is of the contents of images and weights: wherever they
    lie, and whatever their folders are called.
    """
    usual = RunConfig()
    data = replace(
        config.data,
        **{name: getattr(usual.data, name) for name in ("dataset", "root", "features")},
        **{name: getattr(usual.data, name) for name in ("prompts", "on_bad_image")},
        **{name: getattr(usual.data, name) for name in ("class_names", "pictures")},
    )
    same = replace(
        config,
        preset=None,
        model=usual.model,
        data=data,
        train=replace(config.train, rounds=1),
        privacy=replace(config.privacy, dp_epsilon_budget=None),
    )
    text = f"{to_toml(same)}|{features.key}|{target}"
    return hashlib.sha256(text.encode()).hexdigest()


def draw_cohort(fed: Federation, round_number: int) -> list[Client]:
    """The clients of a round, drawn by the seed; none where none are known here."""
    seed = drawing_seed(fed.task.privacy, fed.task.seed)
    share = fed.task.server.participation
    return participants(fed.clients, share, seed, round_number) if fed.clients else []


def participants(
    clients: Sequence[T], share: float, seed: int, round_number: int
) -> list[T]:
    """The clients that train in a round, in client order; at least one."""
    count = max(1, round(share * len(clients)))
    if count == len(clients):
        return list(clients)
    rng = np.random.default_rng([seed, round_number, _SELECTION])
    chosen = rng.choice(len(clients), size=count, replace=False)
    return [clients[i] for i in sorted(chosen)]
