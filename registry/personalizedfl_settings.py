"""The run that ``main.py``'s options and FedCLIP's own mean together."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..config import RunConfig
from ..errors import ConfigError, DataError
from ..partition import NO_TARGET
from .core import one_run
from .settings import load_settings

OF_MAIN = {  # what main.py decides -> the value that leaves it alone
    "data.targets": (),
    "data.partition": "domain",
    "data.shots": None,
    "train.participation": 1.0,
    "train.patience": None,
    "train.personalize": "none",
}


def settings_of(args: argparse.Namespace) -> tuple[RunConfig, Path | None]:
    """The configuration, and where ``FEDCLIP_OUT`` wants the results (None: nowhere).

    Raises ConfigError for what does not go together with ``main.py``.
    """
    given = any(word.partition("=")[0] == "--lr" for word in sys.argv)
    folder = data_folder(args)
    config, (out, resume) = load_settings(
        {
            "algorithm": "fedclip",
            "seeds": [args.seed],
            "model.device": args.device,
            "data.dataset": args.dataset,
            "data.root": folder if Path(folder).is_dir() else None,
            "train.rounds": args.iters,
            "train.local_epochs": args.wk_iters,
            "train.batch_size": args.batch,
            # the default of main.py is for SGD, and looks like one that was given
            "train.lr": args.lr if given else None,
        }
    )
    if resume:
        raise ConfigError(
            "FEDCLIP_RESUME: main.py begins with its first round; run it again without"
        )
    for key, value in OF_MAIN.items():
        section, name = key.split(".")
        found = getattr(getattr(config, section), name)
        if found not in (value, (NO_TARGET,)):
            raise ConfigError(
                f"{key} = {found!r}: who trains, and on which images, is main.py's "
                "business; take it out of fedclip.toml and of the FEDCLIP_* variables "
                "(`fedclip run` has it)"
            )
    return one_run(config), out


def data_folder(args: argparse.Namespace) -> str:
    """Where the host looks for a data set; it joins the strings as they are."""
    return str(args.root_dir) + ("covid19" if args.dataset == "covid" else args.dataset)


def refuse_time_series(dataset: str) -> None:
    """DataError for ``pamap``."""
    if dataset == "pamap":
        raise DataError(
            "--dataset pamap is a time series of body sensors, and CLIP takes images: "
            "with --alg fedclip use pacs, vlcs, off_home, medmnist or covid"
        )
