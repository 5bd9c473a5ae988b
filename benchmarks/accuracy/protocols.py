"""What does every protocol give, by which command?

    python -m benchmarks protocols

On the embedded digits, whose images are there for the methods that need them: base to
novel with all domains as clients, and FedCLIP, gda and a linear head on every
partition, zero-shot beside.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fedclip_plugin as fc
from benchmarks.command import as_json, build_parser, measured_on, parse, save, table
from fedclip_plugin.algorithms import ALGORITHMS
from fedclip_plugin.bench.timing import machine
from fedclip_plugin.errors import FedClipError
from fedclip_plugin.report.novel import COLUMNS
from fedclip_plugin.report.wording import percent
from fedclip_plugin.stats import mean

Row = dict[str, Any]
NOVEL = ("fedclip", "gda", "linear", "promptfl", "kgcoop")
METHODS = ("fedclip", "gda", "linear")
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
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser("protocols", __doc__)
    add = parser.add_argument
    add("--rounds", type=int, default=20)
    add("--protocols", nargs="+", choices=PROTOCOLS, default=list(PROTOCOLS))
    add("--methods", nargs="+", default=list(NOVEL), help="of base to novel")
    few = {"protocols": ["classes"], "methods": ["fedclip", "linear", "kgcoop"]}
    args = parse(parser, argv, rounds=1, **few)
    found = {
        "rounds": args.rounds,
        "novel": {name: novel(name, args.rounds) for name in args.methods},
        "partitions": {
            name: {m: partitioned(name, m, args.rounds) for m in METHODS}
            for name in args.protocols
        },
        "machine": machine(),
    }
    text = page(found)
    print(text)
    save(args.out, "protocols", md=text, json=as_json(found))


def run(options: Row, rounds: int) -> Row:
    """The summary of a run, or what refuses it."""
    every = {"target": "none", "rounds": rounds, "eval_every": max(1, rounds // 4)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            return fc.run(out=Path(folder) / "run", **{**every, **options})
    except FedClipError as error:
        return {"refused": " ".join(str(error).split())}


def novel(method: str, rounds: int) -> Row:
    """The columns of base to novel."""
    if method not in ALGORITHMS.names():
        return {"refused": f"there is no --alg {method}"}
    summary = run({"alg": method, "classes": "base", **_step(method)}, rounds)
    if "refused" in summary:
        return summary
    notes = [n for n in summary["notes"] if "novel" in n]
    return {**summary["base_to_novel"], "notes": notes}


def partitioned(name: str, method: str, rounds: int) -> Row:
    """Accuracies of one method where clients are made by the protocol ``name``."""
    summary = run({"alg": method, **PROTOCOLS[name], **_step(method)}, rounds)
    if "refused" in summary:
        return summary
    return {
        "clients": len(summary["result"]["clients"]),
        "zero_shot": mean(summary["zero_shot"]["clients"].values()),
        "result": mean(summary["result"]["clients"].values()),
    }


def _step(method: str) -> Row:
    """Twenty rounds are few for the paper's learning rate."""
    return {"preset": "best"} if method == "fedclip" else {}


def page(found: Row) -> str:
    """Both tables, with the commands."""
    shown = ("local", "base", "novel", "harmonic")
    rows, notes = [], []
    zero: Row | None = None
    for method, row in found["novel"].items():
        if "refused" in row:
            rows.append([method, *["-"] * len(shown)])
            notes.append(f"{method}: {row['refused']}.")
            continue
        zero = zero or row["zero_shot"]
        rows.append([method, *(percent(row["result"].get(key)) for key in shown)])
        notes += row["notes"]
    if zero:
        rows.insert(0, ["zero-shot", *(percent(zero.get(key)) for key in shown)])
    lines = [
        "# Protocols",
        "",
        "`python -m benchmarks protocols` on the embedded digits, all domains are "
        f"clients, {found['rounds']} rounds, fedclip by `--preset best`, seed 0; "
        f"{measured_on(found['machine'])}.  Test accuracy of the clients, mean, in "
        "per cent.",
        "",
        "## Base to novel",
        "",
        "`fedclip run --target none --classes base --alg NAME`: trained on the first "
        "half of the classes.",
        "",
        *table(["method", *(COLUMNS[k].replace("\n", " ") for k in shown)], rows),
        "",
        *(f"- {note}" for note in dict.fromkeys(notes)),
        "",
        "## Partitions",
        "",
    ]
    body = []
    for name, methods in found["partitions"].items():
        sound = [row for row in methods.values() if "refused" not in row]
        base = sound[0] if sound else {}
        cells = [percent(row.get("result")) for row in methods.values()]
        command = " ".join(_words(PROTOCOLS[name])) or "(the default)"
        count = str(base.get("clients", "-"))
        first = f"{name}: `{command}`"
        body.append([first, count, percent(base.get("zero_shot")), *cells])
    lines += table(["protocol", "clients", "zero-shot", *METHODS], body)
    return "\n".join(lines) + "\n"


def _words(options: Row) -> list[str]:
    return [
        word
        for name, value in options.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
