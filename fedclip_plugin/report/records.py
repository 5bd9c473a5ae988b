"""Finished run directories, read back.

The layout of a run directory is that of ``docs/report.md``.  A *leaf* is one target
and one seed; a *tree* holds leaves as ``<target>/seed-<n>``.  Accuracies are fractions
in 0..1, ``None`` where nothing could be measured (an empty test split, no target).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.partition import NO_TARGET
from ..errors import RunError
from ..storage import shapes
from ..storage.shapes import (
    cleaned,
    count,
    each,
    fields,
    flag,
    fraction,
    maybe,
    number,
    several,
    text,
)

Summary = Mapping[str, Any]

PICTURES = "pictures.json"  # of test images, where the images were at hand
MAX_CLIENTS = 1000  # of a round that are kept in memory, for every round


@dataclass(frozen=True)
class RunRecord:
    """One finished leaf run as it lies on disk.

    ``metrics`` holds a dict a round, ``evaluation`` the confusion matrices and client
    sizes; both are empty where the writer left none.  ``config`` is the TOML text.
    """

    path: Path
    summary: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]
    evaluation: dict[str, Any]
    config: str
    pictures: dict[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """Name of the held-out domain, or ``none``."""
        return target_name(self.summary)


def target_name(summary: Summary) -> str:
    """Name of the held-out domain of a leaf summary, or ``none``."""
    target = summary.get("target")
    return NO_TARGET if target is None else str(target)


def load_run(directory: str | Path) -> RunRecord:
    """Read one leaf; raises RunError when it is missing, unfinished or damaged."""
    path = Path(directory)
    if not (path / "summary.json").is_file():
        raise RunError(_why_no_summary(path))
    summary = _read_json(path / "summary.json")
    if "runs" in summary:
        raise RunError(_name_one(path, _runs_in(path)))
    _check(str(path / "summary.json"), summary, SUMMARY)
    config = path / "config.toml"
    judged = path / "evaluation.json"
    evaluation = _read_json(judged) if judged.is_file() else {}
    confusion = evaluation.get("confusion")
    if isinstance(confusion, dict) and any(map(too_large, confusion.values())):
        del evaluation["confusion"]
    _check(str(judged), evaluation, EVALUATION)
    if evaluation.get("metrics"):  # a host's summary leaves them to that file
        summary.setdefault("metrics", evaluation["metrics"])
    shown = path / PICTURES
    pictures = _read_json(shown) if shown.is_file() else {}
    _check(str(shown), pictures, PICTURED)
    return RunRecord(
        path=path,
        summary=summary,
        metrics=_read_metrics(path / "metrics.jsonl"),
        evaluation=evaluation,
        config=_read_text(config) if config.is_file() else "",
        pictures=pictures,
    )


def load_runs(*directories: str | Path) -> list[RunRecord]:
    """Read every leaf at or below the directories, targets in the order of the run.

    A tree with a summary above its leaves tells which of them belong to it; others are
    left from an earlier run and are passed over.  Raises RunError when a directory
    holds none, or when a leaf is unfinished.
    """
    records: list[RunRecord] = []
    for directory in directories:
        path = Path(directory)
        leaves = _leaves(path)
        if not leaves:
            raise RunError(_why_no_summary(path))
        runs = [(_identity(run.summary), run) for run in map(load_run, leaves)]
        if order := _order(path):
            runs = [(key, run) for key, run in runs if key in order]
            runs.sort(key=lambda pair: order.index(pair[0]))
        records += [run for _, run in runs]
    return records


def _leaves(path: Path) -> list[Path]:
    """Directories at or below ``path`` that hold a leaf, finished or not."""
    leaves = []
    for folder, below, files in os.walk(path):
        here = Path(folder)
        if "summary.json" in files:
            leaf = "runs" not in _read_json(here / "summary.json")
        else:
            leaf = "metrics.jsonl" in files
        if leaf:
            leaves.append(here)
            below.clear()
        below[:] = sorted((d for d in below if not d.startswith(".")), key=_natural)
    return leaves


def _natural(name: str) -> str:
    """Sort key that puts ``seed-2`` before ``seed-10``."""
    return re.sub(r"[0-9]+", lambda digits: digits[0].zfill(20), name)


def _identity(summary: Summary) -> tuple[str, str]:
    return target_name(summary), str(summary.get("seed"))


def _order(path: Path) -> list[tuple[str, str]]:
    """The leaves in the tree's own order; empty where nothing tells it."""
    top = path / "summary.json"
    runs = _read_json(top).get("runs") if top.is_file() else None
    runs = runs if isinstance(runs, list) else []
    return [_identity(summary) for summary in runs if isinstance(summary, dict)]


def _runs_in(path: Path) -> list[Path]:
    """The runs in a folder of seeds, in a tree, and in a folder of either."""
    below = ("*", "*/seed-*", "*/*/seed-*")
    found = {f.parent for each in below for f in path.glob(f"{each}/summary.json")}
    trees = {run.parent.parent for run in found if run.name.startswith("seed-")}
    return sorted(found - trees)


def _name_one(path: Path, runs: Sequence[Path]) -> str:
    one = runs[0] if runs else path / "<target>" / "seed-<n>"
    return f"{path} holds runs: name one of them, such as {one}"


def _why_no_summary(path: Path) -> str:
    if not path.is_dir():
        return f"{path} is not a directory: name the --out of a finished `fedclip run`"
    out = path.parent.parent if path.name.startswith("seed-") else path
    if (path / "metrics.jsonl").is_file() or (path / "checkpoint").is_dir():
        return (
            f"{path} is unfinished (no summary.json): "
            f"finish it with `fedclip run --resume --out {out}`"
        )
    if runs := _runs_in(path):
        return _name_one(path, runs)
    return (
        f"{path} holds no summary.json: name the --out of a finished `fedclip run`, "
        f"or make one with `fedclip run --out {out}`"
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot read {path} ({error}): run again into a new --out"
        raise RunError(message) from error


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        value = cleaned(json.loads(text))  # as an earlier version did not write it
    except (ValueError, RecursionError) as error:
        raise RunError(
            f"{where} is not valid JSON ({error}): "
            "restore it, or run again into a new --out"
        ) from error
    if not isinstance(value, dict):
        raise RunError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    return _parse(_read_text(path), str(path))


def _read_metrics(path: Path) -> tuple[dict[str, Any], ...]:
    """Rounds in order; a round that was written twice (a resume) counts once."""
    if not path.is_file():
        return ()
    rounds: dict[int, dict[str, Any]] = {}
    for place, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        entry = _parse(line, f"{path} line {place}")
        _check(f"{path} line {place}", entry, ROUND)
        rounds[entry["round"]] = _thinned(entry)
    return tuple(rounds[key] for key in sorted(rounds))


def _thinned(entry: dict[str, Any]) -> dict[str, Any]:
    """Of thousands of clients the lowest and the highest: what the charts draw."""
    clients = entry.get("clients") or {}
    if len(clients) <= MAX_CLIENTS:
        return entry
    tests = {n: c["test"] for n, c in clients.items() if c.get("test") is not None}
    ends = [pick(tests, key=lambda n: tests[n]) for pick in (min, max) if tests]
    return {**entry, "clients": {name: clients[name] for name in ends}}


def _check(where: str, value: Any, shape: shapes.Check) -> None:
    """Raise RunError for JSON that the report could not show, or should not."""
    if wrong := shape(value):
        raise RunError(f"{where}: {wrong}: restore it, or run again into a new --out")


MAX_CLASSES = 2000  # of a confusion matrix that is drawn


def too_large(matrix: Any) -> bool:
    """Whether a confusion matrix has more classes than a report shows."""
    return isinstance(matrix, list) and len(matrix) > MAX_CLASSES


_SCORES = fields(
    {"clients": each(maybe(fraction))},
    {"target": maybe(fraction), "mean": maybe(fraction)},
)

_TESTS = dict.fromkeys(("zero_shot", "shared", "personal"), maybe(fraction))
_GAIN = fields(dict.fromkeys(("mean", "ci95"), maybe(number)))
_PERSONALIZATION = fields(
    {
        "method": text,
        **dict.fromkeys(("clients", "new_clients"), each(fields(_TESTS))),
        **dict.fromkeys(("gain_over_shared", "gain_over_zero_shot"), _GAIN),
    }
)

_NOVEL = fields(dict.fromkeys(("zero_shot", "result"), each(maybe(fraction))))

_BYTES = dict.fromkeys(("bytes_up", "bytes_down", "params"), maybe(count))
_SECONDS = dict.fromkeys(("features", "train", "evaluate"), maybe(number))

SUMMARY = fields(
    {
        **dict.fromkeys(("algorithm", "dataset", "model"), text),
        "rounds": count,
        **dict.fromkeys(("zero_shot", "result"), _SCORES),
        "communication": fields({}, _BYTES),
        "seconds": fields({}, _SECONDS),
    },
    {
        **dict.fromkeys(("variant", "pretrained", "target"), maybe(text)),
        **dict.fromkeys(("best_round", "quarantined"), maybe(count)),
        "validation": maybe(fraction),
        "final": maybe(_SCORES),
        "seed": maybe(number),
        "transductive": maybe(flag),
        **dict.fromkeys(("skipped_images", "notes"), maybe(several(text))),
        **dict.fromkeys(("settings", "sources", "encoder"), maybe(each(text))),
        "metrics": maybe(each(maybe(each(maybe(number))))),
        "privacy": maybe(fields({"epsilon": number, "promise": text})),
        "personalization": maybe(_PERSONALIZATION),
        "base_to_novel": maybe(_NOVEL),
    },
)
"""A leaf's ``summary.json``."""

_CLIENT = fields(
    {},
    {
        **dict.fromkeys(
            ("val", "test", "selection", "local", "novel"), maybe(fraction)
        ),
        **dict.fromkeys(("zero_local", "zero_novel"), maybe(fraction)),
        "novel_rows": maybe(number),
    },
)

ROUND = fields(
    {"round": count},
    {
        **dict.fromkeys(("loss", "epsilon"), maybe(number)),
        **dict.fromkeys(("target", "mean_val", "mean_test"), maybe(fraction)),
        "clients": maybe(each(maybe(_CLIENT))),
        "selection": maybe(each(maybe(fraction))),
        **dict.fromkeys(("bytes_up", "bytes_down", "quarantined"), maybe(count)),
    },
)
"""A line of ``metrics.jsonl``."""

_MATRIX = several(several(count, MAX_CLASSES), MAX_CLASSES)

_SPLITS = dict.fromkeys(("train", "val", "test"), maybe(count))


def _matrix(value: Any) -> str | None:
    uneven = _MATRIX(value) is None and len({len(row) for row in value}) > 1
    return "rows of different lengths" if uneven else _MATRIX(value)


def _base64(value: Any) -> str | None:
    fine = isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9+/=]{1,40000}", value)
    return None if fine else "expected a small JPEG in base64"


_SAID = fields({"label": text, "probability": fraction})
_SHOWN = {"image": text, "true": text, "zero_shot": _SAID, "result": _SAID}
_KIND = fields(
    {"count": count, "shown": several(fields({**_SHOWN, "thumbnail": _base64}), 100)}
)
PICTURED = fields({}, {"test": count, "corrected": _KIND, "broken": _KIND})
"""``pictures.json``."""

EVALUATION = fields(
    {},
    {
        "classes": maybe(several(text)),
        "confusion": maybe(each(maybe(_matrix))),
        "metrics": maybe(each(maybe(each(maybe(number))))),
        "clients": maybe(
            each(fields({}, {**_SPLITS, "train_per_class": maybe(several(count))}))
        ),
    },
)
"""``evaluation.json``."""
