"""A round in the hosts as clients grow: seconds, cost of a client-round, memory.

    python -m benchmarks scale-hosts ENGINE... [--clients N...] [--rounds 3] [--write]

ENGINE is ``embedded``, ``fedml`` (sp), ``simulation`` (Flower on ray) or ``deployment``
(Flower: a SuperLink and a SuperNode for each client, processes that talk TLS over gRPC
on 127.0.0.1).  Every client trains and is scored in every round, on ``--rows`` random
rows of width 512.  Run it in each host's environment: the results of this run replace
those of the same engine and number of clients.

Seconds of a round are the median of those in ``metrics.jsonl``.  Memory is the sum of
the proportional set sizes of all processes of the engine.  A run is stopped where less
than ``--spare`` GiB of the machine are left, or after ``--limit`` seconds, and recorded
so.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from benchmarks.command import (
    as_json,
    build_parser,
    parse,
    random_features,
    save,
    table,
)
from benchmarks.scale.engines import ENGINES, GIB_A_NODE, Job, family
from benchmarks.scale.figures import hosts_svg
from fedclip_plugin.bench.timing import machine
from fedclip_plugin.features.feature_set import save_features

HEAD = (
    *("engine", "clients", "rounds", "a round, s", "ms a client-round", "start, s"),
    *("whole run, s", "CPU, s", "memory, MiB", "largest kinds of process", "load", ""),
)
Run = dict[str, Any]


# -- watching -------------------------------------------------------------------------


def proportional(pid: int) -> tuple[str, float]:
    """What a process is, and the MiB of it: shared pages are shared out."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        comm = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "", 0.0  # it ended meanwhile
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.M)
    names = [Path(w).name for w in words[:3] if w and not w.startswith("-")]
    known = [n for n in names if not n.startswith("python")]
    return (known or names or [comm])[0], int(found[1]) / 1024 if found else 0.0


def processor_seconds(pid: int) -> float:
    """What a process has used, and its children that ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0  # it ended meanwhile
    ticks = text.rpartition(")")[2].split()[11:15]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def available() -> float:
    """GiB that the machine has left."""
    text = Path("/proc/meminfo").read_text()
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(found[1]) / 2**20 if found else 1e9


def watch(job: Job, engine: str, limit: float, spare: float) -> Run:
    """Run an engine to its end, or to what it may not pass."""
    need = GIB_A_NODE * job.clients + spare
    if engine == "deployment" and need > available():
        why = f"not started: {need:.0f} GiB needed, {available():.0f} free"
        return nothing(engine, job, why)
    start, peak, used, why = time.monotonic(), 0.0, 0.0, "finished"
    kinds: dict[str, list[float]] = {}
    with ENGINES[engine][0](job) as process:
        up = time.monotonic() - start
        while process.poll() is None:
            began = time.monotonic()
            pids = [p for p in family(os.getpid()) if p != os.getpid()]
            used = max(used, sum(map(processor_seconds, pids)))
            sizes = [proportional(p) for p in pids]
            if (total := sum(size for _, size in sizes)) > peak:
                peak, kinds = total, by_kind(sizes)
            if available() < spare:
                why = f"stopped: less than {spare:g} GiB left"
                break
            if time.monotonic() - start > limit:
                why = f"stopped after {limit:g} s"
                break
            time.sleep(max(0.5, 10 * (time.monotonic() - began)))  # watching costs
    rounds = round_seconds(job.out)
    if process.returncode and why == "finished":
        why = f"failed, exit code {process.returncode}"
    found: Run = {"start_s": up, "wall_s": time.monotonic() - start, "cpu_s": used}
    found |= {"peak_mib": peak, "processes": kinds, "rounds": len(rounds)}
    if rounds:
        typical = median(rounds)
        found["round_s"] = typical
        found["client_round_ms"] = 1e3 * typical / job.clients
    return nothing(engine, job, why) | found


def nothing(engine: str, job: Job, why: str) -> Run:
    """What is known of a run that measured nothing."""
    keys = ("round_s", "client_round_ms", "start_s", "wall_s", "cpu_s", "peak_mib")
    empty: Run = {"rounds": 0, "processes": {}, **dict.fromkeys(keys)}
    return {"engine": engine, "clients": job.clients, "outcome": why, **empty}


def by_kind(sizes: list[tuple[str, float]]) -> dict[str, list[float]]:
    """What kind of process -> how many, and MiB of all of them."""
    found: dict[str, list[float]] = {}
    for name, size in sizes:
        count, total = found.get(name, (0, 0.0))
        found[name] = [count + 1, round(total + size, 1)]
    return {k: v for k, v in found.items() if v[1] >= 1}


def round_seconds(out: Path) -> list[float]:
    """Seconds of every round that was written down."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [sum(json.loads(line)["seconds"].values()) for line in lines]


# -- results --------------------------------------------------------------------------


def keep(runs: list[Run], out: Path | None) -> list[Run]:
    """The results in ``out`` with these in the places of theirs."""
    path = out / "scale-hosts.json" if out else None
    former = json.loads(path.read_text())["runs"] if path and path.is_file() else []
    new = {(r["engine"], r["clients"]): r for r in runs}
    all_runs = {(r["engine"], r["clients"]): r for r in former} | new
    order = list(ENGINES)
    return sorted(
        all_runs.values(), key=lambda r: (order.index(r["engine"]), r["clients"])
    )


def report(runs: list[Run]) -> str:
    """The results as Markdown."""
    body = []
    for r in runs:
        large = sorted(r["processes"].items(), key=lambda kv: -kv[1][1])[:3]
        kinds = ", ".join(f"{n} x {k}: {size:,.0f}" for k, (n, size) in large)
        cells = [
            f"{r['engine']} ({r['version']})", f"{r['clients']:,}", f"{r['rounds']}",
            number(r["round_s"], 2), number(r["client_round_ms"], 1),
            *(number(r[k]) for k in ("start_s", "wall_s", "cpu_s", "peak_mib")),
            kinds, f"{r['machine']['load']}",
            "" if r["outcome"] == "finished" else r["outcome"],
        ]  # fmt: skip
        body.append(cells)
    places = dict.fromkeys(
        ", ".join(f"{k} {v}" for k, v in r["machine"].items() if k != "load")
        for r in runs
    )
    return (
        "# Scale: the hosts\n\n`python -m benchmarks scale-hosts ENGINE... --write` in "
        "each host's environment; what is run and how it is\nmeasured is told by "
        "`--help`. *Start* is what it takes until the run can be asked for "
        "(SuperNodes), *CPU* the\nprocessor time of all processes from start to end, "
        "*memory* the sum of proportional set sizes at its highest,\n*load* what the "
        "machine had to do besides when the run began.\n\n"
        + "\n".join(table(HEAD, body))
        + "\n\n"
        + "\n".join(f"- {place}" for place in places)
        + "\n\n![cost and memory](scale-hosts.svg)\n"
    )


def number(value: float | None, digits: int = 0) -> str:
    """A figure of the table, or a dash."""
    return "-" if value is None else f"{value:,.{digits}f}"


def distribution(name: str) -> str:
    """Name and version of what is measured."""
    with contextlib.suppress(PackageNotFoundError):
        return f"{name} {version(name)}"
    raise SystemExit(f"{name} is not installed in this environment")


def installed() -> list[str]:
    """The engines of this environment that take no minutes to start."""
    return [
        name
        for name, (_, package) in ENGINES.items()
        if name != "deployment" and find_spec(package.replace("-", "_"))
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = build_parser("scale-hosts", __doc__)
    add = parser.add_argument
    add("engines", nargs="*", choices=[*ENGINES, []], metavar="ENGINE")
    add("--clients", type=int, nargs="+", default=[8, 32, 100])
    add("--rounds", type=int, default=3)
    add("--rows", type=int, default=20, help="a client")
    add("--limit", type=float, default=600, help="seconds of one run")
    add("--spare", type=float, default=3, help="GiB of the machine to leave free")
    args = parse(parser, argv, clients=[3], rounds=1, spare=0.5, limit=240)
    engines = args.engines or (installed() if args.quick else [])
    if not engines:
        parser.error(f"which engine: {', '.join(ENGINES)}")
    runs = []
    for engine in engines:
        found = distribution(ENGINES[engine][1])
        for clients in args.clients:
            with tempfile.TemporaryDirectory(prefix="fedclip-scale-") as folder:
                job = Job(Path(folder), clients, args.rounds)
                save_features(random_features(args.rows * clients), job.features)
                place = {"version": found, "machine": machine()}
                run = watch(job, engine, args.limit, args.spare) | place
                if run["outcome"] != "finished":
                    print("\n".join(tail(job)), file=sys.stderr)
            print(json.dumps(run), file=sys.stderr)
            runs.append(run)
    runs = keep(runs, args.out)
    page, picture = report(runs), hosts_svg(runs)
    save(args.out, "scale-hosts", json=as_json({"runs": runs}), md=page, svg=picture)
    print(page)
    if args.quick and any(run["outcome"] != "finished" for run in runs):
        raise SystemExit(1)


def tail(job: Job) -> list[str]:
    """The last lines of the engine's logs."""
    found = []
    for log in sorted(job.work.glob("*log*"))[:6]:
        lines = log.read_text(errors="replace").splitlines()
        found += [f"-- {log.name}", *lines[-15:]]
    return found
