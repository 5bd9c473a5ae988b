"""``fedclip run --dry-run``: check data and weights, and estimate the cost.

Times are measured here on a few images and one round of random features; nothing is
written, fetched or cached.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..algorithms import get_algorithm
from ..clip.descriptions import caption_sets
from ..clip.download import cached_file
from ..clip.encoder import EncoderSpec, FrozenClip
from ..config.schema import RunConfig
from ..data.listing import some
from ..data.partition import resolve_targets
from ..features.choice import halved
from ..features.feature_set import FeatureSet
from ..features.obtain import notes_on_prompts, notes_on_split, open_data
from ..federation.build import Federation, build_federation, participants
from ..federation.doubts import check_training, doubts
from ..federation.engine import Run, run_round
from ..federation.evaluation import selection_notes
from ..federation.rounds import RoundResult
from ..federation.unseen import cannot
from ..report.classes import skew
from ..report.partition import draw_partition
from ..report.wording import human_bytes, human_seconds
from ..server.privacy import planned
from .doctor.inputs import encode_sample


@dataclass(frozen=True)
class Cost:
    """A line of the estimate: what, and how much of it; ``lines`` picture it."""

    name: str
    detail: str
    lines: tuple[str, ...] = ()


def estimate(config: RunConfig) -> list[Cost]:
    """What `fedclip run` with this configuration would do and need.

    Raises FedClipError for what a run would refuse.
    """
    features, costs = stand_in(config)
    targets = resolve_targets(features.domains, config.data.targets)
    runs = len(targets) * len(config.seeds)
    named = ", ".join(target or "none" for target in targets)
    costs.append(
        Cost("runs", f"{runs}: held out {named}; seeds {_listed(config.seeds)}")
    )
    if features.unseen is not None:
        costs += _halves(config, features, features.unseen)
    algorithm, fed = get_algorithm(config.algorithm), _first(config, features, targets)
    if algorithm.needs_clip:
        detail = f"--alg {algorithm.name} {algorithm.why_clip}: measure one round"
        costs.append(Cost("training", detail))
    else:
        costs += _training(config, features, fed, runs)
    notes = (
        *notes_on_split(features, config.data),
        *doubts(fed.clients, features, config.data),
        *selection_notes([len(c.val) > 0 for c in fed.clients], config.train),
    )
    return [*costs, *(Cost("note", note) for note in notes)]


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _halves(config: RunConfig, features: FeatureSet, unseen: FeatureSet) -> list[Cost]:
    """Which classes are trained on, which are not, and who cannot predict these."""
    why = cannot(get_algorithm(config.algorithm))
    return [
        Cost(
            "classes",
            f"{len(features.classes)} to train on ({some(features.classes)}), "
            f"{len(unseen.classes)} unseen ({some(unseen.classes)})",
        ),
        *([Cost("note", why)] if why else []),
    ]


def stand_in(config: RunConfig) -> tuple[FeatureSet, list[Cost]]:
    """Features of the right shapes: the real ones, or random ones for the images."""
    dataset = open_data(config)
    if isinstance(dataset, FeatureSet):
        return halved(dataset, config.data), []
    caption_sets(dataset.classes, config.data.prompts)  # refuses bad descriptions
    spec = EncoderSpec.from_config(config)
    source = spec.source()
    dim, classes = int(source.config["embed_dim"]), len(dataset.classes)
    generator = torch.Generator().manual_seed(0)
    features = FeatureSet(
        model=source.name,
        pretrained=source.tag,
        prompt=config.data.prompts,
        classes=dataset.classes,
        domains=tuple(d.name for d in dataset.domains),
        logit_scale=100.0,
        embed_dim=dim,
        key="random",
        image={
            d.name: torch.randn(len(d.files), dim, generator=generator)
            for d in dataset.domains
        },
        label={d.name: torch.tensor(d.labels) for d in dataset.domains},
        text=torch.randn(classes, dim, generator=generator),
        files={d.name: d.files for d in dataset.domains},
    )
    count = sum(len(d.files) for d in dataset.domains)
    if cached_file(source) is None:
        detail = f"{count} images; the weights {source.tag} have to be fetched first"
    else:
        rate = _encoding_rate(config, FrozenClip.load(spec))
        detail = (
            f"{count} images at {rate:.0f} images/s: {human_seconds(count / rate)}, "
            "once, less what is in the cache"
        )
    notes = [Cost("note", note) for note in notes_on_prompts(dataset, config.data)]
    return halved(features, config.data), [Cost("encoding", detail), *notes]


def _encoding_rate(config: RunConfig, clip: FrozenClip) -> float:
    pixels = encode_sample(config, clip)
    clip.resolve_precision(pixels)
    seconds = []
    for _ in range(3):  # the first warms up
        start = time.perf_counter()
        clip.encode_images(pixels)
        seconds.append(time.perf_counter() - start)
    return len(pixels) / min(seconds)


def trainable(config: RunConfig) -> FeatureSet:
    """Features as of :func:`stand_in`; raises FedClipError where no run would train."""
    features, _ = stand_in(config)
    _first(config, features, resolve_targets(features.domains, config.data.targets))
    return features


def _first(
    config: RunConfig, features: FeatureSet, targets: Sequence[str | None]
) -> Federation:
    """The federation of the first target, where those of all can be run."""
    for target in reversed(targets):
        fed = build_federation(features, config, target, config.seeds[0])
        check_training(fed)
    return fed


def _training(
    config: RunConfig, features: FeatureSet, fed: Federation, runs: int
) -> list[Cost]:
    train = config.train
    share, seed = config.server.participation, config.seeds[0]
    chosen = len(participants(fed.clients, share, seed, 1))
    sizes = sorted(len(c.train) for c in fed.clients)
    first, seconds = _timed(fed)
    sent = first.bytes_up + first.bytes_down
    private = None
    if config.privacy.private:
        private = planned(config.privacy, train.rounds, len(fed.clients), chosen)
    elif (epsilon := fed.algorithm.epsilon(fed.task)) is not None:
        delta = config.privacy.dp_delta
        private = f"epsilon {epsilon:.3g} at delta {delta:g} of each training image"
    return [
        Cost(
            "clients",
            f"{len(fed.clients)}, {chosen} a round; {sizes[0]} to {sizes[-1]} training "
            "images each",
        ),
        _partition(config, features, fed),
        Cost(
            "bytes",
            f"{human_bytes(sent)} a round, {human_bytes(sent * train.rounds)} a run",
        ),
        Cost(
            "training",
            f"{train.rounds} rounds at {1000 * seconds:.0f} ms: "
            f"{human_seconds(seconds * train.rounds)} a run, "
            f"{human_seconds(seconds * train.rounds * runs)} in all",
        ),
        *([Cost("privacy", private)] if private else []),
    ]


def _timed(fed: Federation) -> tuple[RoundResult, float]:
    """A first round, which warms up, and the seconds of a second one."""
    run = Run(fed)
    first = run_round(run)
    start = time.perf_counter()
    run_round(run)
    return first, time.perf_counter() - start


def run_seconds(config: RunConfig, target: str | None) -> float | None:
    """About how long a run of ``config`` computes; None where only a run can tell."""
    if get_algorithm(config.algorithm).needs_clip:
        return None
    features, _ = stand_in(config)
    fed = build_federation(features, config, target, config.seeds[0])
    return _timed(fed)[1] * config.train.rounds


def _partition(config: RunConfig, features: FeatureSet, fed: Federation) -> Cost:
    """How unlike the clients are, in words and as a picture."""
    counts = _counts(fed)
    names = [client.name for client in fed.clients]
    drawn = draw_partition(names, features.classes, counts)
    return Cost("partition", f"{config.data.partition}: {skew(counts)}", tuple(drawn))


def _counts(fed: Federation) -> np.ndarray:
    """(K, C) training images of each client by class."""
    classes = len(fed.task.text)
    rows = [torch.bincount(c.train.y, minlength=classes) for c in fed.clients]
    counts: np.ndarray = torch.stack(rows).cpu().numpy()
    return counts
