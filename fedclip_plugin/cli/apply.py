"""``fedclip predict`` and ``fedclip evaluate``: what a run has learned, applied."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.inputs import EMBEDDED_DATASET
from ..config.paths import as_path
from ..data.classes import read_names
from ..data.listing import is_image_name, printable
from ..errors import ConfigError, DataError
from ..settings.sources import read_config
from .console import Display, print_error

if TYPE_CHECKING:
    from torch import Tensor

    from ..config.schema import RunConfig

STDIN = "-"


def predict(args: argparse.Namespace, display: Display) -> int:
    """``fedclip predict``; exit code 2 where an image could not be read."""
    from ..export.predict import Classifier
    from ..features.missing import CPU_BATCH
    from ..report.records import load_run

    load_run(args.run_directory)  # a run, and a finished one
    images = list(_images(args.images))
    if not images:
        raise DataError(
            f"no image in {', '.join(args.images)}; name image files, or a folder with "
            "some"
        )
    config = read_config(args, args.run_directory / "config.toml")
    classifier = Classifier.load(
        args.run_directory,
        config,
        args.client,
        classes=_classes(args.classes),
        precision=config.model.precision,
        state=args.state,
        scores=args.scores,
    )
    rows: list[dict[str, Any]] = []
    bad = done = 0
    for batch in classifier.batches(images, CPU_BATCH):
        for problem in batch.bad.values():
            print_error(problem.partition("; ")[0])  # the advice is of a run
        bad += len(batch.bad)
        done += len(batch.bad) + len(batch.sound)
        pairs = zip(batch.sound, batch.probabilities, batch.zero_shot)
        for place, own, base in pairs:
            found = _judgement(classifier.classes, own)
            zero_shot = _judgement(classifier.classes, base)
            rows.append({"image": images[place], **found, "zero_shot": zero_shot})
        display.images("predict", done, len(images))
    display.finish()
    _WRITERS[args.format](rows, classifier.classes, display)
    if bad:
        print_error(f"{bad} of {len(images)} images could not be read; see above")
    return 2 if bad else 0


def _images(words: Sequence[str]) -> Iterator[str]:
    """Image files in the order they are named, those of a folder by name."""
    for word in words:
        if word == STDIN:
            yield from filter(None, (line.rstrip("\n") for line in sys.stdin))
            continue
        path = as_path(word)
        if not path.is_dir():
            yield str(path)
            continue
        for folder, below, files in os.walk(path):
            below.sort()
            names = sorted(name for name in files if not name.startswith("."))
            yield from (os.path.join(folder, n) for n in names if is_image_name(n))


def _classes(words: Sequence[str] | None) -> list[str]:
    """The user's own words for what may be seen: names, or a file of them."""
    names = [
        name
        for word in words or ()
        for name in (read_names(word, "--classes") if os.path.isfile(word) else [word])
    ]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or len(names) == 1:
        what = f"{twice[0]} twice" if twice else f"only {names[0]}"
        raise ConfigError(f"--classes: {what}; name two classes or more, each once")
    return names


def _judgement(classes: Sequence[str], probabilities: Tensor) -> dict[str, Any]:
    best = int(probabilities.argmax())
    return {
        "label": classes[best],
        "probability": float(probabilities[best]),
        "probabilities": dict(zip(classes, probabilities.tolist())),
    }


_Rows = list[dict[str, Any]]


def _table(rows: _Rows, classes: Sequence[str], display: Display) -> None:
    from ..report.console import print_plain
    from ..report.tables import Cell, Table
    from ..report.wording import percent

    body = [
        [
            Cell(printable(row["image"])),
            *(Cell(row["label"]), Cell(percent(row["probability"]))),
            Cell(row["zero_shot"]["label"]),
            Cell(percent(row["zero_shot"]["probability"])),
        ]
        for row in rows
    ]
    head = ("image", "label", "%", "zero-shot", "%")
    print_plain(display.out, Table(head, body, ""))


def _json(rows: _Rows, classes: Sequence[str], display: Display) -> None:
    named = [{**row, "image": printable(row["image"])} for row in rows]
    print(json.dumps(named, indent=1, ensure_ascii=False))


def _csv(rows: _Rows, classes: Sequence[str], display: Display) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    about = ("image", "label", "probability", "zero_shot", "zero_shot_probability")
    writer.writerow([*about, *classes])
    for row in rows:
        base = row["zero_shot"]
        values = [printable(row["image"]), row["label"], row["probability"]]
        values += [base["label"], base["probability"]]
        writer.writerow([*values, *row["probabilities"].values()])


_WRITERS = {"table": _table, "json": _json, "csv": _csv}


def evaluate(args: argparse.Namespace, display: Display) -> int:
    """``fedclip evaluate``."""
    from ..export.evaluate import evaluate as judge
    from ..features.obtain import obtain_features
    from ..report.records import load_run

    run: Path = args.run_directory
    load_run(run)  # a run, and a finished one
    config = _elsewhere(args, read_config(args, run / "config.toml"))
    features, _ = obtain_features(config, display.images)
    found = judge(run, config, features, state=args.state, client=args.client)
    display.finish()
    if args.format == "json":
        print(json.dumps(found, indent=1, ensure_ascii=False))
    elif args.format == "csv":
        _csv_of_evaluation(found)
        display.notes(found["notes"])
    else:
        _print_evaluation(found, display)
    return 0


def _elsewhere(args: argparse.Namespace, config: RunConfig) -> RunConfig:
    """``config`` with the data that were named, and all their classes unless named."""
    flags = vars(args)
    other = {name for name in ("dataset", "root", "features") if flags.get(name)}
    data = replace(config.data, split=None)
    if other and not flags.get("class-names"):
        data = replace(data, class_names=None)
    if not flags.get("classes"):
        data = replace(data, classes=())
    if "features" in other:
        data = replace(data, root=None)
    elif other:
        embedded = data.dataset == EMBEDDED_DATASET and "root" not in other
        data = replace(data, features=None, root=None if embedded else data.root)
    return replace(config, data=data)


def _csv_of_evaluation(found: dict[str, Any]) -> None:
    """A row a domain: images, then each metric of the result and of zero-shot."""
    domains = found["domains"]
    metrics = list(
        dict.fromkeys(key for each in domains.values() for key in each["result"])
    )
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(
        ["domain", "images", *metrics, *(f"zero_shot_{m}" for m in metrics)]
    )
    for name, each in domains.items():
        values = [each[of].get(m) for of in ("result", "zero_shot") for m in metrics]
        writer.writerow([name, each["images"], *values])


def _print_evaluation(found: dict[str, Any], display: Display) -> None:
    from ..report.console import print_plain
    from ..report.tables import Cell, Table, gain
    from ..report.wording import method_name, percent

    def row(
        name: str, images: str, base: float | None, got: float | None
    ) -> list[Cell]:
        cells = [Cell(percent(base)), Cell(percent(got)), gain(got, base)]
        return [Cell(name), Cell(images), *cells]

    domains = found["domains"]
    body = [
        row(
            name,
            f"{each['images']:,}",
            each["zero_shot"]["accuracy"],
            each["result"]["accuracy"],
        )
        for name, each in domains.items()
    ]
    several = len(domains) > 1
    mean = found["mean"]
    body += [row("mean", "", mean["zero_shot"], mean["result"])] if several else []
    method = method_name(found["algorithm"])
    head = ("domain", "images", "zero-shot", method, "lift")
    classes, unseen = len(found["classes"]), len(found["unseen_classes"])
    title = f"Accuracy in %, {classes} classes" + (f", {unseen} unseen" * bool(unseen))
    print_plain(display.out, Table(head, body, title, total=several))
    display.notes(found["notes"])
