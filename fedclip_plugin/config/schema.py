"""Every hyper-parameter, with the paper's defaults, as frozen dataclasses.

``RunConfig()`` is the embedded default (``digits`` with ``fedclip-tiny``);
``TrainConfig()`` is FedCLIP as published (Lu et al. 2023, section 3, and
``fed_at_clip.py`` of the authors' code).  What one algorithm alone has is in the
``Params`` of its file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError
from .fields import Section, option
from .inputs import EMBEDDED_DATASET, EMBEDDED_MODEL, SCHEMAS, DataConfig, ModelConfig

AGGREGATIONS = (
    "mean",
    "median",
    "trimmed-mean",
    "krum",
    "multi-krum",
    "geometric-median",
    "clipped-mean",
)
SELECTIONS = ("accuracy", "balanced-accuracy", "macro-f1")
DOWN_COMPRESSIONS = ("none", "fp16", "int8", "int4")
COMPRESSIONS = (*DOWN_COMPRESSIONS, "topk")


@dataclass(frozen=True)
class TrainConfig(Section):
    """Rounds and local training; defaults are the paper's.

    Adam with L2 weight decay (not AdamW), made anew every round.
    """

    rounds: int = option(
        200, "communication rounds", aliases=("--iters",),
        within="[1, inf)")  # fmt: skip
    patience: int | None = option(
        None, "stop when the best round is N rounds back", within="[1, inf)",
        shown="never")  # fmt: skip
    local_epochs: int = option(
        1, "local epochs a round", aliases=("--wk_iters",),
        within="[1, inf)")  # fmt: skip
    batch_size: int = option(
        32, "local batch size", aliases=("--batch",), within="[2, inf)")  # fmt: skip
    optimizer: str = option(
        "adam", "adam is with L2 decay", choices=("adam", "adamw", "sgd"))  # fmt: skip
    optimizer_state: str = option(
        "reset", "reset every round, or keep each client's own",
        choices=("reset", "keep"))  # fmt: skip
    lr: float = option(5e-5, "learning rate", within="[0, inf)")
    beta1: float = option(0.9, "of Adam", within="[0, 1)")
    beta2: float = option(0.98, "of Adam", within="[0, 1)")
    eps: float = option(1e-6, "of Adam", within="[0, inf)")
    weight_decay: float = option(0.2, "L2 decay of Adam", within="[0, inf)")
    precision: str = option(
        "fp32", "bf16: matrix products of bfloat16 factors, summed in fp32; weights "
        "and Adam stay fp32", name="train-precision",
        choices=("fp32", "bf16"))  # fmt: skip
    augment: str = option(
        "none", "ggeur: clients draw further features along the spread of each class "
        "over all clients, which the first round finds (docs/augment.md)",
        choices=("none", "ggeur"))  # fmt: skip
    augment_per_class: int = option(
        2000, "rows of a class that a client draws up to", within="[1, inf)",
        metavar="N")  # fmt: skip
    augment_prototypes: int = option(
        0, "rows that a client draws of every class beside, around the class's mean "
        "over all clients", within="[0, inf)", metavar="N")  # fmt: skip
    augment_rank: int = option(
        64, "directions of a class that travel, those of the largest spread",
        within="[1, inf)", metavar="N")  # fmt: skip
    augment_scale: str = option(
        "eigenvalue", "length of a step along a direction: the eigenvalue, as "
        "published, or its root, the standard deviation",
        choices=("eigenvalue", "deviation"))  # fmt: skip
    evaluate: str | None = option(
        None, "nothing is trained: every client scores this state of a former run, in "
        "one round", metavar="FILE", path=True)  # fmt: skip
    eval_every: int = option(
        1, "score all clients every N rounds and after the last",
        within="[1, inf)")  # fmt: skip
    select_by: str = option(
        "accuracy", "what the clients' validation splits choose the best round by",
        choices=SELECTIONS)  # fmt: skip
    personalize: str = option(
        "none", "after the last round: finetune or mix the adapter on each client, as "
        "far as its validation split says",
        choices=("none", "finetune", "mix"))  # fmt: skip


@dataclass(frozen=True)
class ServerConfig(Section):
    """Who takes part in a round, and what the server makes of their updates."""

    weighting: str = option(
        "uniform", "of the clients in the mean; uniform is as published for fedclip, "
        "gda, tofa and most others set examples, gap is FedDG-GA (docs/server.md)",
        choices=("uniform", "examples", "gap"))  # fmt: skip
    gap_step: float = option(
        0.2, "of a client's weight in the first round, by --weighting gap; it falls to "
        "0 over the rounds", within="[0, 1]")  # fmt: skip
    aggregation: str = option(
        "mean", "mean (as published), or a robust rule (docs/robust.md)",
        choices=AGGREGATIONS)  # fmt: skip
    byzantine: float = option(
        0.3, "share of attackers that a robust rule has to withstand",
        within="[0, 0.5)", metavar="SHARE")  # fmt: skip
    max_norm_ratio: float = option(
        100.0, "leave out an update this many times longer than the round's median; 0 "
        "= never", within="[0, inf)")  # fmt: skip
    participation: float = option(
        1.0, "share of the clients that train in a round", within="(0, 1]",
        metavar="SHARE")  # fmt: skip
    server_optimizer: str = option(
        "none", "what makes the next state of the mean update: FedAvgM, FedAdagrad, "
        "FedAdam or FedYogi (docs/server.md)",
        choices=("none", "momentum", "adagrad", "adam", "yogi"))  # fmt: skip
    server_lr: float | None = option(
        None, "its step", within="(0, inf)",
        shown="1 for none and momentum, else 0.01")  # fmt: skip
    server_momentum: float | None = option(
        None, "share of the former mean updates in it; beta1 of the adaptive ones",
        within="[0, 1)", shown="0.9; 0 for adagrad")  # fmt: skip
    server_beta2: float = option(
        0.99, "of adam and yogi on the server", within="[0, 1)")  # fmt: skip
    server_tau: float = option(
        1e-3, "of adagrad, adam and yogi on the server: small is adaptive",
        within="(0, inf)")  # fmt: skip
    server_ema: float = option(
        0.0, "score, keep and export the average over rounds that forgets with this "
        "factor; 0 = the round's own state", within="[0, 1)",
        metavar="DECAY")  # fmt: skip


@dataclass(frozen=True)
class WireConfig(Section):
    """How updates travel up and the state travels down (docs/compression.md)."""

    compress: str = option(
        "none", "how updates travel up; none is fp32",
        choices=COMPRESSIONS)  # fmt: skip
    compress_down: str = option(
        "none", "how the state travels down; none is fp32",
        choices=DOWN_COMPRESSIONS)  # fmt: skip
    topk_share: float = option(
        0.05, "of an update's values, those that topk sends", within="(0, 1]",
        metavar="SHARE")  # fmt: skip
    error_feedback: str = option(
        "on", "clients keep what compression lost and add it to their next update",
        choices=("on", "off"))  # fmt: skip


@dataclass(frozen=True)
class PrivacyConfig(Section):
    """Client-level differential privacy; off without noise (docs/privacy.md)."""

    dp_noise_multiplier: float = option(
        0.0, "DP-FedAvg: standard deviation of the noise, as a multiple of what one "
        "client can change; 0 = off", within="[0, inf)")  # fmt: skip
    dp_clip: float = option(
        0.0, "updates longer than C (L2) are shortened to it; needed where there is "
        "noise", within="[0, inf)")  # fmt: skip
    dp_delta: float = option(1e-5, "for which epsilon is reported", within="(0, 1)")
    dp_epsilon_budget: float | None = option(
        None, "stop with the last round within it", within="[1e-6, inf)",
        shown="none")  # fmt: skip
    dp_seed: str = option(
        "auto", "noise from the run's seed (run) or from the system's entropy "
        "(secret); auto: run, in the hosts secret",
        choices=("auto", "run", "secret"))  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.private and (self.dp_clip or self.dp_epsilon_budget is not None):
            raise ConfigError(
                "--dp-clip and --dp-epsilon-budget do nothing without noise: "
                "add --dp-noise-multiplier Z"
            )
        if self.private and not self.dp_clip:
            raise ConfigError(
                "--dp-noise-multiplier needs --dp-clip C, the longest update that "
                "counts"
            )

    @property
    def private(self) -> bool:
        """Whether updates are clipped and noise is added, see ``server/privacy.py``."""
        return self.dp_noise_multiplier > 0


@dataclass(frozen=True)
class RunConfig(Section):
    """One `fedclip run`: algorithm, seeds, the sections above, and its own ``params``.

    ``params`` None stands for the defaults of the algorithm's ``Params``.  ``notes``
    are lines on options without effect; they are not part of its identity.
    """

    algorithm: str = option("fedclip", "algorithm", name="alg")
    seeds: tuple[int, ...] = option(
        (0,), "random seed; several give mean and 95% interval", name="seed",
        within="[0, inf)")  # fmt: skip
    preset: str | None = option(
        None, "best: gda, which source validation prefers; of --alg fedclip: paper, or "
        "best, which our ablation found at the same bytes; single options win over it",
        shown="paper")  # fmt: skip
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    wire: WireConfig = field(default_factory=WireConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    params: Any = None
    notes: Any = field(default=(), compare=False)  # tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seeds:
            raise ConfigError("seeds is empty: expected at least one --seed")
        if self.privacy.private:
            _check_privacy(self)

    @property
    def private(self) -> bool:
        """Whether noise hides clients, or by the algorithm's ``epsilon`` examples."""
        return self.privacy.private or hides_examples(self.params)

    @property
    def model_name(self) -> str:
        """The model's name with ``auto`` resolved."""
        if self.model.name != "auto":
            return self.model.name
        embedded = self.data.dataset == EMBEDDED_DATASET
        return EMBEDDED_MODEL if embedded else "ViT-B/32"

    @property
    def pretrained(self) -> str:
        """The weights' tag or file with ``auto`` resolved."""
        if self.model.pretrained != "auto":
            return self.model.pretrained
        if self.model.name.startswith(SCHEMAS):
            return "auto"
        return EMBEDDED_MODEL if self.model_name == EMBEDDED_MODEL else "openai"


SECTIONS: dict[str, type[Section]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "train": TrainConfig,
    "server": ServerConfig,
    "wire": WireConfig,
    "privacy": PrivacyConfig,
}
"""Name in TOML -> the class of every section that does not belong to an algorithm."""

FORMER = {"train": ("server", "wire", "privacy", "fedclip", "fedprox")}
"""Section -> where options that were once in it are now: old files stay readable."""


def hides_examples(params: Any) -> bool:
    """Whether an algorithm's ``params`` ask for privacy of single training images."""
    return getattr(params, "example_epsilon", None) is not None


def _check_privacy(config: RunConfig) -> None:
    """Refuse what would void the promise (docs/privacy.md tells why)."""
    server, train, wire = config.server, config.train, config.wire
    needed: list[tuple[str, Any, tuple[Any, ...]]] = [
        ("aggregation", server.aggregation, ("mean",)),
        ("weighting", server.weighting, ("uniform",)),
        ("optimizer-state", train.optimizer_state, ("reset",)),
        ("patience", train.patience, (None,)),
        # the default is off by itself
        ("max-norm-ratio", server.max_norm_ratio, (0.0, ServerConfig.max_norm_ratio)),
    ]
    if wire.compress != "none":
        needed.append(("error-feedback", wire.error_feedback, ("off",)))
    for name, value, allowed in needed:
        if value not in allowed:
            raise ConfigError(
                f"--{name} {value} does not go with --dp-noise-multiplier "
                f"(docs/privacy.md tells why): expected {allowed[0]}"
            )
