"""Rounds of 100 to 10,000 participants: peak of memory, seconds, and the same bits.

    python -m benchmarks participants [--sizes 100 1000 10000] [--width 512] [--write]

One federation of as many clients as the largest round has; each round runs in a process
of its own, with updates in memory up to FEDCLIP_UPDATE_MEMORY and beyond it on the disk
(`fedclip_plugin/wire/spool.py`).  Training, screening and mean are timed, the peak of
the process is read.  The bits are compared with those of a round that holds everything:
at ``--narrow`` features of width 64 with all participants, and at full width with
``--check`` of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.study import config_of
from benchmarks.command import (
    as_json,
    build_parser,
    measured_on,
    parse,
    random_features,
    save,
    table,
)
from benchmarks.scale.embedded import MIB, memory, state_mib
from fedclip_plugin.bench.timing import machine
from fedclip_plugin.features.feature_set import load_features, save_features
from fedclip_plugin.federation.build import build_federation, participants
from fedclip_plugin.federation.downlink import broadcast
from fedclip_plugin.federation.rounds import next_state, screen_round, train_clients
from fedclip_plugin.wire import spool

SIZES = (100, 1_000, 10_000)
ROWS = 5  # a client: 3 to train
NARROW = 64
IN_MEMORY = str(1 << 30)  # MiB: whatever there is
Cell = dict[str, Any]


def measure(directory: Path, clients: int, chosen: int) -> Cell:
    """One round of ``chosen`` of ``clients`` clients, in this process."""
    options = {"partition": "iid", "clients": clients, "target": "none"}
    config = config_of(directory, {**options, "participation": chosen / clients})
    fed = build_federation(load_features(directory), config, None, 0)
    cohort = participants(fed.clients, chosen / clients, 0, 1)
    train_clients(fed, fed.first, cohort[:10], 1)  # to warm up
    before = memory("VmRSS")
    start, used = time.perf_counter(), time.process_time()
    updates = train_clients(fed, fed.first, cohort, 1)
    trained = time.perf_counter()
    names = [client.name for client in cohort]
    screened = screen_round(fed, broadcast(fed, fed.first), updates, names)
    judged = time.perf_counter()
    state = next_state(fed, screened, fed.first, 1)[0]
    end = time.perf_counter()
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(state[key].numpy().tobytes())
    return {
        "participants": len(cohort),
        "sound": len(screened.sound),
        "spooled": spool.on_disk(),
        "train": trained - start,
        "screen": judged - trained,
        "mean": end - judged,
        "round": end - start,
        "cpu": time.process_time() - used,
        "before_mib": before,
        "peak_mib": memory(),
        "updates_mib": len(cohort) * state_mib(fed),
        "sha256": digest.hexdigest(),
    }


def in_a_process(
    directory: Path, clients: int, chosen: int, limit: str | None = None
) -> Cell:
    """A round in a process of its own; ``limit`` of updates in memory, in MiB."""
    words = ["--cell", clients, chosen, "--features", directory]
    own = {} if limit is None else {spool.VARIABLE: limit}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "participants", *map(str, words)],
        env={**os.environ, **own}, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: Cell = json.loads(done.stdout.splitlines()[-1])
    print(line(found), file=sys.stderr)
    return found


def compare(directory: Path, clients: int, chosen: int) -> Cell:
    """The same round from the disk and in memory."""
    disk, held = (
        in_a_process(directory, clients, chosen, limit) for limit in ("0", IN_MEMORY)
    )
    return {
        "participants": chosen,
        "same": disk["sha256"] == held["sha256"],
        "spooled": disk["spooled"] and not held["spooled"],
        "peaks_mib": [disk["peak_mib"], held["peak_mib"]],
        "rounds": [disk["round"], held["round"]],
    }


def measure_all(sizes: Sequence[int], width: int, check: int) -> dict[str, Any]:
    """Every size, then the comparisons."""
    clients = max(sizes)
    with tempfile.TemporaryDirectory(prefix="fedclip-participants-") as folder:
        wide, narrow = Path(folder) / "wide", Path(folder) / "narrow"
        save_features(random_features(ROWS * clients, dim=width), wide)
        save_features(random_features(ROWS * clients, dim=NARROW), narrow)
        cells = [in_a_process(wide, clients, chosen) for chosen in sizes]
        same = [compare(narrow, clients, clients), compare(wide, clients, check)]
    return {
        "machine": machine(), "width": width, "rows": ROWS, "clients": clients,
        "memory_mib": spool.limit() // MIB, "cells": cells, "same": same,
    }  # fmt: skip


def line(cell: Cell) -> list[str]:
    """A row of the table."""
    seconds = [cell[k] for k in ("train", "screen", "mean", "round", "cpu")]
    return [
        f"{cell['participants']:,}",
        f"{cell['updates_mib']:,.0f}",
        "disk" if cell["spooled"] else "memory",
        *(f"{s:.2f}" for s in seconds),
        f"{1e3 * cell['round'] / cell['participants']:.2f}",
        f"{cell['before_mib']:,.0f}",
        f"{cell['peak_mib']:,.0f}",
    ]


def report(found: dict[str, Any]) -> str:
    """The results as Markdown."""
    head = (
        "in a round", "updates, MiB", "held in", "train, s", "screen, s", "mean, s",
        "round, s", "CPU, s", "ms a participant", "before, MiB", "peak, MiB",
    )  # fmt: skip
    cells = found["cells"]
    lines = "\n".join(table(head, [line(cell) for cell in cells]))
    more = cells[-1]["peak_mib"] - cells[0]["peak_mib"]
    gap = f"{abs(more):,.0f} MiB {'more' if more > 0 else 'less'}"
    bits = "\n".join(
        f"- {one['participants']:,} participants, width {width}: "
        f"{'the same bits' if one['same'] else 'OTHER BITS'} from the disk "
        f"(peak {one['peaks_mib'][0]:,.0f} MiB, {one['rounds'][0]:.1f} s) and in "
        f"memory ({one['peaks_mib'][1]:,.0f} MiB, {one['rounds'][1]:.1f} s)"
        for one, width in zip(found["same"], (NARROW, found["width"]))
    )
    return f"""# Rounds that do not hold everything

`python -m benchmarks participants --write`: one round of a federation of
{found["clients"]:,} clients with {found["rows"]} rows of width {found["width"]} each,
every line a process of its own. Beyond {found["memory_mib"]:,} MiB
(`{spool.VARIABLE}`) the updates of a round wait on the disk. *Train* writes
them there, *screen* reads them once for their distances, *mean* once more in client
order. *Before* is the process with its data, *peak* the most that it ever took,
mapped pages included.  Processor seconds say more than seconds where other work runs.

{measured_on(found["machine"])}, load {found["machine"]["load"]}

{lines}

{cells[-1]["participants"]:,} participants take {gap} at the peak than
{cells[0]["participants"]:,}.

{bits}
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = build_parser("participants", __doc__)
    add = parser.add_argument
    add("--sizes", type=int, nargs="+", default=SIZES)
    add("--width", type=int, default=512)
    add("--check", type=int, default=1_000, help="participants of full width")
    inner = parser.add_argument_group("one process (what the command starts)")
    inner.add_argument("--cell", type=int, nargs=2, metavar=("CLIENTS", "CHOSEN"))
    inner.add_argument("--features", type=Path)
    args = parse(parser, argv, sizes=(10, 40), width=NARROW, check=20)
    if args.cell:
        print(json.dumps(measure(args.features, *args.cell)))
        return
    results = measure_all(args.sizes, args.width, args.check)
    page = report(results)
    save(args.out, "participants", json=as_json(results), md=page)
    print(page)
