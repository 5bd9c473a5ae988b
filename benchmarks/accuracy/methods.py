"""Every method on the same data, splits and seeds: accuracy, bytes and seconds.

    python -m benchmarks methods --features DIR [--only TABLE...]
    python -m benchmarks methods --images PACS --encoder DIR --only images

All that ``fedclip algorithms`` lists, and some variants, on data of
``method_tables.py``: a feature directory with domains as clients (*features*), 20
clients of skewed classes (*skewed*) and few images (*few-shot*), for methods that need
no CLIP; *images*, a data set's folder and an open_clip config with weights, for those
of the text tower, too; the embedded *digits* for all, fine-tuning of all of CLIP
included, and *digits-long* for some of them.  Every domain is held out in turn.  All
methods of a table run for the same number of rounds but those that end after one or
cost the processor most; each counts at its own best round, which the clients'
validation rows choose.  The first seed goes through all tables before the second
begins.  A run that fails does not stop the others.

    python -m benchmarks methods --time --features DIR

times a few rounds of every method anew, on a machine that does nothing else, and puts
those seconds into the tables that are there.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.accuracy.method_figures import figures
from benchmarks.accuracy.method_tables import TABLES, methods_of, rounds_of
from benchmarks.accuracy.methods_page import page_of, shown_of
from benchmarks.accuracy.study import Place, Row, Study, image_options, run_study
from fedclip_plugin.algorithms import get_algorithm
from fedclip_plugin.bench.timing import machine
from fedclip_plugin.clip.whole import WholeClip, open_whole_clip
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.data.folders import load_dataset
from fedclip_plugin.errors import FedClipError
from fedclip_plugin.features.feature_set import FeatureSet
from fedclip_plugin.features.obtain import obtain_features
from fedclip_plugin.federation.build import build_federation
from fedclip_plugin.federation.engine import RunState, federate
from fedclip_plugin.report.averages import scores
from fedclip_plugin.runs.results import results as results_of
from fedclip_plugin.runs.setup import Setup
from fedclip_plugin.settings.sources import configure

TIMED_ROUNDS = 6
QUICK = ("features", "skewed", "few-shot")


class Opened(NamedTuple):
    """The features of a table's data, and the CLIP itself where it was needed."""

    features: FeatureSet
    clip: WholeClip | None = None


class MethodsStudy(Study):
    """A table for each kind of data, a row for each method.

    A method's *cells*, one a target and seed, become its row once they are all there.
    """

    name = "methods"

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        super().__init__(args, scratch)
        self.opened: dict[str, Opened] = {}

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Which tables and methods, images, whether only to time."""
        add = parser.add_argument
        add("--only", nargs="+", choices=TABLES, default=list(TABLES))
        add("--methods", nargs="+", metavar="ALG", help="default: all there are")
        add("--images", type=Path, metavar="DIR", help="images of the table of images")
        text = "their CLIP: one open_clip config and its model.safetensors"
        add("--encoder", type=Path, metavar="DIR", help=text)
        add("--time", action="store_true", help="only time, see above")
        parser.set_defaults(rounds=None)

    def facts(self) -> Row:
        """Of each table in itself."""
        return {}

    def grid(self) -> Iterator[tuple[Place, Callable[[], Row]]]:
        """Every method of every table, or its seconds a round."""
        names = [name for name in self.args.only if self.data(name) is not None]
        if self.args.time:
            for name in names:
                yield from self.timed(name)
            return
        for name in names:
            self.begin(name)
        for seed, name in itertools.product(self.args.seeds, names):
            domains = self.open(TABLES[name].data).features.domains
            jobs = self.jobs(name, self.results[name]["rounds"])
            for (label, options), target in itertools.product(jobs, domains):
                work = partial(self.cell, name, options, target, seed)
                yield (name, "cells", label, f"{target} {seed}"), work

    def begin(self, name: str) -> None:
        """A table is begun anew where rounds or seeds are other ones."""
        args = self.args
        about = {"rounds": args.rounds or TABLES[name].rounds, "seeds": args.seeds}
        table = self.results.setdefault(name, {})
        if any(table.get(key) != value for key, value in about.items()):
            table.clear()
        features = self.open(TABLES[name].data).features
        machines = table.get("machines", [table["machine"]] if table else [])
        table |= {**about, "machine": machine(), "targets": list(features.domains)}
        table["machines"] = [*(m for m in machines if not _same(m)), table["machine"]]
        data = self.args.features.name if TABLES[name].data == "features" else ""
        data = data or (self.data(name) or {}).get("dataset", "digits")
        table["data"] = f"{data}, {features.model}"
        table["asked"] = list(methods_of(TABLES[name]))
        for part in ("methods", "cells"):
            table.setdefault(part, {})

    def _stored(self, place: Place) -> Any:
        name, part, label, *_ = place
        if part == "cells" and label in self.results[name]["methods"]:
            return True
        row = super()._stored(place)
        return None if isinstance(row, Mapping) and "failed" in row else row

    def _store(self, place: Place, row: Row) -> None:
        super()._store(place, row)
        name, part, label, *_ = place
        if part != "cells":
            return
        table = self.results[name]
        cells = table["cells"][label]
        whole = len(cells) == len(table["seeds"]) * len(table["targets"])
        if whole and not any("failed" in cell for cell in cells.values()):
            table["methods"][label] = figures(list(cells.values()))
            del table["cells"][label]

    def cell(
        self, name: str, options: Mapping[str, Any], target: str, seed: int
    ) -> Row:
        """A whole run, in memory: its summary, with the clients' mean alone."""
        try:
            setup, now, _ = self.run_once(name, options, target, seed)
        except FedClipError as error:
            return {"failed": str(error)}
        summary = results_of(setup, now, lambda *_: None).summary
        kept = ("seed", "algorithm", "metrics", "communication", "seconds", "rounds")
        found = {key: summary[key] for key in (*kept, "best_round", "target")}
        for which in ("zero_shot", "result"):
            told = scores(summary, which)
            found[which] = {**told, "clients": {"mean": told["clients"]}}
        return {**found, "transductive": setup.fed.algorithm.transductive}

    def run_once(
        self, name: str, options: Mapping[str, Any], target: str, seed: int
    ) -> tuple[Setup, RunState, list[float]]:
        """A run to its end, and the seconds of training of its rounds."""
        config = configure({**options, "target": target, "seed": seed})
        opened = self.open(TABLES[name].data)
        clip = None
        if get_algorithm(config.algorithm).needs_clip:
            clip = self.clip(TABLES[name].data, config)
        fed = build_federation(opened.features, config, target, seed, clip)
        seconds = []
        for now in federate(fed):
            if now.result:
                seconds.append(now.result.seconds["train"])
        return Setup(config, opened.features, fed, target), now, seconds

    def open(self, kind: str) -> Opened:
        """The features of a kind of data, encoded once."""
        if kind not in self.opened:
            table = next(name for name in TABLES if TABLES[name].data == kind)
            config = configure(self.data(table) or {})
            self.opened[kind] = Opened(obtain_features(config)[0])
        return self.opened[kind]

    def clip(self, kind: str, config: RunConfig) -> WholeClip:
        """The CLIP of a kind of data, opened once."""
        features, clip = self.open(kind)
        if clip is None:
            dataset = load_dataset(config.data.dataset, config.data.root)
            clip = open_whole_clip(config, dataset, features.classes, features.skipped)
            self.opened[kind] = Opened(features, clip)
        return clip

    def timed(self, name: str) -> Iterator[tuple[Place, Callable[[], Row]]]:
        """Seconds a round: the median of some rounds after the first."""
        table = self.results.get(name)
        if table is None:
            return
        target = table["targets"][-1]
        table |= {"timed": {**machine(), "target": target}, "time": {}}
        for label, options in self.jobs(name, TIMED_ROUNDS):
            if label in table["methods"]:
                work = partial(self.seconds, name, options, target)
                yield (name, "time", label), work

    def seconds(self, name: str, options: Mapping[str, Any], target: str) -> Any:
        """The median of the last rounds."""
        return median(self.run_once(name, options, target, 0)[2][-5:])

    def jobs(self, name: str, rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Label and options of ``fedclip run``, of those that --methods names."""
        shared = {**(self.data(name) or {}), **TABLES[name].options}
        for label, options in methods_of(TABLES[name]).items():
            if not self.args.methods or options["alg"] in self.args.methods:
                own = {"rounds": rounds_of(options, TABLES[name], rounds)}
                yield label, {**shared, **options, **own}

    def data(self, name: str) -> dict[str, Any] | None:
        """Options that name the data; None where they were not given."""
        kind, args = TABLES[name].data, self.args
        if kind == "digits":
            return {}
        if kind == "features":
            return {"features": str(args.features)}
        if args.images is None or args.encoder is None:
            return None
        return image_options(args.images, args.encoder)

    @staticmethod
    def page(results: Row) -> str:
        """All tables."""
        return page_of(results)

    @staticmethod
    def picture(results: Row) -> str | None:
        """Of the first table: accuracy on unseen domains against bytes."""
        from benchmarks.accuracy.method_picture import picture_of

        table = results.get("features", {})
        shown = shown_of(table) if table else {}
        return picture_of(shown, table["data"]) if shown else None


def _same(earlier: Mapping[str, Any]) -> bool:
    """Whether rows of an earlier run come from a machine like this one, today."""
    return {**machine(), "load": 0} == {**earlier, "load": 0}


def main(argv: Sequence[str] | None = None) -> None:
    run_study(MethodsStudy, __doc__, argv, only=QUICK)
