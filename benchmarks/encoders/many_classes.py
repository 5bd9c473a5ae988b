"""A thousand classes, and iNaturalist's 5,089: seconds and peak memory of every step.

    python -m benchmarks many-classes [--classes 1000 5089] [--rows N]

Features are drawn around the text features of their classes; each step is a process of
its own, whose peak memory is that of the whole process, torch included.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command import (
    ROOT,
    build_parser,
    measured_on,
    parse,
    random_features,
    save,
    table,
)
from fedclip_plugin.bench.timing import machine

DOMAINS = ("a", "b", "c", "d")
STEPS = {
    "captions": "",
    "fedclip, 3 rounds": "fedclip --rounds 3",
    "gda": "gda",
    "linear, 3 rounds": "linear --rounds 3",
}
CAPTIONS = """
from fedclip_plugin.clip.encoder import EncoderSpec, FrozenClip
from fedclip_plugin.clip.prompts import captions
from fedclip_plugin.features.encode import encode_captions
clip = FrozenClip.load(EncoderSpec("fedclip-tiny", "fedclip-tiny"))
names = [f"species number {i}" for i in range(CLASSES)]
encode_captions(clip, [captions(names, "a photo of a {}")])
"""
PEAK = """
import resource, sys
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""
COMMAND = """
import sys
from fedclip_plugin.cli import main
code = main(WORDS)
if code:
    sys.exit(code)
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run every step and tell what it took."""
    parser = build_parser("many-classes", __doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[1000, 5089])
    parser.add_argument("--rows", type=int, default=10_000, help="a domain")
    args = parse(parser, argv, classes=[300], rows=600)
    rows = []
    for classes in args.classes:
        with tempfile.TemporaryDirectory() as place:
            rows += measure(Path(place), classes, args.rows)
    lines = [
        "# Many classes",
        "",
        f"`python -m benchmarks many-classes`; {measured_on(machine())}.  "
        f"{len(DOMAINS)} domains of {args.rows:,} rows, 512 wide, one held out; whole "
        "commands, report included; the captions by fedclip-tiny.",
        "",
        *table(["step", "classes", "seconds", "peak memory"], rows),
        "",
        "A matrix of all test rows by all classes in float64 would take "
        f"{args.rows * max(args.classes) * 8 / 2**30:.1f} GiB.",
    ]
    save(args.out, "many-classes", md="\n".join(lines) + "\n")
    print("\n".join(lines))


def measure(place: Path, classes: int, rows: int) -> list[list[str]]:
    """A row of the table for every step."""
    from fedclip_plugin.features.feature_set import save_features

    save_features(random_features(rows, DOMAINS, classes=classes), place / "features")
    found = []
    for step, words in STEPS.items():
        code = CAPTIONS.replace("CLASSES", str(classes))
        if words:
            run = ["run", "--features", str(place / "features"), "--target", "d"]
            run += ["--quiet", "--out", str(place / step), "--alg", *words.split()]
            code = COMMAND.replace("WORDS", repr(run))
        start = time.perf_counter()
        command = [sys.executable, "-c", code + PEAK]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"{step} with {classes} classes: {done.stderr[-500:]}")
        peak = int(done.stderr.split()[-1]) / 1024
        found.append([step, f"{classes:,}", f"{seconds:.1f}", f"{peak:,.0f} MiB"])
    return found
