"""Flower's messages of a round of gda beside one of FedCLIP: bytes and seconds.

    python -m benchmarks flower-round --features DIR [--write]

Each domain of the features is a node.  Real messages of Flower's, serialised and read
again, between the strategy and the ClientApps in one process: what a round costs beside
the start of processes and the network.  Needs Flower.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.command import (
    as_json,
    build_parser,
    measured_on,
    parse,
    random_features,
    save,
    table,
)
from fedclip_plugin.bench.timing import machine
from fedclip_plugin.features.feature_set import load_features, save_features

VARIANTS: dict[str, dict[str, Any]] = {
    "fedclip": {"num-server-rounds": 3},
    "fedclip, int8 both ways": {
        "num-server-rounds": 3, "compress": "int8", "compress-down": "int8",
    },
    "gda": {"alg": "gda", "num-server-rounds": 1},
    "gda, int8": {"alg": "gda", "num-server-rounds": 1, "compress": "int8"},
    "gda, two rounds": {"alg": "gda", "num-server-rounds": 2},
}  # fmt: skip
KINDS = ("query", "train", "evaluate")
Row = dict[str, Any]


def play(directory: Path, options: dict[str, Any]) -> Row:
    """A run with all domains as nodes: bytes a client and round, seconds a round."""
    from fedclip_plugin.registry import flower_host
    from tests.registry.flower.grid import LocalGrid

    class Timed(LocalGrid):
        """The grid that serialises, with the time that the clients' answers took."""

        spent = 0.0

        def send_and_receive(
            self, messages: Any, *, timeout: float | None = None
        ) -> Any:
            begun = time.perf_counter()
            replies = super().send_and_receive(messages, timeout=timeout)
            self.spent += time.perf_counter() - begun
            return replies

    domains = load_features(directory).domains
    run_config = {"features": str(directory), "alg": "fedclip", **options}
    nodes = {100 + i: {"partition-id": i} for i in range(len(domains))}
    grid = Timed(nodes, run_config)
    strategy = flower_host.FedClip(run_config)
    strategy.initial_arrays(grid)  # asks the nodes, which read their data
    grid.spent = 0.0
    start, used = time.perf_counter(), time.process_time()
    strategy.start(grid)
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    rounds = int(options["num-server-rounds"])
    row: Row = {"nodes": len(nodes), "rounds": rounds}
    for kind in KINDS:
        part = [(down, up) for k, down, up in grid.traffic if k == kind]
        row[kind] = [mean(side) for side in zip(*part)] if part else [0, 0]
    row["run_bytes"] = sum(down + up for _, down, up in grid.traffic)
    row["round_s"], row["cpu_s"] = seconds / rounds, cpu / rounds
    row["clients_s"] = grid.spent / rounds
    assert strategy.host_run is not None
    result = strategy.host_run.now.result
    row["mean_test"] = None if result is None else result.mean_test
    return row


def report(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    head = (
        "", "rounds", "train down, bytes", "train up", "evaluate down", "evaluate up",
        "a node and run, bytes", "round, s", "of it clients, s", "round, CPU s",
        "mean test",
    )  # fmt: skip
    lines = []
    for name, row in found["rows"].items():
        sizes = [*row["train"], *row["evaluate"], row["run_bytes"] / row["nodes"]]
        seconds = (row["round_s"], row["clients_s"], row["cpu_s"])
        test = row["mean_test"]
        lines.append(
            [
                name,
                str(row["rounds"]),
                *(f"{size:,.0f}" for size in sizes),
                *(f"{value:.2f}" for value in seconds),
                "-" if test is None else f"{100 * test:.1f}",
            ]
        )
    rows = "\n".join(table(head, lines))
    query = found["rows"]["fedclip"]["query"]
    return f"""# A round in Flower: FedCLIP and gda

`python -m benchmarks flower-round --features DIR --write`: {found["what"]}, each
domain a node. Bytes of whole messages as Flower serialises them, a node and round; a
run is all its rounds with what the nodes say first (FedCLIP: {query[0]:,.0f} down,
{query[1]:,.0f} up). Seconds are of server and clients in one process, without the
network.

{measured_on(found["machine"])}, load {found["machine"]["load"]}

{rows}
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = build_parser("flower-round", __doc__)
    parser.add_argument("--features", type=Path, metavar="DIR")
    args = parse(parser, argv)
    with tempfile.TemporaryDirectory(prefix="fedclip-flower-round-") as folder:
        directory, what = args.features, ""
        if directory is None:
            directory, what = Path(folder), "random features of width 64"
            save_features(random_features(60, ("a", "b", "c"), 64), directory)
        found = load_features(directory)
        count = sum(len(label) for label in found.label.values())
        what = what or f"`{directory.name}`, width {found.embed_dim}"
        what += f", {count:,} rows, {len(found.classes)} classes"
        rows = {name: play(directory, options) for name, options in VARIANTS.items()}
    results = {"machine": machine(), "what": what, "rows": rows}
    page = report(results)
    save(args.out, "flower-round", json=as_json(results), md=page)
    print(page)
