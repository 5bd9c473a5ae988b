"""Where a configuration comes from: flags, variables, TOML, the keys of a host.

A source is option name -> value, with the option as its user wrote it for messages.
Sources are merged once, and checked once, by the table of options.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..clip.prompts import prompt_templates
from ..config.fields import Option, options_of, parse
from ..config.paths import as_path
from ..config.schema import SECTIONS, RunConfig
from ..config.toml import load_toml
from ..errors import ConfigError, did_you_mean
from .effects import without_effect
from .options import FILES, PREFIX, Files, Table

if TYPE_CHECKING:
    from ..algorithms import Algorithm

FILE = "fedclip.toml"
CONFIG = f"{PREFIX}CONFIG"
_FILES = ("out", "resume")
BEST_OF_ALL = {"best": "gda"}
"""Preset -> the algorithm that it stands for, where the user names none and says
nothing about how it is trained, averaged, sent or hidden."""
OF_THE_PACKAGE = {
    f"{PREFIX}{name}"
    for name in (
        *("CACHE", "CONFIG", "CUDA", "CUDA_GROUP", "CXX_FLAGS", "DEBUG", "ISA"),
        "PURE_PYTHON",
    )
}


class Given(NamedTuple):
    """A value, and the option with it as the user wrote it."""

    value: Any
    written: str


Source = Mapping[str, Given]


class Output(NamedTuple):
    """Where a run's files go, None: nowhere; whether the run that is there goes on.

    ``log`` are the trackers that follow it.
    """

    directory: Path | None = None
    resume: bool = False
    log: tuple[str, ...] = ()


def read_config(args: argparse.Namespace, base: Path | None = None) -> RunConfig:
    """The RunConfig of flags over variables over ``--config``, over the file ``base``.

    For commands that begin no run.  ``base`` is the ``config.toml`` of an earlier run,
    if there is one.  Raises ConfigError naming the option or the file.
    """
    table = Table()
    source = {**of_file(base, table), **_of_command(args, table)}
    return build(source, table, trains=False)[0]


def read_run(args: argparse.Namespace) -> tuple[RunConfig, Output]:
    """The same, and where the results go; a run that goes on has its own as ``base``.

    Raises ConfigError.
    """
    table = Table()
    source = _of_command(args, table)
    files = {n: parse(table.options[n], *source[n]) for n in _FILES if n in source}
    resumes = files.get("resume") and files.get("out")
    base = Path(files["out"]) / "config.toml" if resumes else None
    return build({**of_file(base, table), **source}, table)


def _of_command(args: argparse.Namespace, table: Table) -> dict[str, Given]:
    environ = os.environ
    path = getattr(args, "config", None) or environ.get(CONFIG)
    file = of_file(as_path(path), table, True) if path else {}
    return {**file, **of_variables(environ, table), **of_flags(args, table)}


def command_options(args: argparse.Namespace) -> dict[str, Any]:
    """The values of flags over those of ``--config``, by the options' names.

    For a host that runs elsewhere: variables of this process are not among them.
    """
    table = Table()
    path = getattr(args, "config", None)
    file = of_file(as_path(path), table, True) if path else {}
    return {n: given.value for n, given in {**file, **of_flags(args, table)}.items()}


def configure(options: Mapping[str, Any], base: Path | None = None) -> RunConfig:
    """The RunConfig of options in Python, as flags with ``_`` for ``-``; over ``base``.

    None stands for an option that is not given.  Raises ConfigError naming the option.
    """
    table = Table()
    named = {name.replace("-", "_"): name for name in table.options}
    named |= {o.field: o.name for o in table.groups[""]}
    source = {}
    for key, value in options.items():
        if key not in named:
            raise ConfigError(f"unknown option {key}{did_you_mean(key, named)}")
        if value is not None:
            source[named[key]] = Given(value, f"{key}={value!r}")
    return build({**of_file(base, table), **source}, table)[0]


def of_file(path: Path | None, table: Table, must: bool = False) -> dict[str, Given]:
    """What a TOML file says; one that is not there says nothing, unless it ``must``."""
    if path is None or not (must or path.is_file()):
        return {}
    return of_toml(load_toml(path), str(path), table)


def load_config(path: str | Path) -> RunConfig:
    """The RunConfig of a TOML file; the inverse of ``config.toml.to_toml``."""
    return config_of(load_toml(path), str(path))


def config_of(values: Mapping[str, Any], where: str) -> RunConfig:
    """The RunConfig of nested values, as ``config.toml.to_dict`` gives them."""
    table = Table()
    return build(of_toml(values, where, table), table)[0]


def load_settings(
    host: Mapping[str, Given] | None = None,
    path: str | Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> tuple[RunConfig, Output]:
    """The configuration of a run in a host, and where its results go.

    ``host`` holds what the host itself decides, by the options' names; variables come
    next, then the file (``path``, or ``fedclip.toml`` in the working directory).
    Raises ConfigError naming the variable, key or file that is wrong.
    """
    table, ours = Table(), outside(path, environ)
    config, out = build({**ours, **(host or {})}, table, RunConfig.algorithm)
    notes = list(_overruled(ours, host or {}, table))
    if config.train.patience is not None:
        notes.append(f"patience {config.train.patience} has no effect in a host")
    return add_notes(config, notes), out


def outside(
    path: str | Path | None = None, environ: Mapping[str, str] = os.environ
) -> dict[str, Given]:
    """What variables and the file say, which a host's own keys win over."""
    table, path = Table(), path or environ.get(CONFIG)
    file = as_path(path or FILE)
    if path and not file.is_file():
        raise ConfigError(f"{file}: no such file; it would hold fedclip's options")
    return {**of_file(file, table), **of_variables(environ, table)}


def _overruled(ours: Source, host: Source, table: Table) -> Iterator[str]:
    """A line for each value of variables or file that the host overrides."""
    for name in host.keys() & ours.keys():
        own, decides = ours[name], host[name]
        first, second = (parse(table.options[name], *g) for g in (own, decides))
        if first != second:
            yield f"{own.written} has no effect here: {decides.written} decides"


def add_notes(config: RunConfig, notes: Iterable[str]) -> RunConfig:
    """``config`` with further lines on what was passed over."""
    return replace(config, notes=(*config.notes, *notes))


def of_flags(args: argparse.Namespace, table: Table) -> dict[str, Given]:
    """What flags say."""
    source = {}
    for name, value in vars(args).items():
        if name in table.options and value is not None:
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            source[name] = Given(value, f"--{name} {shown}")
    return source


def of_variables(environ: Mapping[str, str], table: Table) -> dict[str, Given]:
    """What ``FEDCLIP_*`` variables say; an empty one says nothing."""
    options, source = table.variables(), {}
    for name, value in environ.items():
        if not name.startswith(PREFIX) or name in OF_THE_PACKAGE:
            continue
        if name in options:
            written = f"{name}={value}"
            if value:
                source[options[name].name] = Given(value, written)
        elif near := did_you_mean(name, options, cutoff=0.85):
            raise ConfigError(f"variable {name} is unknown{near}")
    return source


def of_toml(values: Mapping[str, Any], where: str, table: Table) -> dict[str, Given]:
    """A source of nested values; ``where`` is their file, for messages."""
    source = {}
    for section, group in values.items():
        if section in table.broken:
            raise ConfigError(f"{where}: [{section}]: {table.broken[section]}")
        if not isinstance(group, Mapping):
            if section in table.groups:
                raise ConfigError(f"{where}: {section}: expected a table")
            option = table.place("", section, where)
            source[option.name] = Given(group, f"{where}: {section} = {group!r}")
            continue
        if section not in table.groups:
            near = did_you_mean(section, table.groups)
            raise ConfigError(
                f"{where}: unknown key {section!r}{near} "
                f"(sections: {', '.join(filter(None, table.groups))})"
            )
        for key, value in group.items():
            option = table.place(section, key, where)
            written = f"{where}: {section}.{key} = {value!r}"
            source[option.name] = Given(value, written)
    return source


def build(
    source: Source,
    table: Table,
    usual_algorithm: str | None = None,
    trains: bool = True,
) -> tuple[RunConfig, Output]:
    """The configuration of merged sources, over what the algorithm wants.

    ``usual_algorithm`` is a host's, where no source names one; ``trains`` is False for
    a command that begins no run.
    """
    from ..algorithms import get_algorithm  # needs torch

    said = {n: parse(table.options[n], *value) for n, value in source.items()}
    implied = usual_algorithm or _implied(said, table)
    name = said.get("alg", implied or RunConfig.algorithm)
    algorithm, section = get_algorithm(name), name.lower()
    if section in table.broken:
        raise ConfigError(table.broken[section])
    usual = _usual(algorithm, section, said.get("preset"), table)
    values = {n: parse(table.options[n], *value) for n, value in usual.items()} | said
    if said.get("evaluate"):
        values["rounds"] = said.get("rounds", 1)
    values["alg"] = name
    _settle(values)

    def part(cls: type, options: tuple[Option, ...]) -> Any:
        return cls(**{o.field: values[o.name] for o in options if o.name in values})

    config = RunConfig(
        **{n: part(cls, options_of(cls)) for n, cls in SECTIONS.items()},
        params=_params(algorithm, section, part, table),
    )
    top = {o.field: values[o.name] for o in table.groups[""] if o.name in values}
    files = part(Files, options_of(Files))
    out = Output(Path(files.out) if files.out else None, files.resume, files.log)
    config = replace(config, **top)
    changed = (n for n in said if said[n] != table.options[n].default)
    groups = ("", FILES, *SECTIONS, section)
    available = {o.name for group in groups for o in table.groups[group]}
    written = {n: source[n].written for n in changed}
    notes = list(without_effect(written, available, config, trains))
    if "alg" not in said and not usual_algorithm and implied:
        notes.append(
            f"--preset {said['preset']} is --alg {name}, the best of all by validation "
            "(docs/methods.md); FedCLIP's own is --alg fedclip --preset best"
        )
    return add_notes(config, notes), out


def _implied(said: Mapping[str, Any], table: Table) -> str | None:
    """The algorithm that a preset stands for, where nothing but data is said beside."""
    groups = ("train", "server", "wire", "privacy", RunConfig.algorithm)
    method = {option.name for group in groups for option in table.groups[group]}
    return None if method & said.keys() else BEST_OF_ALL.get(said.get("preset", ""))


def _params(algorithm: Algorithm, section: str, part: Any, table: Table) -> Any:
    try:
        return part(algorithm.Params, table.groups[section])
    except ValueError as error:  # of others
        raise ConfigError(f"--alg {section}: {error}") from error


def _usual(
    algorithm: Algorithm, section: str, preset: str | None, table: Table
) -> dict[str, Given]:
    """What the algorithm, or a preset of it, wants where nothing else is said."""
    wanted = dict(algorithm.defaults)
    if preset is not None:
        presets = algorithm.presets
        if preset not in presets:
            some = f"one of {', '.join(presets)}" if presets else "none"
            raise ConfigError(f"--preset {preset}: expected {some} for --alg {section}")
        wanted |= presets[preset]
    where, own = f"defaults of --alg {section}", {}
    for field, value in wanted.items():
        mine = any(o.field == field for o in table.groups[section])
        option = table.place(section if mine else "train", field, where)
        own[option.name] = Given(value, f"{where}: {field} = {value!r}")
    return own


def _settle(values: dict[str, Any]) -> None:
    """Names filled in."""
    if values.get("features"):
        name = os.path.basename(os.path.realpath(values["features"]))
        values.setdefault("dataset", name)
    if "prompt" in values:
        values["prompt"] = prompt_templates(values["prompt"])
