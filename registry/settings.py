"""Where a binding's configuration comes from: ``fedclip.toml``, variables, the host.

Hosts know none of FedCLIP's own options.  Every option of ``fedclip run`` that sets a
value can be given as a variable named after it (``--model-config DIR`` is
``FEDCLIP_MODEL_CONFIG``), or in ``fedclip.toml``, the format of ``--config``.
"""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .. import options
from ..config import RunConfig
from ..errors import ConfigError

FILE = "fedclip.toml"
PREFIX = "FEDCLIP_"
OF_THE_PACKAGE = {
    f"{PREFIX}{name}" for name in ("CACHE", "CUDA", "DEBUG", "ISA", "PURE_PYTHON")
}
OWN_RUN = (
    "--config",
    "--dry-run",
    "--tensorboard",
    "--preset",
)  # of `fedclip run` alone


_ON, _OFF = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


class Output(NamedTuple):
    """Where a run's files go, None: nowhere; whether the run that is there goes on."""

    directory: Path | None = None
    resume: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(f"{PREFIX}* variables: {message}")


def variables() -> dict[str, argparse.Action]:
    """Variable name -> the option of ``fedclip run`` that it stands for."""
    return {
        PREFIX + flag.removeprefix("--").replace("-", "_").upper(): action
        for action in _parser()._actions
        for flag in action.option_strings[:1]
        if flag not in OWN_RUN
    }


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(add_help=False, allow_abbrev=False)
    options.add_run_options(parser)
    options.add_model_options(parser)
    options.add_data_options(parser)
    return parser


def load_settings(
    host: Mapping[str, Any] | None = None,
    path: str | Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> tuple[RunConfig, Output]:
    """The configuration of a run in a host, and where its results go.

    ``host`` holds what the host itself decides, as ``{"train.rounds": 3}``; variables
    come next, then the file (``path``, or ``fedclip.toml`` in the working directory).
    Raises ConfigError naming the variable, key or file that is wrong.
    """
    if path is not None and not Path(path).is_file():
        raise ConfigError(f"{path}: no such file; it would hold fedclip's options")
    known = variables()
    _refuse_misspelt(environ, known)
    words = []
    for name, action in known.items():
        if name not in environ or action.nargs == 0:
            continue
        several = action.nargs == "+" or isinstance(action, argparse._AppendAction)
        values = shlex.split(environ[name]) if several else [environ[name]]
        for value in values:
            words += [action.option_strings[0], value]
    args = _parser().parse_args(words)
    args.resume = environ.get(f"{PREFIX}RESUME", "")
    file = Path(path or FILE)
    args.config = file if file.is_file() else None
    for key, value in (host or {}).items():
        if value is not None:
            setattr(args, key, value)
    return options.read_config(args), Output(args.out, _switch(args.resume))


def _switch(value: Any) -> bool:
    word = str(value).strip().lower()
    if word not in (*_ON, *_OFF):
        raise ConfigError(f"resume: expected true or false, got {value!r}")
    return word in _ON


def _refuse_misspelt(environ: Mapping[str, str], known: Mapping[str, object]) -> None:
    for name in environ:
        if name.startswith(PREFIX) and name not in known and name not in OF_THE_PACKAGE:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            if near:
                raise ConfigError(
                    f"variable {name} is unknown: did you mean {near[0]}?"
                )
