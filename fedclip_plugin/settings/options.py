"""The one table of options: the fields of the config classes and of every algorithm.

An option has one name, from which its flag, its variable and the keys of the hosts
follow; docs/options.md is made from the table too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..config.fields import Option, Section, option, options_of
from ..config.schema import FORMER, SECTIONS, RunConfig
from ..errors import ConfigError, did_you_mean, one_line

PREFIX = "FEDCLIP_"
FILES = "files"
TITLES = {
    "": "what to run",
    FILES: "where the results go",
    "model": "the frozen CLIP",
    "data": "data, and clients beyond domains",
    "train": "rounds and local training (defaults: the paper's)",
    "server": "the server's side of a round",
    "wire": "bytes on the wire",
    "privacy": "privacy of clients (docs/privacy.md)",
}


@dataclass(frozen=True)
class Files(Section):
    """Where a run leaves its files; of the run itself, not of its configuration."""

    out: str | None = option(
        None, "a former run there is moved aside", metavar="DIR", path=True,
        shown="runs/<alg>-<dataset>; in a host nowhere")  # fmt: skip
    resume: bool = option(
        False, "go on with the broken run in --out", shown="no")  # fmt: skip
    log: tuple[str, ...] = option(
        (), "what follows the run beside its files: tensorboard, mlflow or wandb, "
        "or what a package adds; offline unless told otherwise (docs/sweep.md)",
        metavar="NAME,NAME", shown="nothing")  # fmt: skip


class Table:
    """Every option there is: by its name, and by its place in a TOML file.

    An algorithm of others whose options cannot be had is left out; ``broken`` holds its
    name and one line that tells why.
    """

    def __init__(self) -> None:
        from ..algorithms import ALGORITHMS  # needs torch

        self.groups: dict[str, tuple[Option, ...]] = {}
        self.options: dict[str, Option] = {}
        self.broken: dict[str, str] = {}
        self._flags: set[str] = {
            *("--config", "--dry-run", "--jobs", "--tensorboard", "--quiet"),
        }
        self._add("", options_of(RunConfig))
        self._add(FILES, options_of(Files))
        for section, cls in SECTIONS.items():
            self._add(section, options_of(cls))
        for name in ALGORITHMS.names():
            try:
                self._add(name, algorithm_options(name))
            except Exception as error:  # code of others: anything may come
                self.broken[name] = f"algorithm {name!r}: {one_line(error)}"

    def _add(self, section: str, options: tuple[Option, ...]) -> None:
        if section in self.groups:
            raise ConfigError("its section is taken; rename it")
        new = [o for o in options if not self._inherited(o)]
        for o in new:
            for flag in (o.flag, *o.aliases):
                if flag in self._flags:
                    raise ConfigError(f"its option {flag} is taken; rename it")
        self.groups[section] = options
        self.options |= {o.name: o for o in new}
        self._flags |= {flag for o in new for flag in (o.flag, *o.aliases)}

    def _inherited(self, o: Option) -> bool:
        """Whether ``o`` is an option that is there, perhaps with another default."""
        there = self.options.get(o.name, o)
        same = replace(there, default=o.default, shown=o.shown, help=o.help) == o
        return o.name in self.options and same

    def place(self, section: str, field: str, where: str) -> Option:
        """The option at ``[section] field`` of a TOML file, or where it once was."""
        sections = [section, *FORMER.get(section, () if section else (FILES,))]
        for o in (o for s in sections for o in self.groups.get(s, ())):
            if o.field == field:
                return o
        fields = [o.field for o in self.groups.get(section, ())]
        raise ConfigError(
            f"{where}: unknown key {field!r}{f' in [{section}]' if section else ''}"
            f"{did_you_mean(field, fields)} (known: {', '.join(sorted(fields))})"
        )

    def variables(self) -> dict[str, Option]:
        """Variable name -> its option."""
        return {variable(name): option for name, option in self.options.items()}


def algorithm_options(name: str) -> tuple[Option, ...]:
    """The options that the algorithm called ``name`` has of its own.

    Raises ConfigError or TypeError where its ``Params`` are not as they should be.
    """
    from ..algorithms import algorithm_class

    params = algorithm_class(name).Params
    frozen = getattr(params, "__dataclass_params__", None)
    if frozen is None or not frozen.frozen:
        raise ConfigError("its Params is not a frozen dataclass")
    return options_of(params, f"{name}-")


def variable(name: str) -> str:
    """``gda-shrinkage`` -> ``FEDCLIP_GDA_SHRINKAGE``; FedML's key in lower case."""
    return PREFIX + name.replace("-", "_").upper()


def add_options(
    parser: argparse.ArgumentParser, title: str, options: Iterable[Option]
) -> None:
    """The flags of ``options``, as texts: they are checked where all sources meet."""
    group = parser.add_argument_group(title)
    for o in options:
        default = f" (default: {o.default_text})" if o.default_text else ""
        more: dict[str, Any] = {"help": f"{o.help}{default}".replace("%", "%%")}
        if o.kind is bool:
            more["action"] = "store_true"
        else:
            more["metavar"] = o.metavar or _metavar(o)
        if o.several:
            more |= {"action": "extend", "nargs": "+"}
        group.add_argument(o.flag, *o.aliases, dest=o.name, default=None, **more)


def _metavar(o: Option) -> str:
    if o.choices:
        return f"{{{','.join(o.choices)}}}"
    return "DIR" if o.path is True else {int: "N", float: "F"}.get(o.kind, "NAME")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Every option there is; a broken algorithm of another package is reported."""
    table, shown = Table(), set[str]()
    for section, options in table.groups.items():
        new = [o for o in options if o.name not in shown]
        shown |= {o.name for o in new}
        if new:
            title = TITLES.get(section, f"--alg {section} (docs/options.md)")
            add_options(parser, title, new)
    for line in table.broken.values():
        parser.epilog = f"{parser.epilog or ''}\nnot available: {line}\n"


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """``--model`` and its kin, as open_clip's users know them."""
    add_options(parser, TITLES["model"], options_of(SECTIONS["model"]))


def add_data_options(parser: argparse.ArgumentParser, *more: str) -> None:
    """Where the images are and what is said about them; and ``more`` by name."""
    about = ("dataset", "root", "prompt", "class-names", "on-bad-image", *more)
    options = [o for o in options_of(SECTIONS["data"]) if o.name in about]
    add_options(parser, "data", options)
