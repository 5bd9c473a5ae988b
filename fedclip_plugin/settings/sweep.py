"""A sweep's TOML file: options for all, and those to search over.

Everything is an option of the one table, under its flag's name, with - or _::

    [options]                 # of every run; as on the command line
    features = "DIR"
    seed = [0, 1, 2]

    [grid]                    # every combination
    alg = ["fedclip", "fedavg"]
    lr = [1e-4, 1e-3]

    [random]                  # drawn for each of `runs` trials
    lr = { low = 1e-5, high = 1e-2, log = true }
    batch-size = [16, 32, 64]
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from ..config.fields import Option, parse
from ..config.paths import as_path
from ..config.toml import load_toml
from ..errors import ConfigError, did_you_mean
from ..runs.sweep import Sweep, Trial
from .options import Table
from .sources import Given, Output, build, of_file, of_flags, of_variables

TABLES = ("options", "grid", "random")
KEYS = ("config", "runs", "search-seed", "jobs")
_AVERAGED = {
    "seed": "results are averaged over seeds",
    "target": "every held-out domain gets its own choice",
    **dict.fromkeys(("out", "resume", "log"), "it is of the whole sweep"),
}
MOST = 10_000
_Source = dict[str, Given]


def read_sweep(
    file: Path | Mapping[str, Any], args: argparse.Namespace | None = None
) -> tuple[Sweep, Output, int | None]:
    """The sweep, where it goes, and its number of processes if the file says one.

    ``args`` hold flags, which win over the file's ``[options]``.  Raises ConfigError
    naming the file and the key.
    """
    where = "the sweep" if isinstance(file, Mapping) else str(file)
    values = file if isinstance(file, Mapping) else load_toml(file, "sweep")
    table = Table()
    values = _known(values, (*TABLES, *KEYS), where)
    for key, value in values.items():
        if (key in TABLES) != isinstance(value, Mapping):
            kind = "a table" if key in TABLES else "a value"
            raise ConfigError(f"{where}: {key}: expected {kind}, got {value!r}")
    flags = of_flags(args, table) if args is not None else {}
    fixed = _options(values.get("options", {}), f"{where}: [options]", table)
    grid = _searched(values.get("grid", {}), f"{where}: [grid]", table)
    drawn = _searched(values.get("random", {}), f"{where}: [random]", table)
    _once(where, {"[options]": fixed, "[grid]": grid, "[random]": drawn}, flags)
    if not grid and not drawn:
        raise ConfigError(
            f"{where}: nothing to search over: give [grid] an option with several "
            "values, as in lr = [1e-4, 1e-3], or [random] one with a range"
        )
    for key in ("runs", "search-seed"):
        if key in values and not drawn:
            raise ConfigError(f"{where}: {key} is for [random], which is not there")
    base = values.get("config")
    source = {
        **(of_file(as_path(base), table, True) if base else {}),
        **of_variables(os.environ, table),
        **fixed,
        **flags,
    }
    draws = _draws(drawn, values, where)
    count = math.prod(len(each) for each in grid.values()) * len(draws)
    if count > MOST:
        raise ConfigError(f"{where}: {count:,} trials; at most {MOST:,} make sense")
    trials, notes = _trials(source, grid, draws, table)
    _, output = build(source, table)
    jobs = values.get("jobs")
    if jobs is not None:
        jobs = _whole(jobs, f"{where}: jobs", 1)
    search = " of ".join(
        filter(None, ["random" if drawn else "", "grid" if grid else ""])
    )
    text = _text(file)
    return Sweep(trials, search, text, notes), output, jobs


def _known(
    values: Mapping[str, Any], names: tuple[str, ...], where: str
) -> dict[str, Any]:
    """``values`` by name with ``-`` for ``_``; each once, and none that is unknown."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("_", "-")
        if name not in names:
            raise ConfigError(
                f"{where}: unknown key {key!r}{did_you_mean(key, names)} "
                f"(known: {', '.join(names)}; options of runs go into [options])"
            )
        if name in found:
            raise ConfigError(f"{where}: {name} is there twice; leave one out")
        found[name] = value
    return found


def _named(values: Mapping[str, Any], where: str, table: Table) -> dict[str, Any]:
    """``values`` by the options' names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("_", "-").removeprefix("--")
        if name not in table.options:
            near = did_you_mean(name, table.options)
            raise ConfigError(
                f"{where}: unknown option {key!r}{near} (docs/options.md lists them)"
            )
        if name in found:
            raise ConfigError(f"{where}: {name} is there twice; leave one out")
        found[name] = value
    return found


def _options(values: Mapping[str, Any], where: str, table: Table) -> _Source:
    named = _named(values, where, table)
    return {n: Given(v, f"{where} {n} = {v!r}") for n, v in named.items()}


_Choices = dict[str, list[Given]]


class _Range(list[Given]):
    """Values between two bounds, drawn evenly, or evenly in their logarithm."""

    def __init__(self, option: Option, low: float, high: float, log: bool) -> None:
        super().__init__()
        self.option, self.low, self.high, self.log = option, low, high, log

    def draw(self, dice: random.Random) -> Any:
        """One of them, to six digits: what is written is what is run."""
        low, high = self.low, self.high
        if self.log:
            value = math.exp(dice.uniform(math.log(low), math.log(high)))
        else:
            value = dice.uniform(low, high)
        return round(value) if self.option.kind is int else float(f"{value:.6g}")


def _searched(values: Mapping[str, Any], where: str, table: Table) -> _Choices:
    found: _Choices = {}
    for name, given in _named(values, where, table).items():
        written = f"{where} {name} = {given!r}"
        if name in _AVERAGED:
            raise ConfigError(f"{written}: {_AVERAGED[name]}; put it into [options]")
        option = table.options[name]
        if isinstance(given, Mapping) and where.endswith("[random]"):
            found[name] = _range(option, given, written)
            continue
        if not isinstance(given, list) or not given:
            raise ConfigError(
                f"{written}: expected a list of values to try, and at least one"
            )
        found[name] = [Given(v, f"{where} {name} = {v!r}") for v in given]
        for each in found[name]:
            parsed = parse(option, *each)
            if name == "alg":
                _check_algorithm(str(parsed))
    return found


def _check_algorithm(name: str) -> None:
    from ..algorithms import algorithm_class  # needs torch

    algorithm_class(name)


def _range(option: Option, given: Mapping[str, Any], written: str) -> _Range:
    ends = {"low", "high"}
    extra = sorted(given.keys() - ends - {"log"})
    if option.kind not in (int, float) or option.several:
        raise ConfigError(f"{written}: not a number; give a list of values to try")
    if extra or not ends <= given.keys():
        raise ConfigError(
            f"{written}: expected {{ low = , high = , log = true or false }}"
        )
    low, high = (parse(option, given[key], written) for key in ("low", "high"))
    log = given.get("log", False)
    if not isinstance(log, bool) or low >= high or (log and low <= 0):
        raise ConfigError(f"{written}: expected low < high, above 0 where log = true")
    return _Range(option, low, high, log)


def _once(where: str, tables: Mapping[str, Mapping[str, Any]], flags: _Source) -> None:
    """Refuse an option that two tables have, or a table and a flag."""
    for first, second in itertools.combinations(tables, 2):
        for name in tables[first].keys() & tables[second].keys():
            raise ConfigError(
                f"{where}: {name} is in {first} and in {second}; leave one out"
            )
    for kind in ("[grid]", "[random]"):
        for name in tables[kind].keys() & flags.keys():
            raise ConfigError(
                f"{flags[name].written}: {where} searches over it in {kind}; leave one "
                "out"
            )


def _draws(
    choices: _Choices, values: Mapping[str, Any], where: str
) -> list[dict[str, Given]]:
    """What each random trial has; one that is empty where nothing is drawn."""
    if not choices:
        return [{}]
    if "runs" not in values:
        raise ConfigError(f"{where}: [random] needs runs = N, how many to draw")
    runs = _whole(values["runs"], f"{where}: runs", 1)
    if runs > MOST:
        raise ConfigError(f"{where}: runs = {runs:,}; at most {MOST:,} make sense")
    seed = values.get("search-seed", 0)
    dice = random.Random(_whole(seed, f"{where}: search-seed", 0))
    draws = []
    for _ in range(runs):
        one = {}
        for name, each in choices.items():
            if isinstance(each, _Range):
                value = each.draw(dice)
                one[name] = Given(value, f"{where}: [random] {name} = {value!r}")
            else:
                one[name] = each[dice.randrange(len(each))]
        draws.append(one)
    return draws


def _whole(value: Any, written: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{written} = {value!r}: expected a whole number >= {least}")
    return value


def _trials(
    source: _Source, grid: _Choices, draws: list[dict[str, Given]], table: Table
) -> tuple[tuple[Trial, ...], tuple[str, ...]]:
    """All combinations; what comes to the same run as an earlier one is left out."""
    trials: dict[Any, Trial] = {}
    notes: dict[str, None] = {}
    same = 0
    for options in _combined(grid, draws):
        label = ",".join(f"{n}={_shown(g.value)}" for n, g in options.items())
        plain = {n: g.value for n, g in options.items()}
        try:
            config, _ = build({**source, **options}, table)
        except ConfigError as error:
            trials.setdefault(label, Trial(label, plain, None, str(error)))
            continue
        key = repr(replace(config, notes=()))
        same += key in trials
        trials.setdefault(key, Trial(label, plain, config))
        for note in config.notes:
            notes[note] = None
    if same:
        notes[f"{same} of the trials are the same as another one, and run once"] = None
    return tuple(trials.values()), tuple(notes)


def _combined(
    grid: _Choices, draws: list[dict[str, Given]]
) -> Iterator[dict[str, Given]]:
    for values in itertools.product(*grid.values()):
        for draw in draws:
            yield {**dict(zip(grid, values)), **draw}


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text(file: Path | Mapping[str, Any]) -> str:
    if isinstance(file, Mapping):
        return tomli_w.dumps(dict(file))
    return file.read_text(encoding="utf-8")
