"""A run directory: whether its files can be read, and how far the run is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...export.trained import read_trained
from ...federation.checkpoint import saved_progress
from ...report.records import load_run
from ...runs.directory import hold
from ...settings.sources import load_config
from .check import Check, guarded
from .machine import check_disk

_ANEW = "restore it, or run again into a new --out"


def check_run(directory: Path) -> list[Check]:
    """Its disk, and every run in or below it; changes nothing."""
    if not (directory / "config.toml").is_file():
        remedy = "name a directory that `fedclip run` has made"
        return [Check("run", "fail", f"{directory} has no config.toml", remedy)]
    checks = [*guarded("run disk", lambda: [_disk(directory)])]
    leaves = sorted(p.parent for p in directory.glob("*/seed-*/config.toml"))
    for leaf in leaves or [directory]:
        inside = leaf.relative_to(directory)
        checks += _check_leaf(f"run {inside}".removesuffix(" ."), leaf, directory)
    return checks


def _disk(directory: Path) -> Check:
    if (directory / ".lock").is_file():
        hold(directory).release()  # raises where another run has it
    return check_disk("run disk", directory, "copy the run to a directory of yours")


def _check_leaf(name: str, leaf: Path, top: Path) -> list[Check]:
    """How far one run is, after a line for each of its files that is damaged."""
    resume = f"`fedclip run --resume --out {top}`"
    done = (leaf / "summary.json").is_file()
    again = f"delete it and summary.json beside it, then {resume} writes both"
    readers: dict[str, tuple[Callable[[Path], Any], str]] = {
        "config": (lambda path: load_config(path / "config.toml"), _ANEW),
        "checkpoint": (saved_progress, _ANEW),
    }
    if done:
        readers |= {"results": (load_run, ""), "adapter": (read_trained, again)}
    checks: list[Check] = []
    contents: dict[str, Any] = {}

    def read(part: str) -> list[Check]:
        contents[part] = readers[part][0](leaf)
        return []

    for part, (_, remedy) in readers.items():
        checks += guarded(f"{name} {part}", functools.partial(read, part), remedy)
    if checks:
        return checks
    progress, rounds = contents["checkpoint"], contents["config"].train.rounds
    if done:
        last, best = (contents["results"].summary[k] for k in ("rounds", "best_round"))
        detail = f"finished after round {last} of {rounds}, the best is {best}"
        detail += "; with a checkpoint" if progress else "; without a checkpoint"
        return [Check(name, "ok", detail)]
    detail = f"broken off after round {progress.round if progress else 0} of {rounds}"
    return [Check(name, "warn", detail, f"go on with {resume}")]
