"""Every hyper-parameter, with the paper's defaults, as frozen dataclasses.

``RunConfig()`` is the embedded default (``digits`` with ``fedclip-tiny``);
``TrainConfig()`` is FedCLIP as published (Lu et al. 2023, section 3, and
``fed_at_clip.py`` of the authors' code).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError

PAPER_PROMPT = "a picture of a {}"


PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "best": {"weight_decay": 0.0, "lr": 2e-4},
}
"""Values of :class:`TrainConfig` for FedCLIP, where the user says nothing.

``best`` was chosen as ``benchmarks/results/ablation.md`` tells.
"""
AGGREGATIONS = (
    "mean",
    "median",
    "trimmed-mean",
    "krum",
    "multi-krum",
    "geometric-median",
    "clipped-mean",
)


DOWN_COMPRESSIONS = ("none", "fp16", "int8", "int4")
COMPRESSIONS = (*DOWN_COMPRESSIONS, "topk")


EMBEDDED_DATASET = "digits"


EMBEDDED_MODEL = "fedclip-tiny"


def _choice(section: str, name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(
            f"{section}.{name} = {value!r}: expected one of {', '.join(allowed)}"
        )


def _at_least(section: str, name: str, value: float, low: float) -> None:
    if not (math.isfinite(value) and value >= low):
        raise ConfigError(f"{section}.{name} = {value}: expected a number >= {low:g}")


@dataclass(frozen=True)
class ModelConfig:
    """Which frozen CLIP, and in which precision it encodes.

    ``auto`` stands for ``fedclip-tiny`` on the embedded data set, and for the paper's
    ``ViT-B/32`` with OpenAI's weights on every other.
    """

    name: str = "auto"
    pretrained: str = "auto"  # an open_clip tag, or a checkpoint file
    config_dir: str | None = None  # extra open_clip model configs (*.json)
    precision: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        _choice("model", "precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        if self.device not in ("auto", "cpu") and not self.device.startswith("cuda"):
            raise ConfigError(
                f"model.device = {self.device!r}: expected auto, cpu, cuda or cuda:N"
            )


@dataclass(frozen=True)
class DataConfig:
    """Which images, how they become clients, and which domains are held out."""

    dataset: str = EMBEDDED_DATASET
    root: str | None = None
    features: str | None = None  # a feature directory: needs no CLIP and no images
    targets: tuple[str, ...] = ()  # () = every domain in turn; "none" = no held-out one
    prompts: tuple[str, ...] = (PAPER_PROMPT,)  # several = an ensemble
    on_bad_image: str = "fail"
    partition: str = "domain"
    clients: int | None = None  # for iid and dirichlet
    alpha: float = 0.5  # Dirichlet concentration: smaller is more skewed
    shots: int | None = None  # train images per class and client

    def __post_init__(self) -> None:
        _choice("data", "on_bad_image", self.on_bad_image, ("fail", "skip"))
        _choice("data", "partition", self.partition, ("domain", "iid", "dirichlet"))
        if self.partition == "domain" and self.clients is not None:
            raise ConfigError(
                "data.clients is for --partition iid or dirichlet; "
                "with the default partition every domain is one client"
            )
        if self.partition != "domain" and self.clients is None:
            raise ConfigError(f"data.partition = {self.partition!r} needs --clients N")
        for name, value in (("clients", self.clients), ("shots", self.shots)):
            if value is not None:
                _at_least("data", name, value, 1)
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ConfigError(f"data.alpha = {self.alpha}: expected a number > 0")
        if not self.prompts:
            raise ConfigError("data.prompts is empty: expected at least one template")
        for prompt in self.prompts:
            if prompt.count("{}") != 1:
                raise ConfigError(
                    f"data.prompts: {prompt!r} must hold exactly one {{}} "
                    f"for the class name, as in {PAPER_PROMPT!r}"
                )


@dataclass(frozen=True)
class TrainConfig:
    """Local training and aggregation; defaults are the paper's.

    Adam with L2 weight decay (not AdamW), made anew every round.
    """

    adapter: str = "attention"  # the network; see adapter.ADAPTERS
    side: str = "image"  # the features that it adapts: image, text or both
    loss: str = "in-batch"  # or class: cross-entropy over all classes
    optimizer: str = "adam"  # L2-Adam; or adamw, sgd
    optimizer_state: str = "reset"  # every round, or keep: each client its own
    logit_scale: float | None = None  # of the training loss; None: the CLIP's
    rounds: int = 200
    patience: int | None = None  # rounds without a better one before a run stops
    local_epochs: int = 1
    batch_size: int = 32
    lr: float = 5e-5
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2
    weighting: str = "uniform"
    aggregation: str = "mean"  # or a robust rule, see robust.RULES
    byzantine: float = 0.3  # share of attackers that a robust rule reckons with
    max_norm_ratio: float = 100.0  # to the round's median update; 0 allows any
    participation: float = 1.0  # share of the clients that train in a round
    compress: str = "none"  # the updates on their way up; see codecs.py
    compress_down: str = "none"  # the state on its way down; see downlink.py
    topk_share: float = 0.05  # of the values that travel, with compress topk
    error_feedback: str = "on"  # clients keep what compression lost for the next round
    eval_every: int = 1  # rounds from one scoring of all clients to the next
    mu: float = 0.01  # FedProx: weight of the distance from the round's start
    personalize: str = "none"  # what each client does after the last round
    precision: str = "fp32"  # of the matrix products; see ops.local_epoch
    dp_noise_multiplier: float = 0.0  # client-level privacy; 0 = off, see privacy.py
    dp_clip: float = 0.0  # longest update, L2; needed where there is noise
    dp_delta: float = 1e-5
    dp_epsilon_budget: float | None = None  # the last round within it ends the run
    dp_seed: str = "auto"  # of the noise: run or secret; auto: secret in hosts

    def __post_init__(self) -> None:
        _at_least("train", "rounds", self.rounds, 1)
        if self.patience is not None:
            _at_least("train", "patience", self.patience, 1)
        _at_least("train", "local_epochs", self.local_epochs, 1)
        _at_least("train", "eval_every", self.eval_every, 1)
        _at_least("train", "batch_size", self.batch_size, 2)
        _at_least("train", "lr", self.lr, 0)
        _at_least("train", "eps", self.eps, 0)
        _at_least("train", "weight_decay", self.weight_decay, 0)
        _at_least("train", "mu", self.mu, 0)
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"train.{name} = {getattr(self, name)}: expected 0 <= {name} < 1"
                )
        if self.logit_scale is not None:
            _at_least("train", "logit_scale", self.logit_scale, 1e-3)
        _choice("train", "side", self.side, ("image", "text", "both"))
        _choice("train", "loss", self.loss, ("in-batch", "class"))
        _choice("train", "optimizer", self.optimizer, ("adam", "adamw", "sgd"))
        _choice("train", "optimizer_state", self.optimizer_state, ("reset", "keep"))
        _choice("train", "weighting", self.weighting, ("uniform", "examples"))
        _choice("train", "aggregation", self.aggregation, AGGREGATIONS)
        _at_least("train", "max_norm_ratio", self.max_norm_ratio, 0)
        if not 0 <= self.byzantine < 0.5:
            raise ConfigError(
                f"train.byzantine = {self.byzantine}: expected a share in [0, 0.5)"
            )
        _choice("train", "precision", self.precision, ("fp32", "bf16"))
        _choice("train", "personalize", self.personalize, ("none", "finetune", "mix"))
        if not 0 < self.participation <= 1:
            raise ConfigError(
                f"train.participation = {self.participation}: "
                "expected a share in (0, 1]"
            )
        _choice("train", "compress", self.compress, COMPRESSIONS)
        _choice("train", "compress_down", self.compress_down, DOWN_COMPRESSIONS)
        _choice("train", "error_feedback", self.error_feedback, ("on", "off"))
        if not 0 < self.topk_share <= 1:
            raise ConfigError(
                f"train.topk_share = {self.topk_share}: expected a share in (0, 1]"
            )
        _check_privacy(self)

    @property
    def private(self) -> bool:
        """Whether updates are clipped and noise is added, see ``privacy.py``."""
        return self.dp_noise_multiplier > 0

    @property
    def distance_limit(self) -> float:
        """``max_norm_ratio``; 0 with privacy: an update's fate must be its own."""
        return 0.0 if self.private else self.max_norm_ratio


def _check_privacy(t: TrainConfig) -> None:
    for name in ("dp_noise_multiplier", "dp_clip"):
        _at_least("train", name, getattr(t, name), 0)
    if not 0 < t.dp_delta < 1:
        raise ConfigError(f"train.dp_delta = {t.dp_delta}: expected a number in (0, 1)")
    _choice("train", "dp_seed", t.dp_seed, ("auto", "run", "secret"))
    if t.dp_epsilon_budget is not None:
        _at_least("train", "dp_epsilon_budget", t.dp_epsilon_budget, 1e-6)
    if not t.private:
        if t.dp_clip or t.dp_epsilon_budget is not None:
            raise ConfigError(
                "--dp-clip and --dp-epsilon-budget do nothing without noise: "
                "add --dp-noise-multiplier Z"
            )
        return
    if not t.dp_clip:
        raise ConfigError(
            "--dp-noise-multiplier needs --dp-clip C, the longest update that counts"
        )
    needed: dict[str, tuple[Any, ...]] = {
        "aggregation": ("mean",),
        "weighting": ("uniform",),
        "optimizer-state": ("reset",),
        "patience": (None,),
        "max-norm-ratio": (0.0, 100.0),  # the default is off by itself
    }
    if t.compress != "none":
        needed["error-feedback"] = ("off",)
    for flag, allowed in needed.items():
        got = getattr(t, flag.replace("-", "_"))
        if got not in allowed:
            raise ConfigError(
                f"--{flag} {got} does not go with --dp-noise-multiplier "
                f"(docs/privacy.md tells why): expected {allowed[0]}"
            )


@dataclass(frozen=True)
class RunConfig:
    """One `fedclip run`: algorithm, seeds, and the three sections above."""

    algorithm: str = "fedclip"
    seeds: tuple[int, ...] = (0,)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ConfigError("seeds is empty: expected at least one --seed")
        for seed in self.seeds:
            _at_least("run", "seed", seed, 0)

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
        return EMBEDDED_MODEL if self.model_name == EMBEDDED_MODEL else "openai"
