"""A run directory of strangers: what resumes one, and what reports on one."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.faults.fuzz_files import folder, instead, put
from fedclip_plugin.config.schema import TrainConfig
from fedclip_plugin.report import records
from fedclip_plugin.report.console import print_table
from fedclip_plugin.runs.experiment import former_summary
from fedclip_plugin.runs.files import MetricsFile, RunPlan


def read_lines(data: bytes) -> None:
    """``metrics.jsonl`` and ``quarantined.jsonl`` of a run that is resumed."""
    path = put("resumed/metrics.jsonl", data)
    put("resumed/quarantined.jsonl", data)
    with MetricsFile(path) as metrics:
        best = metrics.cut(3, wanted=2)
    assert best is None or best["round"] == 2
    for line in path.read_bytes().splitlines():
        assert json.loads(line)["round"] <= 3


def read_finished(data: bytes) -> None:
    """``summary.json`` of a leaf that a resumed run may keep."""
    put("kept/summary.json", data)
    former_summary(RunPlan(folder() / "kept", None, 0, 2), TrainConfig(rounds=2))


def of_run(name: str) -> Callable[[bytes], None]:
    """``fedclip report`` of a run in which one file is not its own."""

    def read(data: bytes) -> None:
        with instead(_leaf() / name, data):
            show(_leaf())

    return read


def show(leaf: Path) -> str:
    """The tables of a run, as the console gets them."""
    out = StringIO()
    found = records.load_runs(leaf)
    print_table(Console(file=out, width=100), [run.summary for run in found])
    return out.getvalue()


_SCORES = {"target": 0.5, "clients": {"art": 0.5, "photo": None}, "mean": 0.5}
SUMMARY: dict[str, Any] = {
    **{"algorithm": "fedclip", "variant": "", "dataset": "toy", "model": "toy"},
    **{"pretrained": "none", "seed": 0, "target": "scan", "rounds": 2},
    **{"best_round": 1, "zero_shot": _SCORES, "result": _SCORES, "quarantined": 1},
    "communication": {"bytes_up": 10, "bytes_down": 20, "params": 5},
    "seconds": {"features": 0.1, "train": 0.2, "evaluate": 0.3},
    "skipped_images": ["a.png"],
}
ROUND: dict[str, Any] = {
    **{"round": 1, "loss": 0.1, "mean_val": 0.5, "mean_test": 0.5, "target": None},
    **{"bytes_up": 5, "bytes_down": 10, "quarantined": 0},
    "clients": {"art": {"val": 0.5, "test": 0.5}, "photo": {"val": None, "test": None}},
}
EVALUATION: dict[str, Any] = {
    "classes": ["a", "b"],
    "confusion": {"fedclip": [[1, 2], [3, 4]], "zero_shot": [[1, 2], [3, 4]]},
    "metrics": {"fedclip": {"macro_f1": 0.5}, "zero_shot": {}},
    "clients": {"art": {"train": 3, "val": 1, "test": 1, "train_per_class": [1, 2]}},
}
RUN = {
    "summary.json": json.dumps(SUMMARY),
    "metrics.jsonl": "".join(json.dumps({**ROUND, "round": i}) + "\n" for i in (1, 2)),
    "evaluation.json": json.dumps(EVALUATION),
}


@functools.cache
def _leaf() -> Path:
    for name, content in RUN.items():
        put(f"leaf/{name}", content.encode())
    return folder() / "leaf"
