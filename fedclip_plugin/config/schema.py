"""Every hyper-parameter, with the paper's defaults, as frozen dataclasses.

``RunConfig()`` is the embedded default (``digits`` with ``fedclip-tiny``);
``TrainConfig()`` is FedCLIP as published (Lu et al. 2023, section 3, and
``fed_at_clip.py`` of the authors' code).  What one algorithm alone has is in the
``Params`` of its file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import ConfigError, spelling_key
from .fields import Section, option

PAPER_PROMPT = "a picture of a {}"
AGGREGATIONS = (
    "mean",
    "median",
    "trimmed-mean",
    "krum",
    "multi-krum",
    "geometric-median",
    "clipped-mean",
)
PARTITIONS = {
    "domain": (),
    "iid": (),
    "dirichlet": ("alpha",),
    "classes": ("classes_per_client",),
    "shards": ("shards_per_client",),
    "quantity": ("alpha",),
    "long-tail": ("imbalance",),
}
"""How images become clients -> the fields that this depends on."""
SELECTIONS = ("accuracy", "balanced-accuracy", "macro-f1")
DOWN_COMPRESSIONS = ("none", "fp16", "int8", "int4")
COMPRESSIONS = (*DOWN_COMPRESSIONS, "topk")
EMBEDDED_DATASET = "digits"
EMBEDDED_MODEL = "fedclip-tiny"
SCHEMAS = ("hf-hub:", "local-dir:")  # open_clip names that bring their own weights


DESCRIPTIONS = "descriptions:"  # before the path of a file of sentences


def is_template(prompt: str) -> bool:
    """Whether ``prompt`` has one {} for the class name, and no other brace."""
    return prompt.count("{}") == 1 and prompt.count("{") == prompt.count("}") == 1


@dataclass(frozen=True)
class ModelConfig(Section):
    """Which frozen CLIP, and in which precision it encodes.

    ``auto`` stands for ``fedclip-tiny`` on the embedded data set, and for the paper's
    ``ViT-B/32`` with OpenAI's weights on every other.
    """

    name: str = option(
        "auto", "open_clip model or the paper's name, e.g. ViT-B/32", name="model",
        aliases=("--net",), path="local-dir:",
        shown="fedclip-tiny for digits, else ViT-B/32")  # fmt: skip
    pretrained: str = option(
        "auto", "open_clip tag or checkpoint file", metavar="TAG|FILE", path="file",
        shown="openai")  # fmt: skip
    config_dir: str | None = option(
        None, "folder with further open_clip model configs (*.json)",
        name="model-config", path=True)  # fmt: skip
    precision: str = option(
        "auto", "of encoding; auto takes a faster one only if every feature's cosine "
        "with fp32 is above 0.999",
        choices=("auto", "fp32", "bf16", "fp16"))  # fmt: skip
    device: str = option(
        "auto", "what computes", choices=("auto", "cpu", "cuda", "cuda:N"))  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("name", "pretrained"):
            name = getattr(self, key).strip()
            known = name.lower() in ("auto", EMBEDDED_MODEL)
            object.__setattr__(self, key, name.lower() if known else name)
        if not self.name.startswith(SCHEMAS):
            return
        for flag, value in (
            ("--pretrained", self.pretrained),
            ("--model-config", self.config_dir or "auto"),
        ):
            if value != "auto":
                raise ConfigError(
                    f"{flag} {value} has no effect beside --model {self.name}, which "
                    f"brings its own: leave out {flag}"
                )


@dataclass(frozen=True)
class DataConfig(Section):
    """Which images, how they become clients, and which domains are held out."""

    dataset: str = option(
        EMBEDDED_DATASET, "digits (embedded), pacs, vlcs, officehome, office_caltech, "
        "office31, terra_incognita, domainnet, or any name of yours")  # fmt: skip
    root: str | None = option(
        None, "folder with <domain>/<class>/<image>, or the folder above",
        aliases=("--root_dir",), path=True)  # fmt: skip
    features: str | None = option(
        None, "run from a feature directory: needs no CLIP and no images",
        path=True)  # fmt: skip
    targets: tuple[str, ...] = option(
        (), "held-out domain, by name or number; several run one after the other; none "
        "= all domains are clients", name="target", aliases=("--test_envs",),
        metavar="DOMAIN", shown="each in turn")  # fmt: skip
    prompts: tuple[str, ...] = option(
        (PAPER_PROMPT,), 'caption with {} for the class; several make an ensemble, '
        '"ensemble" is a ready one, "clip:food101" and the like a data set\'s own; '
        "descriptions:FILE.json has sentences of every class",
        name="prompt", metavar="TEMPLATE", path=DESCRIPTIONS,
        shown=f'"{PAPER_PROMPT}"')  # fmt: skip
    transductive: bool = option(
        False, "facmic, faa-clip: training may see the unlabelled images of the "
        "held-out domain, which reports then mark (docs/transductive.md)",
        shown="no")  # fmt: skip
    on_bad_image: str = option(
        "fail", "an unreadable image stops the run, or is left out",
        choices=("fail", "skip"))  # fmt: skip
    classes: tuple[str, ...] = option(
        (), "classes to train on: base or novel (the first or second half, both are "
        "scored), names, a file with a name a line, or domainnet-10",
        metavar="all|base|novel|FILE|NAME", path="file",
        shown="all")  # fmt: skip
    class_names: str | None = option(
        None, "what class folders that are codes are called: JSON, or a folder and its "
        "name on each line", metavar="FILE", path=True)  # fmt: skip
    pictures: str = option(
        "on", "small pictures of test images in the report: what was corrected, what "
        "was broken", choices=("on", "off"))  # fmt: skip
    partition: str = option(
        "domain", "how images become clients (docs/data.md); domain: each domain one "
        "client", choices=tuple(PARTITIONS))  # fmt: skip
    clients: int | None = option(
        None, "number of clients, the domains' images pooled",
        within="[1, inf)")  # fmt: skip
    clients_per_domain: int | None = option(
        None, "number of clients inside each domain", within="[1, inf)")  # fmt: skip
    classes_per_client: int | None = option(
        None, "of --partition classes; shared where they are not enough",
        within="[1, inf)")  # fmt: skip
    shards_per_client: int = option(
        2, "of --partition shards", within="[1, inf)")  # fmt: skip
    alpha: float = option(
        0.5, "Dirichlet concentration, small = skewed", within="(0, inf)")  # fmt: skip
    imbalance: float = option(
        100.0, "of --partition long-tail: training images of the first class for one "
        "of the last", within="[1, inf)")  # fmt: skip
    split: str | None = option(
        None, 'which images train, validate and test, {"train": [[path, label], ...], '
        '"val", "test"}; or this for each client by its name',
        metavar="FILE.json", path=True)  # fmt: skip
    shots: int | None = option(
        None, "few-shot: training images per class and client",
        within="[1, inf)")  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if spelling_key(self.dataset) == EMBEDDED_DATASET:
            object.__setattr__(self, "dataset", EMBEDDED_DATASET)
        if self.classes == ("all",):
            object.__setattr__(self, "classes", ())
        self._check_partition()
        if not self.prompts:
            raise ConfigError("data.prompts is empty: expected at least one template")
        for prompt in self.prompts:
            if not is_template(prompt) and not prompt.startswith(DESCRIPTIONS):
                raise ConfigError(
                    f"data.prompts: {prompt!r} must hold exactly one {{}} for the "
                    f"class name and no other brace, as in {PAPER_PROMPT!r}"
                )

    def _check_partition(self) -> None:
        counts = {"--clients": self.clients}
        counts["--clients-per-domain"] = self.clients_per_domain
        given = [flag for flag, count in counts.items() if count is not None]
        if self.partition == "domain" and given:
            kinds = [kind for kind in PARTITIONS if kind != "domain"]
            raise ConfigError(
                f"{given[0]} is for --partition {', '.join(kinds[:-1])} or "
                f"{kinds[-1]}; with the default partition every domain is one client"
            )
        if self.partition != "domain" and not given:
            raise ConfigError(
                f"data.partition = {self.partition!r} needs --clients N, or "
                "--clients-per-domain N"
            )
        if len(given) > 1:
            raise ConfigError(f"give one of {' and '.join(given)}, not both")
        if self.partition == "classes" and self.classes_per_client is None:
            raise ConfigError("data.partition = 'classes' needs --classes-per-client K")


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
        "uniform", "of the clients in the mean; uniform is as published, gap is "
        "FedDG-GA (docs/server.md)",
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
        ("max-norm-ratio", server.max_norm_ratio, (0.0, 100.0)),
    ]
    if wire.compress != "none":
        needed.append(("error-feedback", wire.error_feedback, ("off",)))
    for name, value, allowed in needed:
        if value not in allowed:
            raise ConfigError(
                f"--{name} {value} does not go with --dp-noise-multiplier "
                f"(docs/privacy.md tells why): expected {allowed[0]}"
            )
