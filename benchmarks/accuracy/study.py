"""The skeleton of the studies here: a grid of runs that goes on where it ended.

A study says which rows its results have and how a row comes about; what the file of
results holds already is not run again.  Runs are named by options of ``fedclip run``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from benchmarks.command import PACS, as_json, build_parser, parse, random_features, save
from fedclip_plugin.algorithms.fedclip import FedClip
from fedclip_plugin.bench.timing import machine
from fedclip_plugin.cli import main as fedclip
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.features.feature_set import FeatureSet, load_features, save_features
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.engine import RunState, federate
from fedclip_plugin.federation.rounds import RoundResult
from fedclip_plugin.report.records import RunRecord, load_runs
from fedclip_plugin.settings.sources import configure

Row = dict[str, Any]
BEST: Row = dict(FedClip.presets["best"])
Place = tuple[Any, ...]
"""Keys that lead to a row; last, for a list of rows, the entries that tell it apart."""


class Study:
    """A grid of runs on a feature set; ``results`` is what its JSON file holds."""

    name: str
    rounds = 100
    results: Row

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self.args = args
        self.scratch = scratch  # a folder that goes with the process

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """What the study has beside --features, --rounds and --seeds."""

    @cached_property
    def features(self) -> FeatureSet:
        """The feature set of --features."""
        return load_features(self.args.features)

    def identity(self) -> Row:
        """Entries of the results without which those of earlier are dropped."""
        return {}

    def facts(self) -> Row:
        """Entries of the results that stand beside the rows."""
        return {"features": self.args.features.name, "machine": machine()}

    def grid(self) -> Iterator[tuple[Place, Callable[[], Row]]]:
        """The place of every row, and what makes it."""
        raise NotImplementedError

    @staticmethod
    def page(results: Row) -> str:
        """The results as Markdown."""
        raise NotImplementedError

    @staticmethod
    def picture(results: Row) -> str | None:
        """The results as SVG."""
        return None

    def run(self) -> None:
        """Fill the grid, writing after each row; then the page and the picture."""
        out: Path | None = self.args.out
        file = out / f"{self.name}.json" if out else None
        earlier = json.loads(file.read_text()) if file and file.is_file() else {}
        identity = self.identity()
        kept = all(earlier.get(key) == value for key, value in identity.items())
        self.results = (earlier if kept else {}) | identity | self.facts()
        for place, work in self.grid():
            if self._stored(place) is None:
                self._store(place, work())
                print(*place, file=sys.stderr, flush=True)
                save(out, self.name, json=as_json(self.results))
        page, picture = self.page(self.results), self.picture(self.results)
        save(out, self.name, json=as_json(self.results), md=page)
        if picture:
            save(out, self.name, svg=picture)
        print(page)

    def _stored(self, place: Place) -> Any:
        rows: Any = self.results
        for key in place[:-1]:
            rows = rows.get(key, {})
        last = place[-1]
        if not isinstance(last, Mapping):
            return rows.get(last)
        return next((row for row in rows if last.items() <= row.items()), None)

    def _store(self, place: Place, row: Row) -> None:
        *keys, last = place
        inside = isinstance(last, Mapping)
        rows: Any = self.results
        for key in keys[:-1] if inside else keys:
            rows = rows.setdefault(key, {})
        if inside:
            rows.setdefault(keys[-1], []).append({**last, **row})
        else:
            rows[last] = row


class IidStudy(Study):
    """One domain is held out, the rows of the others are dealt to iid clients.

    All runs are of preset best.
    """

    clients: int

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Who is held out, and how many there are."""
        parser.add_argument("--target", default="sketch", help="held-out domain")
        parser.add_argument("--clients", type=int, default=cls.clients)

    def identity(self) -> Row:
        """What all rows were run with."""
        names = ("target", "clients", "rounds", "seeds")
        settings = {name: getattr(self.args, name) for name in names}
        settings |= {"features": self.args.features.name, "train": BEST}
        return {"settings": settings}

    def dealt(self, seed: int, options: Mapping[str, Any]) -> Federation:
        """The federation of a run, which is scored after its last round."""
        rounds = self.args.rounds
        shared = {"partition": "iid", "clients": self.args.clients, "rounds": rounds}
        shared |= {"eval_every": rounds, **BEST}
        return federation(self, self.args.target, seed, {**shared, **options})


def run_study(
    kind: type[Study], doc: str | None, argv: Sequence[str] | None, **quick: Any
) -> None:
    """The command of a study, on one thread; ``quick`` as :func:`parse` takes it."""
    parser = build_parser(kind.name, doc)
    add = parser.add_argument
    add("--features", type=Path, metavar="DIR", help="feature directory")
    add("--rounds", type=int, default=kind.rounds)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    kind.add_options(parser)
    args = parse(parser, argv, **{"rounds": 2, "seeds": [0], **quick})
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="fedclip-study-") as folder:
        scratch = Path(folder)
        if args.features is None and args.quick:
            args.features = scratch / "random"
            save_features(random_features(40, PACS[1:], dim=16), args.features)
        if args.features is None:
            parser.error("it needs --features DIR")
        kind(args, scratch).run()


# ------------------------------------------------------------------------------ runs


def image_options(images: Path, encoder: Path) -> Row:
    """Options that name a folder of images and the CLIP of a folder.

    ``encoder`` holds one open_clip config and its model.safetensors.
    """
    (config,) = encoder.glob("*.json")
    return {
        "dataset": images.name,
        "root": str(images),
        "model": config.stem,
        "model_config": str(encoder),
        "pretrained": str(encoder / "model.safetensors"),
    }


def words_of(options: Mapping[str, Any]) -> list[str]:
    """Options of ``fedclip run``: ``{"local_epochs": 2}`` is ``--local-epochs 2``."""
    return [
        word
        for name, value in options.items()
        for word in (f"--{name.replace('_', '-')}", *_several(value))
    ]


def _several(value: object) -> list[str]:
    return [str(v) for v in (value if isinstance(value, (list, tuple)) else [value])]


def config_of(features: Path, options: Mapping[str, Any]) -> RunConfig:
    """What ``fedclip run --features DIR`` makes of the options."""
    return configure({"features": str(features), **options})


def federation(
    study: Study,
    target: str,
    seed: int,
    options: Mapping[str, Any],
    features: FeatureSet | None = None,
) -> Federation:
    """Clients and held-out domain of a run on the study's features, or other ones."""
    config = config_of(study.args.features, options)
    return build_federation(features or study.features, config, target, seed)


class Ended(NamedTuple):
    """A run in memory: its last round, and the scores of its best."""

    last: RunState
    result: RoundResult
    best: RoundResult


def run_to_end(fed: Federation) -> Ended:
    """All rounds, without files.  Best: by the clients' validation rows."""
    best = None
    for standing in federate(fed):
        result = standing.result
        if result and standing.progress.best_round == standing.progress.round:
            best = result if result.clients or best is None else best
    assert result is not None
    assert best is not None
    return Ended(standing, result, best)


def finished_runs(
    jobs: Mapping[str, Mapping[str, Any]], folder: Path
) -> Iterator[tuple[str, list[RunRecord]]]:
    """Label and runs of every job, which is given as options of ``fedclip run``.

    A job lies in ``folder/<label>``: what is finished there is not run again, and a
    broken run goes on where it stopped.
    """
    for label, options in jobs.items():
        out = folder / label.replace(",", "").replace(" ", "-")
        words = ["run", *words_of(options), "--out", str(out)]
        words += ["--resume"] if (out / "config.toml").is_file() else []
        print(f"-- {label}: fedclip {' '.join(words)}", file=sys.stderr)
        with contextlib.redirect_stdout(sys.stderr):
            if code := fedclip(words):
                raise SystemExit(code)
        yield label, load_runs(out)
