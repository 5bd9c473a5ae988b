"""What is doubtful about how the images were shared out: lines for a run's notes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..algorithms import Algorithm, Client
from ..config.inputs import DataConfig
from ..data.doubts import one_class
from ..data.listing import some
from ..errors import ConfigError
from ..features.feature_set import FeatureSet
from .build import Federation


def doubts(
    clients: Sequence[Client], features: FeatureSet, data: DataConfig
) -> Iterator[str]:
    """One class alone, clients without images, classes with fewer than ``--shots``.

    Nothing on clients where none are known here, as on a host's server.
    """
    yield from one_class(features.classes)
    if features.unseen is not None:
        yield from one_class(features.unseen.classes, "unseen ")
    yield from _without(clients)
    yield from _undirected(clients, features)
    if data.shots is not None and clients:
        yield from _fewer(clients, features.classes, data.shots)


def check_training(fed: Federation) -> None:
    """Refuse rounds that train on nothing; raises ConfigError.

    For a process that knows all clients: alone, a client without images is doubtful.
    """
    check_counts(fed.algorithm, [len(client.train) for client in fed.clients])


def check_counts(algorithm: Algorithm, counts: Sequence[int]) -> None:
    """Refuse rounds that train on nothing, by how many images each client has.

    Raises ConfigError.
    """
    if algorithm.learns and not any(counts):
        raise ConfigError(
            f"none of the {len(counts):,} clients has a training image for --alg "
            f"{algorithm.name}: give them more images, as with fewer --clients, or a "
            "--split whose training images are in the data; --alg zeroshot needs none"
        )


def _without(clients: Sequence[Client]) -> Iterator[str]:
    """Clients that train on nothing, or that no accuracy is of."""
    lacks = (
        ([c.name for c in clients if not len(c.train)], "training", "train on nothing"),
        ([c.name for c in clients if not len(c.test)], "test", "are in no accuracy"),
    )
    for names, part, so in lacks:
        if names:
            yield (
                f"{len(names):,} of {len(clients):,} clients have no {part} image and "
                f"{so}: {some(names, 2)}"
            )


def _undirected(clients: Sequence[Client], features: FeatureSet) -> Iterator[str]:
    """Clients whose training features are all zeros: nothing is learnt from them."""
    if not clients or not len(zeros := features.undirected()):
        return
    held = {c.name: c.train.rows for c in clients if len(c.train)}
    names = [
        name
        for name, rows in held.items()
        if rows is not None and bool(torch.isin(rows.cpu(), zeros).all())
    ]
    if names:
        yield (
            f"{len(names):,} of {len(clients):,} clients have training images whose "
            f"features are all zeros, and teach nothing: {some(names, 2)}"
        )


def _fewer(
    clients: Sequence[Client], classes: Sequence[str], shots: int
) -> Iterator[str]:
    """Of the classes that a client has, those with fewer training images than asked."""
    count = len(classes)
    train = _keys([c.train.y for c in clients], count)
    parts = [torch.cat([p.y for p in (c.train, c.val, c.test)]) for c in clients]
    held = _keys(parts, count).unique()  # (H,) client * C + class
    had, images = train.unique(return_counts=True)
    have = torch.zeros_like(held)
    have[torch.searchsorted(held, had)] = images
    few = (have < shots).nonzero().flatten().tolist()
    if not few:
        return
    told = (
        f"{clients[int(held[i]) // count].name} has {int(have[i])} of "
        f"{classes[int(held[i]) % count]!r}"
        for i in few
    )
    yield (
        f"--shots {shots}: in {len(few):,} of {len(held):,} cases a client has fewer "
        f"training images of a class: {some(told, 2, ordered=False)}"
    )


def _keys(labels: Sequence[Tensor], classes: int) -> Tensor:
    """(N,) int64: client * C + class of every row."""
    owner = torch.repeat_interleave(torch.tensor([len(y) for y in labels]))
    return owner * classes + torch.cat(list(labels)).cpu()
