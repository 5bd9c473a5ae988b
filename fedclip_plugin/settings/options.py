"""The options of ``fedclip run``: one table from flag to configuration.

Values not given on the command line come from ``--config FILE.toml``, then from the
defaults in ``config.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

# destination in RunConfig -> the flags, the authors' names among them
_RUN = "what to run"


_MODEL = "the frozen CLIP"


_DATA = "data"


_TRAIN = "training (defaults: the paper's)"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """``--model`` and its kin, as open_clip's users know them."""
    group = parser.add_argument_group(_MODEL)
    add = group.add_argument
    add("--model", "--net", dest="model.name", metavar="NAME",
        help="open_clip model or the paper's name, e.g. ViT-B/32 (default: "
        "fedclip-tiny for digits, else ViT-B/32)")  # fmt: skip
    add("--pretrained", dest="model.pretrained", metavar="TAG|FILE",
        help="open_clip tag or checkpoint file (default: openai)")  # fmt: skip
    add("--model-config", dest="model.config_dir", metavar="DIR",
        help="folder with further open_clip model configs (*.json)")  # fmt: skip
    add("--precision", dest="model.precision", metavar="P",
        help="auto|fp32|bf16|fp16; auto takes a faster one only if every feature's "
        "cosine with fp32 is above 0.999")  # fmt: skip
    add("--device", dest="model.device", metavar="D", help="auto|cpu|cuda|cuda:N")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Where the images are and what is said about them."""
    group = parser.add_argument_group(_DATA)
    add = group.add_argument
    add("--dataset", dest="data.dataset", metavar="NAME",
        help="digits (embedded, default), pacs, vlcs, officehome, office_caltech, "
        "office31, terra_incognita, domainnet, or any name of yours")  # fmt: skip
    add("--root", "--root_dir", dest="data.root", metavar="DIR",
        help="folder with <domain>/<class>/<image>, or the folder above")  # fmt: skip
    add("--prompt", dest="data.prompts", metavar="TEMPLATE", action="append",
        help="caption with {} for the class; several make an ensemble, "
        '"ensemble" is a ready one (default: "a picture of a {}")')  # fmt: skip
    add("--on-bad-image", dest="data.on_bad_image", metavar="fail|skip",
        help="an unreadable image stops the run (default) or is left out")  # fmt: skip


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Everything else of ``fedclip run``."""
    group = parser.add_argument_group(_RUN)
    add = group.add_argument
    add("--alg", dest="algorithm", metavar="NAME", help="algorithm (default: fedclip)")
    add("--features", dest="data.features", metavar="DIR",
        help="run from a feature directory: needs no CLIP and no images")  # fmt: skip
    add("--target", "--test_envs", dest="data.targets", metavar="DOMAIN",
        action="extend", nargs="+",
        help="held-out domain, by name or number; several run one after the other; "
        "none = all domains are clients (default: each in turn)")  # fmt: skip
    add("--seed", dest="seeds", metavar="N", type=int, action="extend", nargs="+",
        help="random seed; several give mean and 95%% interval (default 0)",
        )  # fmt: skip
    add("--config", metavar="FILE.toml", type=Path, help="options from a file")
    add("--out", metavar="DIR", type=Path,
        help="where the results go (default: runs/<alg>-<dataset>); a former run "
        "there is moved aside")  # fmt: skip
    add("--resume", action="store_true", help="go on with a broken run in --out")
    add("--dry-run", action="store_true",
        help="check data and weights, tell what the run would cost, and stop",
        )  # fmt: skip
    add("--tensorboard", action="store_true", help="also write TensorBoard events")
    group = parser.add_argument_group(_TRAIN)
    add = group.add_argument
    add("--preset", metavar="NAME",
        help="paper (default), or best: what our ablation found at the same bytes; "
        "single options win over it")  # fmt: skip
    add("--patience", dest="train.patience", metavar="N", type=int,
        help="stop when the best round is N rounds back (default: never)")  # fmt: skip
    add("--rounds", "--iters", dest="train.rounds", metavar="N", type=int,
        help="communication rounds (default: 200)")  # fmt: skip
    add("--local-epochs", "--wk_iters", dest="train.local_epochs", metavar="N",
        type=int, help="local epochs a round (default: 1)")  # fmt: skip
    add("--batch-size", "--batch", dest="train.batch_size", metavar="N", type=int,
        help="local batch size (default: 32)")  # fmt: skip
    add("--lr", dest="train.lr", metavar="F", type=float, help="default: 5e-5")
    add("--weight-decay", dest="train.weight_decay", metavar="F", type=float,
        help="L2 decay of Adam (default: 0.2)")  # fmt: skip
    add("--weighting", dest="train.weighting", metavar="W",
        help="uniform (default, as published) or examples")  # fmt: skip
    add("--aggregation", dest="train.aggregation", metavar="RULE",
        help="mean (default, as published), median, trimmed-mean, krum, multi-krum, "
        "geometric-median or clipped-mean")  # fmt: skip
    add("--byzantine", dest="train.byzantine", metavar="SHARE", type=float,
        help="share of attackers that a robust rule reckons with (default: 0.3)",
        )  # fmt: skip
    add("--max-norm-ratio", dest="train.max_norm_ratio", metavar="F", type=float,
        help="leave out an update this many times longer than the round's median "
        "(default: 100; 0 = never)")  # fmt: skip
    add("--participation", dest="train.participation", metavar="SHARE", type=float,
        help="share of the clients that train in a round (default: 1)")  # fmt: skip
    add("--compress", dest="train.compress", metavar="C",
        help="how updates travel up: none (default, fp32), fp16, int8, int4 or topk",
        )  # fmt: skip
    add("--compress-down", dest="train.compress_down", metavar="C",
        help="how the state travels down: none (default, fp32), fp16, int8 or int4",
        )  # fmt: skip
    add("--topk-share", dest="train.topk_share", metavar="SHARE", type=float,
        help="of an update's values, those that topk sends (default: 0.05)",
        )  # fmt: skip
    add("--error-feedback", dest="train.error_feedback", metavar="on|off",
        help="clients keep what compression lost and add it to their next update "
        "(default: on)")  # fmt: skip
    add("--eval-every", dest="train.eval_every", metavar="N", type=int,
        help="score all clients every N rounds and after the last (default: 1)",
        )  # fmt: skip
    add("--mu", dest="train.mu", metavar="F", type=float,
        help="fedprox: weight of the proximal term (default: 0.01)")  # fmt: skip
    add("--personalize", dest="train.personalize", metavar="P",
        help="after the last round: none (default), finetune or mix the adapter on "
        "each client, as far as its validation split says")  # fmt: skip
    add("--train-precision", dest="train.precision", metavar="P",
        help="fp32 (default) or bf16: matrix products of bfloat16 factors, summed in "
        "fp32; weights and Adam stay fp32")  # fmt: skip
    _add_variants(parser)
    _add_privacy(parser)
    group = parser.add_argument_group("clients beyond domains")
    add = group.add_argument
    add("--partition", dest="data.partition", metavar="P",
        help="domain (default: each domain one client), iid, dirichlet")  # fmt: skip
    add("--clients", dest="data.clients", metavar="N", type=int,
        help="number of clients for iid and dirichlet")  # fmt: skip
    add("--alpha", dest="data.alpha", metavar="F", type=float,
        help="Dirichlet concentration, small = skewed (default: 0.5)")  # fmt: skip
    add("--shots", dest="data.shots", metavar="N", type=int,
        help="few-shot: training images per class and client")  # fmt: skip


def _add_privacy(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("privacy of clients (docs/privacy.md)")
    add = group.add_argument
    add("--dp-noise-multiplier", dest="train.dp_noise_multiplier", metavar="Z",
        type=float, help="DP-FedAvg: standard deviation of the noise, as a multiple "
        "of what one client can change (default: 0 = off)")  # fmt: skip
    add("--dp-clip", dest="train.dp_clip", metavar="C", type=float,
        help="updates longer than C (L2) are shortened to it")  # fmt: skip
    add("--dp-delta", dest="train.dp_delta", metavar="D", type=float,
        help="for which epsilon is told (default: 1e-5)")  # fmt: skip
    add("--dp-epsilon-budget", dest="train.dp_epsilon_budget", metavar="E", type=float,
        help="stop with the last round within it (default: none)")  # fmt: skip
    add("--dp-seed", dest="train.dp_seed", metavar="S",
        help="noise from the run's seed (run) or from the system's entropy (secret); "
        "default: run, in the hosts secret")  # fmt: skip


def _add_variants(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("variants of fedclip (defaults: the paper's)")
    add = group.add_argument
    add("--adapter", dest="train.adapter", metavar="NAME",
        help="attention (default), residual (starts as the identity), bottleneck "
        "(an eighth of the parameters), or one that another package adds",
        )  # fmt: skip
    add("--side", dest="train.side", metavar="S",
        help="what the adapter adapts: image (default), text or both")  # fmt: skip
    add("--loss", dest="train.loss", metavar="L",
        help="in-batch (default), or class: cross-entropy over all classes",
        )  # fmt: skip
    add("--train-logit-scale", dest="train.logit_scale", metavar="F", type=float,
        help="logit scale of the training loss (default: the CLIP's own, 100)",
        )  # fmt: skip
    add("--optimizer", dest="train.optimizer", metavar="O",
        help="adam (default, L2 decay), adamw or sgd")  # fmt: skip
    add("--optimizer-state", dest="train.optimizer_state", metavar="S",
        help="reset every round (default), or keep each client's own")  # fmt: skip
