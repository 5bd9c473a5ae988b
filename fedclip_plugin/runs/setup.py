"""One run, ready to begin: its configuration, features and clients."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass, replace

from ..algorithms import Client
from ..clip.encoder import scale_note
from ..config.schema import RunConfig
from ..data.partition import NO_TARGET, resolve_targets
from ..errors import ConfigError
from ..features import obtain
from ..features.feature_set import FeatureSet
from ..federation.build import Federation, build_federation
from ..federation.doubts import doubts
from ..storage.shapes import cleaned

_log = logging.getLogger("fedclip")


@dataclass(frozen=True)
class Setup:
    """Configuration, features and clients of one run: one target and one seed."""

    config: RunConfig
    features: FeatureSet
    fed: Federation
    target: str | None

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.config.seeds[0]

    @property
    def notes(self) -> tuple[str, ...]:
        """What is doubtful about data, model and options, a line each."""
        notes = all_notes(self.features, self.config)
        shared = doubts(self.fed.clients, self.features, self.config.data)
        return (*notes, *cleaned(list(shared)), *self._on_alignment())

    @property
    def transductive(self) -> bool:
        """Whether training saw the unlabelled images of the held-out domain."""
        return self.fed.algorithm.transductive and self.target is not None

    def _on_alignment(self) -> tuple[str, ...]:
        name = self.config.algorithm
        if self.transductive:
            return (
                f"--alg {name} --transductive: training saw the unlabelled images of "
                "the held-out domain; other methods are scored on what they never saw",
            )
        if self.fed.algorithm.transductive:
            return (
                f"--alg {name}: every client was given the others' unlabelled "
                "validation features; the bytes that this takes are not counted",
            )
        return ()

    def client(self, place: int | str) -> Client:
        """A client by its place among the clients, or by its name."""
        for number, client in enumerate(self.fed.clients):
            if place in (number, client.name):
                return client
        names = ", ".join(c.name for c in self.fed.clients[:8])
        raise ConfigError(
            f"client {place!r}: this run has {len(self.fed.clients)} ({names})"
        )


def all_notes(features: FeatureSet, config: RunConfig) -> tuple[str, ...]:
    """The notes on features and options, each once, as they may be shown."""
    odd = scale_note(features.logit_scale)
    notes = [*features.notes, *([odd] if odd else []), *config.notes]
    return tuple(dict.fromkeys(cleaned(notes)))


def one_run(config: RunConfig) -> RunConfig:
    """``config`` for a host: one seed, and at most one held-out domain.

    Hosts run one federation at a time; without ``--target`` all domains are clients.
    """
    if len(config.seeds) > 1 or len(config.data.targets) > 1:
        raise ConfigError(
            "a host runs one seed and one held-out domain at a time, got "
            f"seeds {list(config.seeds)} and targets {list(config.data.targets)}; "
            "`fedclip run` runs several"
        )
    privacy = config.privacy
    if config.private and privacy.dp_seed == "auto":
        privacy = replace(privacy, dp_seed="secret")
    data = replace(config.data, targets=config.data.targets or (NO_TARGET,))
    return replace(config, data=data, privacy=privacy)


@functools.lru_cache(maxsize=2)
def open_setup(config: RunConfig) -> Setup:
    """Features (encoded once, cached) and clients of a run; once a process.

    Logs the notes: a client's data are known to its process alone.  Raises
    FedClipError, as ``fedclip run`` does.
    """
    config = one_run(config)
    features, _ = obtain.obtain_features(config)
    (target,) = resolve_targets(features.domains, config.data.targets)
    fed = build_federation(features, config, target, config.seeds[0])
    setup = Setup(config, features, fed, target)
    for note in setup.notes:
        _log.warning("note: %s", note)
    return setup
