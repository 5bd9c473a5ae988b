"""Who is given the unlabelled features of others: see docs/transductive.md."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..algorithms import Algorithm, Client, Samples
from ..config.schema import RunConfig
from ..errors import ConfigError


def check_alignment(
    config: RunConfig, algorithm: Algorithm, target: str | None
) -> None:
    """Refuse features of others where that is not asked for, or void a promise.

    Raises ConfigError.
    """
    if not algorithm.transductive:
        return
    if target is not None and not config.data.transductive:
        raise ConfigError(
            f"--alg {config.algorithm} trains on the unlabelled images of the held-out "
            f"domain ({target}): allow it by --transductive, which reports mark, or "
            "hold none out by --target none"
        )
    if target is None and config.privacy.private:
        raise ConfigError(
            f"--alg {config.algorithm} shows clients each other's features, which "
            "--dp-noise-multiplier cannot hide: hold a domain out, with --transductive"
        )


def with_unlabelled(
    clients: tuple[Client, ...], target: Samples | None, name: str
) -> tuple[Client, ...]:
    """Clients with the held-out features, or with the others' validation features.

    Features alone, never labels.  The latter are slices of one tensor that holds all
    validation rows twice, in a ring.  Raises ConfigError for one client alone.
    """
    if target is not None:
        return tuple(replace(c, unlabelled=target.x) for c in clients)
    if len(clients) < 2:
        raise ConfigError(
            f"--alg {name} aligns a client to the others' features, and here is one "
            f"client alone ({clients[0].name}): its data cannot be a process of its own"
        )
    sizes = [len(c.val) for c in clients]
    ring = torch.cat([c.val.x for c in clients] * 2)
    ends = np.cumsum(sizes).tolist()
    rest = sum(sizes)
    return tuple(
        replace(c, unlabelled=ring[end : end + rest - size])
        for c, end, size in zip(clients, ends, sizes)
    )
