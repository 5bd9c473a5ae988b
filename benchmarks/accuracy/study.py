"""Finished runs for the tables of this folder: run what is missing, keep the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fedclip_plugin.cli.console import Display
from fedclip_plugin.cli.parser import build_parser
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.config.toml import to_toml
from fedclip_plugin.features.obtain import obtain_features
from fedclip_plugin.report.records import RunRecord, load_runs
from fedclip_plugin.runs.experiment import run_experiment
from fedclip_plugin.settings.sources import read_config


def finish_runs(
    jobs: Mapping[str, Sequence[str]], folder: Path
) -> Iterator[tuple[str, list[RunRecord]]]:
    """Label and runs of every job, which is given as options of ``fedclip run``.

    A job lies in ``folder/<label>``: what is finished there is not run again, and a
    broken run goes on where it stopped.  Progress goes to stderr.
    """
    with Display() as display:
        for label, words in jobs.items():
            display.say(f"-- {label}: fedclip run {' '.join(words)}")
            config = read_config(build_parser().parse_args(["run", *words]))
            out = folder / label.replace(",", "").replace(" ", "-")
            if not _finished(config, out):
                out.mkdir(parents=True, exist_ok=True)
                features, stats = obtain_features(config, display.images)
                run_experiment(config, features, stats, out, True, display.round)
            yield label, load_runs(out)


def _finished(config: RunConfig, out: Path) -> bool:
    """Whether all runs of just this configuration lie in ``out``."""
    file, top = out / "config.toml", out / "summary.json"
    if not (file.is_file() and top.is_file()):
        return False
    summary = json.loads(top.read_text())
    rounds = {run["rounds"] for run in summary.get("runs", [summary])}
    return file.read_text() == to_toml(config) and rounds == {config.train.rounds}


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; all columns but the first are set to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]
