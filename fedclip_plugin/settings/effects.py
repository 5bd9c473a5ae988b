"""Options that change nothing beside the others: told, never passed over in silence."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping

from ..config.schema import RunConfig
from ..data.partition import NO_TARGET
from ..errors import ConfigError


def _adapts(config: RunConfig) -> bool:
    return hasattr(config.params, "adapter")


def _as_published(config: RunConfig) -> bool:
    p, t = config.params, config.train
    if not _adapts(config):
        return False
    chosen = (p.adapter, p.side, p.loss, t.optimizer, t.optimizer_state)
    return chosen == ("attention", "image", "in-batch", "adam", "reset")


def _sees_held_out(config: RunConfig) -> bool:
    from ..algorithms import algorithm_class  # needs torch

    targets = config.data.targets
    held = not targets or any(t.strip().lower() != NO_TARGET for t in targets)
    return held and algorithm_class(config.algorithm).transductive


_KEEPING = ("facmic", "faa-clip", "fedmedclip")  # no choice of adapter, but slots
_Rule = tuple[str, str, Callable[[RunConfig], bool]]
_RULES: tuple[_Rule, ...] = (  # options, what they need, and whether it is there
    (
        "lr batch-size local-epochs weight-decay optimizer beta1 beta2 eps",
        "an --alg that trains step by step",
        lambda c: c.algorithm.lower() not in ("gda", "tofa", "zeroshot"),
    ),
    (
        "lr batch-size local-epochs weight-decay optimizer beta1 beta2 eps augment "
        "aggregation gda-epsilon",
        "training, and --evaluate trains nothing",
        lambda c: c.train.evaluate is None,
    ),
    (
        "aggregation compress compress-down max-norm-ratio weighting",
        "an --alg that sends something",
        lambda c: c.algorithm.lower() not in ("local", "zeroshot"),
    ),
    (
        "model pretrained model-config precision root prompt on-bad-image",
        "images, and --features has them encoded",
        lambda c: c.data.features is None,
    ),
    (
        "beta1 beta2 eps",
        "--optimizer adam or adamw",
        lambda c: c.train.optimizer in ("adam", "adamw"),
    ),
    (
        "weighting",
        "an --aggregation that weighs the clients",
        lambda c: c.server.aggregation not in ("median", "trimmed-mean", "krum"),
    ),
    (
        "byzantine",
        "--aggregation trimmed-mean, krum or multi-krum",
        lambda c: c.server.aggregation in ("trimmed-mean", "krum", "multi-krum"),
    ),
    (
        "train-precision",
        "--alg fedclip as published",
        _as_published,
    ),
    (
        "optimizer-state",
        "an --alg with an adapter, such as fedclip",
        lambda c: _adapts(c) or c.algorithm.lower() in _KEEPING,
    ),
    (
        "transductive",
        "a held-out domain and an --alg that aligns to it: facmic or faa-clip",
        _sees_held_out,
    ),
    (
        "personalize",
        "an --alg that trains or counts something",
        lambda c: c.algorithm.lower() != "zeroshot",
    ),
    ("gap-step", "--weighting gap", lambda c: c.server.weighting == "gap"),
    (
        "server-momentum",
        "--server-optimizer momentum, adagrad, adam or yogi",
        lambda c: c.server.server_optimizer != "none",
    ),
    (
        "server-tau",
        "--server-optimizer adagrad, adam or yogi",
        lambda c: c.server.server_optimizer not in ("none", "momentum"),
    ),
    (
        "server-beta2",
        "--server-optimizer adam or yogi",
        lambda c: c.server.server_optimizer in ("adam", "yogi"),
    ),
    (
        "augment-per-class augment-prototypes augment-rank augment-scale",
        "--augment ggeur",
        lambda c: c.train.augment != "none",
    ),
    (
        "aggregation",
        "an --alg whose server combines updates",
        lambda c: c.algorithm.lower() != "fedpft",
    ),
    (
        "alpha",
        "--partition dirichlet or quantity",
        lambda c: c.data.partition in ("dirichlet", "quantity"),
    ),
    (
        "classes-per-client",
        "--partition classes",
        lambda c: c.data.partition == "classes",
    ),
    ("shards-per-client", "--partition shards", lambda c: c.data.partition == "shards"),
    ("imbalance", "--partition long-tail", lambda c: c.data.partition == "long-tail"),
    ("topk-share", "--compress topk", lambda c: c.wire.compress == "topk"),
    ("error-feedback", "--compress", lambda c: c.wire.compress != "none"),
    ("dp-delta dp-seed", "--dp-noise-multiplier or --gda-epsilon", lambda c: c.private),
)


_PRIVACY = ("gda-epsilon",)  # no note would do: who gives it counts on it


def without_effect(
    given: Mapping[str, str],
    known: Container[str],
    config: RunConfig,
    trains: bool = True,
) -> Iterator[str]:
    """A line for each option of ``given`` that changes nothing in a run of ``config``.

    ``given`` is name -> option as its user wrote it; ``known`` are the names that the
    algorithm of ``config`` has at all.  Raises ConfigError where it promised privacy,
    unless nothing ``trains``.
    """
    unmet = [(names.split(), need) for names, need, met in _RULES if not met(config)]
    for name, written in given.items():
        needs = [need for names, need in unmet if name in names]
        if name not in known:
            line = f"{written} has no effect with --alg {config.algorithm}"
            if trains and name in _PRIVACY:
                raise ConfigError(f"{line}, which hides no image: take --alg gda")
            yield line
        elif needs:
            yield f"{written} has no effect: it needs {needs[0]}"
