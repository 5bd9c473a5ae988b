"""The embedded engine from 10 to 10,000 clients: seconds and memory of a round.

    python -m benchmarks scale [--rounds 5] [--rows 20] [--write]

Random features of width 512, so many ``--rows`` a client (split 60/20/20), shared out
by a Dirichlet.  Each federation runs in a process of its own, with 10 to 1,000 of its
clients in each round; training, aggregation (screening and mean) and the scoring of all
clients are timed apart, and the peak of the process's memory is read.  Last comes
`fedclip run` itself with 10,000 clients, a tenth of them in each round: command to
report.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from benchmarks.accuracy.study import config_of
from benchmarks.command import (
    as_json,
    build_parser,
    parse,
    random_features,
    save,
    table,
)
from benchmarks.scale.figures import embedded_svg
from fedclip_plugin.bench.timing import machine
from fedclip_plugin.features.feature_set import load_features, save_features
from fedclip_plugin.federation.build import Federation, build_federation, participants
from fedclip_plugin.federation.downlink import broadcast
from fedclip_plugin.federation.rounds import (
    next_state,
    score_state,
    screen_round,
    train_clients,
)
from fedclip_plugin.ops import weighted_mean

MIB = 2**20
SIZES = (10, 100, 1_000, 10_000)
PARTICIPANTS = (10, 100, 1_000)
Cell = dict[str, Any]


def memory(field: str = "VmHWM") -> float:
    """MiB of this process: VmHWM the peak, VmRSS now."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


# -- in a process of its own ----------------------------------------------------------


def measure(directory: Path, cell: Sequence[int], rounds: int) -> Cell:
    """Seconds of each stage (medians) and MiB of one federation."""
    clients, chosen = cell
    program = memory("VmRSS")
    options = {"partition": "dirichlet", "clients": clients, "target": "none"}
    config = config_of(directory, {**options, "participation": chosen / clients})
    start = time.perf_counter()
    features = load_features(directory)
    loaded = time.perf_counter()
    fed = build_federation(features, config, None, 0)
    built = time.perf_counter()
    before = memory("VmRSS")
    times = [one_round(fed, number) for number in range(1, rounds + 2)][1:]  # warm
    return {
        "clients": clients,
        "participants": chosen,
        "rows": sum(len(v) for v in features.label.values()),
        "load": loaded - start,
        "build": built - loaded,
        **{k: median(t[k] for t in times) for k in times[0]},
        "program_mib": program,
        "data_mib": before - program,
        "peak_mib": memory(),
        "state_mib": state_mib(fed),
    }


def one_round(fed: Federation, number: int) -> dict[str, float]:
    """Seconds of training, aggregation and scoring, from the first adapter.

    ``cpu`` are processor seconds of the first two, over all threads.
    """
    state = fed.algorithm.init(fed.task)
    share = fed.task.server.participation
    chosen = participants(fed.clients, share, fed.task.seed, number)
    start, used = time.perf_counter(), time.process_time()
    updates = train_clients(fed, state, chosen, number)
    trained = time.perf_counter()
    names = [c.name for c in chosen]
    screened = screen_round(fed, broadcast(fed, state), updates, names)
    after = next_state(fed, screened, state, number)[0]
    aggregated, used = time.perf_counter(), time.process_time() - used
    score_state(fed, broadcast(fed, after).seen)
    return {
        "cpu": used,
        "train": trained - start,
        "aggregate": aggregated - trained,
        "evaluate": time.perf_counter() - aggregated,
    }


def state_mib(fed: Federation) -> float:
    """MiB of one adapter."""
    state = fed.algorithm.init(fed.task)
    return sum(v.numel() * v.element_size() for v in state.values()) / MIB


def run_command(directory: Path, out: Path, clients: int, rounds: int) -> Cell:
    """`fedclip run` as a user starts it, in this process: seconds, memory, files."""
    from fedclip_plugin.cli.parser import main as fedclip

    start = time.perf_counter()
    words = ["run", "--features", directory, "--target", "none", "--out", out]
    words += ["--partition", "dirichlet", "--clients", clients]
    words += ["--participation", 0.1, "--rounds", rounds, "--quiet"]
    status = fedclip([str(word) for word in words])
    sizes = {p.name: p.stat().st_size for p in sorted(out.iterdir()) if p.is_file()}
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return {
        "status": status,
        "clients": clients,
        "rounds": rounds,
        "seconds": time.perf_counter() - start,
        "round": median(sum(json.loads(s)["seconds"].values()) for s in lines),
        "peak_mib": memory(),
        "files": sizes,
    }


def tree(regions: int = 10, clients: int = 100, values: int = 1 << 16) -> Cell:
    """The mean of regional means against the mean of all, and float64's."""
    generator = torch.Generator().manual_seed(0)
    shape = (regions * clients, values)
    xs = list(torch.randn(shape, generator=generator).unbind())
    own = [xs[i : i + clients] for i in range(0, len(xs), clients)]
    alike = torch.ones(clients)
    means = [weighted_mean(part, alike) for part in own]
    above = weighted_mean(means, torch.full((regions,), float(clients)))
    flat = weighted_mean(xs, torch.ones(len(xs)))
    exact = torch.stack(xs).double().mean(dim=0)
    rms = exact.square().mean().sqrt()
    errors = {"tree": above, "flat": flat}
    return {k: float((v - exact).abs().max() / rms) for k, v in errors.items()} | {
        "regions": regions,
        "clients": clients,
    }


# -- all of them ----------------------------------------------------------------------


def in_a_process(*words: object) -> Cell:
    """What this benchmark prints last when it is run with ``words``."""
    command = [sys.executable, "-m", "benchmarks", "scale", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: Cell = json.loads(done.stdout.splitlines()[-1])
    return found


def measure_all(rounds: int, rows: int, sizes: Sequence[int]) -> dict[str, Any]:
    """Every federation with every number of participants, then the command."""
    cells = []
    with tempfile.TemporaryDirectory(prefix="fedclip-scale-") as folder:
        for clients in sizes:
            directory = Path(folder) / f"random-{clients}"
            save_features(random_features(rows * clients), directory)
            for chosen in (p for p in PARTICIPANTS if p <= clients):
                cell = ("--cell", clients, chosen, "--rounds", rounds)
                cells.append(in_a_process(*cell, "--features", directory))
                print(*line(cells[-1]), file=sys.stderr)
        words = ("--command", clients, "--rounds", rounds)
        command = in_a_process(*words, "--features", directory)
    found = {**machine(), "threads": torch.get_num_threads()}
    return {
        "machine": found, "rows": rows, "rounds": rounds, "cells": cells,
        "command": command, "tree": tree(),
    }  # fmt: skip


def line(cell: Cell) -> list[str]:
    """A row of the table."""
    stages = [cell["train"], cell["aggregate"], cell["evaluate"]]
    costs = (cell["train"] + cell["aggregate"], cell["cpu"])
    updates = cell["participants"] * cell["state_mib"]
    return [
        *(f"{cell['clients']:,}", f"{cell['participants']:,}", f"{cell['build']:.2f}"),
        *(f"{s:.3f}" for s in (*stages, sum(stages))),
        *(f"{1e3 * s / cell['participants']:.2f}" for s in costs),
        *(f"{v:,.0f}" for v in (cell["data_mib"], updates, cell["peak_mib"])),
    ]


def report(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    where = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    command, rounds = found["command"], found["rounds"]
    files = ", ".join(
        f"`{name}` {size / 1e6:.1f} MB"
        for name, size in command["files"].items()
        if size > 1e5
    )
    first, levels = found["cells"][0], found["tree"]
    head = (
        "clients", "in a round", "build, s", "train, s", "aggregate, s",
        "score all, s", "round, s", "ms a client-round", "CPU ms", "data, MiB",
        "updates, MiB", "peak, MiB",
    )  # fmt: skip
    lines = "\n".join(table(head, [line(cell) for cell in found["cells"]]))
    return f"""# Scale: the embedded engine

`python -m benchmarks scale --rounds {rounds} --rows {found["rows"]} --write`: random
features of width 512, {found["rows"]} rows a client, Dirichlet; medians of {rounds}
rounds after one to warm up, each line a process of its own. An adapter is
{first["state_mib"]:.1f} MiB. *Build* shares the rows out; *aggregate* is screening and
mean; *a client-round* is training and aggregation by the clients of the round, in time
and in processor time of all threads, which other load does not change much. *Data*
are the features and the clients' copy of them, *updates* the round's adapters, and the
*peak* holds both and the program ({first["program_mib"]:,.0f} MiB).

{where}

{lines}

The whole command, `fedclip run --partition dirichlet --clients {command["clients"]}
--participation 0.1 --rounds {command["rounds"]}`: {command["seconds"]:.1f} s from its
start to the written report, {command["round"]:.2f} s a round (median), peak
{command["peak_mib"]:,.0f} MiB. It leaves {files}.

A mean of {levels["regions"]} regional means of {levels["clients"]} updates each is off
the float64 mean by {levels["tree"]:.1e} of its rms at most; the mean of all at once by
{levels["flat"]:.1e}.

![seconds, cost and memory](scale.svg)
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = build_parser("scale", __doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20, help="a client")
    inner = parser.add_argument_group("one process (what the command starts)")
    inner.add_argument("--cell", type=int, nargs=2, metavar=("CLIENTS", "CHOSEN"))
    inner.add_argument("--command", type=int, metavar="CLIENTS")
    inner.add_argument("--features", type=Path)
    args = parse(parser, argv, rounds=1)
    if args.cell:
        print(json.dumps(measure(args.features, args.cell, args.rounds)))
        return
    if args.command:
        out = args.features / "out"
        print(json.dumps(run_command(args.features, out, args.command, args.rounds)))
        return
    results = measure_all(args.rounds, args.rows, SIZES[:1] if args.quick else SIZES)
    page, picture = report(results), embedded_svg(results)
    save(args.out, "scale", json=as_json(results), md=page, svg=picture)
    print(page)
