"""kill -9 and full disks: what is lost?  Nothing, or this ends with an error.

    python -m benchmarks kills --fedml ENV/bin/python --flower ENV/bin/python [--write]

Kills processes at seeded random moments, starts them again and compares the adapter
with that of a run which nobody disturbed, by SHA-256; reads every file that has its
final name after each kill; and waits until nothing of what was started still runs.  A
host is left out where no Python with it is given.  Some ten minutes on two free cores.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

from benchmarks.command import ROOT, build_parser, parse, save, table
from fedclip_plugin.bench.timing import machine
from tests.cli.test_parser import make_images
from tests.faults.kills import Toll, break_encoder, break_runs, sha256, share_cache
from tests.federation.toy import write_toy

PAGES = {  # of 4 kB, that are left of the disk
    "run": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 17, 20),
    "encode": (0, 1, 2, 3, 4, 5, 6, 8, 10, 12),
}
GOES_ON = {
    "embedded run": "`fedclip run --resume`",
    "feature encoder": "the same command",
    "one of four at a cache": "the others go on",
    "FedML server": "`fedclip fedml ... --resume`, clients left running",
    "FedML client": "the same command, the server left running",
    "Flower strategy": "`resume = true`; nodes in the same process",
    "ServerApp": "`flwr run` with `resume=true`",
    "SuperLink": "SuperLink and SuperNodes anew, `flwr run` with `resume=true`",
    "SuperNode": "the same command; the run goes on meanwhile",
}
LOST = {"SuperNode": "at most its answer to that round"}
Report = dict[str, Any]


def core(folder: Path, seed: int, quick: bool = False) -> Report:
    """What needs no host: the embedded run, the encoder, the cache, full disks."""
    toll = Toll(seed)
    runs, encodings = (1, 1) if quick else (20, 12)
    apart(folder, lambda place: break_runs(place, write_toy(place / "f"), toll, runs))
    apart(folder, lambda place: break_encoder(place, 160, toll, encodings))
    if not quick:
        apart(folder, lambda place: share_cache(place, 120, toll, 2))
    pages = {k: v[:1] if quick else v for k, v in PAGES.items()}
    disks = {
        k: apart(folder, partial(full_disk, what=k, pages=pages[k])) for k in pages
    }
    return {"kills": toll.kills, "compared": toll.compared, "disks": disks}


def fedml(folder: Path, seed: int) -> Report:
    """Server (rank 0) and clients over gRPC."""
    from tests.faults.fedml_kills import break_silo

    toll = Toll(seed)
    for victims in ([0, 1, 0, 2, 0], [2, 0, 0, 1, 0]):
        place = Path(tempfile.mkdtemp(dir=folder))
        break_silo(place, write_toy(place / "f"), toll, victims)
    return {"kills": toll.kills, "compared": toll.compared}


def flower(folder: Path, seed: int) -> Report:
    """The strategy alone, and deployments with TLS."""
    from tests.faults.flower_kills import break_deployment, break_nodes, break_strategy

    toll = Toll(seed)
    apart(folder, lambda p: break_strategy(p, write_toy(p / "f"), toll, 8))
    apart(folder, lambda p: break_deployment(p, toll, ["ServerApp", "SuperLink"] * 2))
    apart(folder, lambda p: break_nodes(p, toll, 2))
    return {"kills": toll.kills, "compared": toll.compared}


PARTS: dict[str, Callable[[Path, int], Report]] = {
    "core": core,
    "fedml": fedml,
    "flower": flower,
}


def apart(folder: Path, work: Callable[[Path], Any]) -> Any:
    """``work`` in a directory of its own."""
    start = time.monotonic()
    found = work(Path(tempfile.mkdtemp(dir=folder)))
    print(f"done, {time.monotonic() - start:.0f} s", file=sys.stderr)
    return found


def full_disk(folder: Path, what: str, pages: Sequence[int]) -> int | None:
    """How often a real full disk broke the work off; None where none can be mounted."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        return None
    write_toy(folder / "f")
    make_images(folder / "images")
    command = [
        "unshare",
        "-m",
        sys.executable,
        "-m",
        "tests.faults.full_disk",
        str(folder),
    ]
    done = subprocess.run(
        [*command, what, *map(str, (*pages, 400))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    for each in found:
        assert (each["code"], each["done"]) in ((2, 0), (0, 0)), each
        assert len(each["said"].splitlines()) == (each["code"] == 2), each
    assert found[-1]["code"] == 0
    files = list(
        folder.glob("*-adapter.safetensors" if what == "run" else "features-*/*")
    )
    for name in {path.name.partition("-")[2] or path.name for path in files}:
        same = {sha256(p) for p in files if p.name.endswith(name)}
        assert len(same) == 1, name
    return len([each for each in found if each["code"] == 2])


def part_elsewhere(name: str, python: Path, seed: int) -> Report:
    """A part in another environment."""
    command = [str(python), "-m", "benchmarks", "kills", "--part", name]
    done = subprocess.run(
        [*command, "--seed", str(seed)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(
            f"{name}: something was lost, or did not go on:\n{done.stdout}"
        )
    found: Report = json.loads(done.stdout.splitlines()[-1])
    return found


def report(reports: dict[str, Report], seed: int) -> str:
    """The result as Markdown."""
    about = machine()
    kills = {k: n for r in reports.values() for k, n in r["kills"].items()}
    body = [
        [name, f"{n}", GOES_ON[name], LOST.get(name, "nothing")]
        for name, n in kills.items()
    ]
    body.append(["all", f"{sum(kills.values())}", "", ""])
    lines = [
        "# kill -9 at random moments, and full disks",
        "",
        f"`python -m benchmarks kills`, seed {seed}; {about['date']}, {about['cpu']}.",
        "",
        *table(["killed", "times", "goes on with", "lost"], body),
        "",
        f"{sum(r['compared'] for r in reports.values())} adapters and feature sets "
        "were compared with those of runs that nobody disturbed: the same bits.  After "
        "every kill all files with their final names were whole; at the end no round "
        "stood twice in `metrics.jsonl`, and no process was left.",
    ]
    disks = reports["core"]["disks"]
    if None not in disks.values():
        lines += [
            "",
            f"A full disk (tmpfs) broke {disks['run']} runs and {disks['encode']} "
            "encodings off, anywhere between the first file and the last: exit code 2, "
            "one line with file and remedy, and the same bits once there was space.",
        ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Run all parts, or the one that another environment was asked for."""
    parser = build_parser("kills", __doc__)
    parser.add_argument("--part", choices=tuple(PARTS), help="this one, as JSON")
    parser.add_argument("--fedml", type=Path, metavar="PYTHON")
    parser.add_argument("--flower", type=Path, metavar="PYTHON")
    parser.add_argument("--seed", type=int, default=0)
    args = parse(parser, argv)
    with tempfile.TemporaryDirectory(prefix="fedclip-kills-") as name:
        if args.part:
            print(json.dumps(PARTS[args.part](Path(name), args.seed)))
            return
        reports = {"core": core(Path(name), args.seed, args.quick)}
    for host, python in (("fedml", args.fedml), ("flower", args.flower)):
        if python is not None:
            reports[host] = part_elsewhere(host, python, args.seed)
    page = report(reports, args.seed)
    save(args.out, "kills", md=page)
    print(page)
