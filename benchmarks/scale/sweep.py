"""How much faster is a sweep than as many separate runs?

    python -m benchmarks sweep

The same runs of FedCLIP on the embedded digits (every learning rate, seed and held-out
domain by itself), first as a command each, then as one `fedclip sweep`; features are
in the cache before either begins.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import as_json, build_parser, measured_on, parse, save, table
from fedclip_plugin.bench.timing import machine

FEDCLIP = [sys.executable, "-m", "fedclip_plugin.cli"]
LRS = (5e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SEEDS = (0, 1, 2, 3)
HEAD = ("", "seconds", "a run", "times as fast")


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser("sweep", __doc__)
    add = parser.add_argument
    add("--lrs", type=float, nargs="+", default=list(LRS))
    add("--seeds", type=int, nargs="+", default=list(SEEDS))
    add("--rounds", type=int, default=10)
    add("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    args = parse(parser, argv, lrs=[1e-4], seeds=[0, 1], rounds=1, jobs=2)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, Path(folder))
    text = page(found)
    print(text)
    save(args.out, "sweep", md=text, json=as_json(found))


def measure(args: Any, folder: Path) -> dict[str, Any]:
    """Seconds of both ways to the same runs."""
    common = ["--target", "scan", "--rounds", str(args.rounds), "--quiet"]
    call([*FEDCLIP, "run", *common, "--out", str(folder / "first")])  # fills the cache
    start = time.perf_counter()
    for lr, seed in itertools.product(args.lrs, args.seeds):
        words = ["--lr", f"{lr:g}", "--seed", str(seed)]
        out = str(folder / f"{lr:g}-{seed}")
        call([*FEDCLIP, "run", *common, *words, "--out", out])
    separate = time.perf_counter() - start
    file = folder / "sweep.toml"
    file.write_text(
        f'[options]\ntarget = "scan"\nrounds = {args.rounds}\n'
        f"seed = {list(args.seeds)}\n[grid]\nlr = {list(args.lrs)}\n"
    )
    swept = {}
    for jobs in sorted({1, args.jobs}):
        start = time.perf_counter()
        out = str(folder / f"sweep-{jobs}")
        words = ["sweep", str(file), "--quiet", "--jobs", str(jobs), "--out", out]
        call([*FEDCLIP, *words])
        swept[str(jobs)] = time.perf_counter() - start
    return {
        "runs": len(args.lrs) * len(args.seeds),
        "rounds": args.rounds,
        "separate": separate,
        "sweep": swept,
        "machine": machine(),
    }


def call(words: Sequence[str]) -> None:
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True)


def page(found: dict[str, Any]) -> str:
    """The seconds as a table."""
    count, alone = found["runs"], found["separate"]
    rows = [[f"{count} times `fedclip run`", *_cells(alone, alone, count)]]
    for jobs, seconds in found["sweep"].items():
        name = f"`fedclip sweep --jobs {jobs}`"
        rows.append([name, *_cells(seconds, alone, count)])
    lines = [
        "# A sweep against separate runs",
        "",
        f"`python -m benchmarks sweep`: {count} runs of FedCLIP on the embedded digits,"
        f" {found['rounds']} rounds each, features cached before; "
        f"{measured_on(found['machine'])}, load {found['machine']['load']} at the end.",
        "",
        *table(HEAD, rows),
    ]
    return "\n".join(lines) + "\n"


def _cells(seconds: float, alone: float, count: int) -> list[str]:
    """All of them, those of a run, and how many times less than ``alone``."""
    return [f"{seconds:.0f}", f"{seconds / count:.1f}", f"{alone / seconds:.1f}"]
