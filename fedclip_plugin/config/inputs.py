"""What goes into a run: the frozen CLIP, and the images and how they become clients."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError, spelling_key
from .fields import Section, option

PAPER_PROMPT = "a picture of a {}"
DESCRIPTIONS = "descriptions:"  # before the path of a file of sentences
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
EMBEDDED_DATASET = "digits"
EMBEDDED_MODEL = "fedclip-tiny"
SCHEMAS = ("hf-hub:", "local-dir:")  # open_clip names that bring their own weights


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
        "auto", "what computes; several, as cuda:0,cuda:1, encode together, as all do "
        "for auto, and the first one trains",
        choices=("auto", "cpu", "cuda", "cuda:N"))  # fmt: skip

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
                f"--partition {self.partition} needs --clients N, or "
                "--clients-per-domain N"
            )
        if len(given) > 1:
            raise ConfigError(f"give one of {' and '.join(given)}, not both")
        if self.partition == "classes" and self.classes_per_client is None:
            raise ConfigError("--partition classes needs --classes-per-client K")
