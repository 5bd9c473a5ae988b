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

from ..clip.prompts import prompt_templates
from ..config.schema import PRESETS, RunConfig
from ..config.toml import from_dict, load_toml
from ..errors import ConfigError
from . import options


def read_config(args: argparse.Namespace, base: Path | None = None) -> RunConfig:
    """The RunConfig of parsed options over ``--config``, over the file ``base``.

    ``base`` is the ``config.toml`` of an earlier run, if there is one.  Raises
    ConfigError naming the option or the file.
    """
    values = load_toml(base) if base and base.is_file() else {}
    config = getattr(args, "config", None)
    if config is not None:
        values = _merge(values, load_toml(config))
    given = {k: v for k, v in vars(args).items() if v is not None}
    for key, value in given.items():
        section, _, name = key.rpartition(".")
        if section:
            values.setdefault(section, {})[name] = value
        elif name in ("algorithm", "seeds"):
            values[name] = value
    where = str(config) if config else "options"
    values = _with_defaults(values, getattr(args, "preset", None))
    return from_dict(RunConfig, _settle(values), where)


def _with_defaults(values: dict[str, Any], preset: str | None) -> dict[str, Any]:
    """What the algorithm, or a preset of it, wants where nothing else is said."""
    from ..algorithms import get_algorithm

    algorithm = get_algorithm(str(values.get("algorithm", RunConfig.algorithm)))
    usual = dict(algorithm.defaults)
    if preset is not None:
        if preset not in PRESETS or algorithm.name != RunConfig.algorithm:
            raise ConfigError(
                f"--preset {preset}: expected {' or '.join(PRESETS)}, for --alg fedclip"
            )
        usual |= PRESETS[preset]
    return _merge({"train": usual}, values)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _settle(values: dict[str, Any]) -> dict[str, Any]:
    """Paths made absolute, so that a run resumes from anywhere; names filled in."""
    data, model = values.get("data", {}), values.get("model", {})
    if not isinstance(data, dict) or not isinstance(model, dict):
        return values  # from_dict says what is wrong
    if data.get("features") and "dataset" not in data:
        data["dataset"] = Path(str(data["features"])).resolve().name
    for section, name in ((data, "root"), (data, "features"), (model, "config_dir")):
        if isinstance(section.get(name), str):
            section[name] = str(Path(section[name]).expanduser().resolve())
    if "prompts" in data:
        data["prompts"] = prompt_templates(data["prompts"])
    tag = model.get("pretrained")
    if isinstance(tag, str) and Path(tag).expanduser().is_file():
        model["pretrained"] = str(Path(tag).expanduser().resolve())
    return values


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
    return read_config(args), Output(args.out, _switch(args.resume))


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
