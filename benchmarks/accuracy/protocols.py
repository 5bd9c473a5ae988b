"""What does every protocol give, by which command?

    python -m benchmarks protocols --features DIR [--images DIR --encoder DIR]

Base to novel, with all domains as clients, on the embedded digits and on a folder of
images with its CLIP (an open_clip config with weights): there are the images that
methods of the text tower need.  FedCLIP, gda and a linear head on every partition of a
feature directory and of the digits, zero-shot beside.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import fedclip_plugin as fc
from benchmarks.accuracy.study import (
    Place,
    Row,
    Study,
    image_options,
    run_study,
    words_of,
)
from benchmarks.command import measured_on, table
from fedclip_plugin.algorithms import ALGORITHMS
from fedclip_plugin.bench.timing import machine
from fedclip_plugin.errors import FedClipError
from fedclip_plugin.report.novel import COLUMNS
from fedclip_plugin.report.wording import with_half
from fedclip_plugin.stats import ci95, mean

NOVEL = ("fedclip", "gda", "linear", "promptfl", "kgcoop")
METHODS = ("fedclip", "gda", "linear")
SHOWN = ("local", "base", "novel", "harmonic")
PROTOCOLS: dict[str, Row] = {
    "domain": {},
    "iid": {"partition": "iid", "clients": 8},
    "dirichlet": {"partition": "dirichlet", "clients": 8, "alpha": 0.1},
    "classes": {"partition": "classes", "clients": 5, "classes_per_client": 2},
    "shards": {"partition": "shards", "clients": 8, "shards_per_client": 2},
    "quantity": {"partition": "quantity", "clients": 8, "alpha": 0.5},
    "long-tail": {"partition": "long-tail", "clients": 8, "imbalance": 20},
    "dirichlet inside domains": {
        **{"partition": "dirichlet", "clients_per_domain": 2, "alpha": 0.1},
    },
    "few-shot": {"shots": 4},
}


class Protocols(Study):
    """A row for each method of base to novel, and for each partition and method."""

    name = "protocols"
    rounds = 20

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Images with their CLIP; which protocols, and methods of base to novel."""
        add = parser.add_argument
        add("--images", type=Path, metavar="DIR", help="images, for base to novel")
        text = "their CLIP: one open_clip config and its model.safetensors"
        add("--encoder", type=Path, metavar="DIR", help=text)
        add("--protocols", nargs="*", choices=PROTOCOLS, default=list(PROTOCOLS))
        add("--methods", nargs="*", default=list(NOVEL), help="of base to novel")
        add("--no-digits", action="store_true", help="only what was given")

    def identity(self) -> Row:
        """Rows of other numbers of rounds do not compare."""
        return {"rounds": self.args.rounds, "seeds": self.args.seeds}

    def _stored(self, place: Place) -> Row | None:
        """A row of other seeds, of a shorter run, is made anew."""
        row = super()._stored(place)
        seeds = self.args.seeds
        return row if row and row.get("seeds", seeds) == seeds else None

    def facts(self) -> Row:
        """The machine of the last rows."""
        return {"machine": machine()}

    def grid(self) -> Iterator[tuple[Place, Callable[[], Row]]]:
        """Base to novel first, as far as there are images."""
        args = self.args
        digits: dict[str, Row] = {} if args.no_digits else {"digits": {}}
        images = dict(digits)
        if args.images is not None and args.encoder is not None:
            images[args.images.name] = image_options(args.images, args.encoder)
        for data, options in images.items():
            for method in args.methods:
                work = partial(self.novel, method, options)
                yield ("novel", data, method), work
        held = {**digits, args.features.name: {"features": str(args.features)}}
        for data, options in held.items():
            for name in args.protocols:
                for method in METHODS:
                    work = partial(self.partitioned, name, method, options)
                    yield ("partitions", data, name, method), work

    def run_all(self, options: Row) -> list[Row]:
        """The summaries of a run of each seed; one that is refused raises."""
        rounds = self.args.rounds
        every = {"target": "none", "rounds": rounds, "eval_every": max(1, rounds // 4)}
        every |= {"pictures": "off", **options}
        return [
            fc.run(out=self.scratch / "run", seed=seed, **every)
            for seed in self.args.seeds
        ]

    def novel(self, method: str, options: Row) -> Row:
        """The columns of base to novel, mean over seeds."""
        if method not in ALGORITHMS.names():
            return {"refused": f"there is no --alg {method}"}
        try:
            runs = self.run_all(
                {"alg": method, "classes": "base", **_step(method), **options}
            )
        except FedClipError as error:
            return {"refused": " ".join(str(error).split())}
        columns = [run["base_to_novel"] for run in runs]
        return {
            **_over_seeds(
                lambda which, key: [each[which].get(key) for each in columns]
            ),
            "notes": [n for n in runs[0]["notes"] if "novel" in n],
            "seeds": self.args.seeds,
        }

    def partitioned(self, name: str, method: str, options: Row) -> Row:
        """The clients' accuracies where the protocol ``name`` makes them."""
        own = {"alg": method, **PROTOCOLS[name], **_step(method), **options}
        try:
            runs = self.run_all(own)
        except FedClipError as error:
            return {"refused": " ".join(str(error).split())}
        return {
            "clients": len(runs[0]["result"]["clients"]),
            "seeds": self.args.seeds,
            **_over_seeds(
                lambda which, _: [mean(run[which]["clients"].values()) for run in runs],
                ("mean",),
            ),
        }

    @staticmethod
    def page(results: Row) -> str:
        """All tables, with the commands."""
        seeds = ", ".join(map(str, results["seeds"]))
        lines = [
            "# Protocols",
            "",
            "`python -m benchmarks protocols`: all domains are clients, "
            f"{results['rounds']} rounds, fedclip by `--preset best`, seeds {seeds}; "
            f"{measured_on(results['machine'])}.  Test accuracy of the clients, mean, "
            "in per cent; ± is the 95 % interval over seeds; a number without it "
            "is of one seed.  The digits are encoded by fedclip-tiny, images and "
            "features of PACS by an encoder that is not CLIP: compare within a table.",
            "",
        ]
        for data, methods in results.get("novel", {}).items():
            lines += _novel_table(data, methods)
        for data, partitions in results.get("partitions", {}).items():
            lines += _partitions_table(data, partitions)
        return "\n".join(lines).rstrip() + "\n"


def _step(method: str) -> Row:
    """Twenty rounds are few for the paper's learning rate."""
    return {"preset": "best"} if method == "fedclip" else {}


def _over_seeds(
    values: Callable[[str, str], Sequence[float | None]],
    keys: Sequence[str] = SHOWN,
) -> Row:
    """Means of zero-shot and of the result, with half-widths of their intervals."""
    row: Row = {}
    for which in ("zero_shot", "result"):
        row[which] = {key: mean(values(which, key)) for key in keys}
        row[f"{which}_ci95"] = {key: ci95(values(which, key)) for key in keys}
    return row


def _cell(row: Row, which: str, key: str) -> str:
    """Per cent with its interval; empty without a row."""
    if which not in row:
        return "-"
    return with_half(row[which].get(key), row[f"{which}_ci95"].get(key))


def _novel_table(data: str, methods: Mapping[str, Row]) -> list[str]:
    rows, notes = [], []
    base: Row | None = None
    for method, row in methods.items():
        if "refused" in row:
            rows.append([method, *["-"] * len(SHOWN)])
            notes.append(f"{method}: {row['refused']}.")
            continue
        base = base or row
        rows.append([method, *(_cell(row, "result", key) for key in SHOWN)])
        notes += [
            note if method in note else f"{method}: {note}" for note in row["notes"]
        ]
    if base:
        rows.insert(0, ["zero-shot", *(_cell(base, "zero_shot", k) for k in SHOWN)])
    head = ["method", *(COLUMNS[key].replace("\n", " ") for key in SHOWN)]
    return [
        f"## Base to novel: {data}",
        "",
        "`fedclip run --target none --classes base --alg NAME`: trained on the first "
        "half of the classes.",
        "",
        *table(head, rows),
        "",
        *(f"- {note}" for note in dict.fromkeys(notes)),
        *([""] if notes else []),
    ]


def _partitions_table(data: str, partitions: Mapping[str, Row]) -> list[str]:
    body, notes = [], []
    for name, methods in partitions.items():
        sound = [row for row in methods.values() if "refused" not in row]
        base = sound[0] if sound else {}
        cells = [_cell(methods.get(m, {}), "result", "mean") for m in METHODS]
        command = " ".join(words_of(PROTOCOLS[name])) or "(the default)"
        count = str(base.get("clients", "-"))
        first = f"{name}: `{command}`"
        body.append([first, count, _cell(base, "zero_shot", "mean"), *cells])
        notes += [f"{name}: {r['refused']}" for r in methods.values() if "refused" in r]
    return [
        f"## Partitions: {data}",
        "",
        *table(["protocol", "clients", "zero-shot", *METHODS], body),
        "",
        *(f"- {note}" for note in dict.fromkeys(notes)),
        *([""] if notes else []),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    few = {"protocols": ["classes"], "methods": ["fedclip", "linear", "kgcoop"]}
    run_study(Protocols, __doc__, argv, rounds=1, **few)
