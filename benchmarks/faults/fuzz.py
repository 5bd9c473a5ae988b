"""Does broken input of any kind crash, hang or bloat what reads it?

``python -m benchmarks fuzz --seconds 60 --write`` feeds everything that reads bytes of
strangers (updates, files, foreign runs), and gives each reader so long.  With
atheris (``pip install atheris``; it has wheels for some Pythons) libFuzzer is led by
the coverage of the package; without it, bytes are mutated at random.  A reader that
raises anything but its own error, hangs for ten seconds, or takes more than its share
of memory has failed: its input is kept, and the exit code is 1.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import random
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.command import ROOT, build_parser, parse, save, table

LONGEST = 4096  # bytes of an input
PATIENCE = 10  # seconds for one input
GROWTH = 512  # MiB that a reader may take beyond what it began with
COUNTS = "counts"  # the file of a reader's counts
_COUNTED = struct.Struct("<4q")  # inputs, taken for good, MiB at the start, at most
PACKAGES = ("storage", "wire", "features", "federation", "report", "runs", "data")


@dataclass(frozen=True)
class Outcome:
    """What became of one reader."""

    name: str
    runs: int
    taken: int  # inputs taken for good
    seconds: float
    peak: int  # MiB of the process
    fault: str


def peak_mib() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def mutated(seeds: list[bytes], chance: random.Random) -> bytes:
    """A seed with one to four changes; now and then any bytes."""
    if chance.random() < 0.02:
        return chance.randbytes(chance.randrange(LONGEST))
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        to = min(len(data), at + chance.randrange(1, 9))
        other = chance.choice(seeds)
        start = chance.randrange(len(other) + 1)
        data[at:to] = chance.choice(
            [
                b"",
                chance.randbytes(to - at),
                other[start : start + 32],
                data[at:to] * 2,
                chance.choice([b"NaN", b"-1", b"true", b"null", b"1e999", b"[[[["]),
            ]
        )
    return bytes(data[:LONGEST])


# -------------------------------------------------------------------- one reader, here


class Watched:
    """A target that counts in a file, for libFuzzer ends the process as it likes."""

    def __init__(self, name: str, kept: Path) -> None:
        import logging

        from benchmarks.faults.fuzz_targets import TARGETS

        logging.getLogger("fedclip").disabled = True
        warnings.simplefilter("ignore")  # Pillow's, of every second image
        self.target = TARGETS[name]
        self.seeds = self.target.seeds()
        (kept / COUNTS).write_bytes(bytes(_COUNTED.size))
        with (kept / COUNTS).open("r+b") as file:
            self._counts = mmap.mmap(file.fileno(), _COUNTED.size)
        self.runs = self.taken = self.before = 0
        for seed in self.seeds:
            self(seed)
        self.before = peak_mib()

    def __call__(self, data: bytes) -> None:
        """One input."""
        self.runs += 1
        counts = (self.runs, self.taken, self.before, peak_mib())
        _COUNTED.pack_into(self._counts, 0, *counts)
        self.taken += self.target(data)


def run_random(name: str, seconds: float, seed: int, kept: Path) -> None:
    """Mutate at random; the input of a fault goes to ``kept``."""
    watched, chance = Watched(name, kept), random.Random(seed)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(watched.seeds, chance)
        try:
            start = time.monotonic()
            watched(data)
            if time.monotonic() - start > PATIENCE:
                raise TimeoutError(f"one input took more than {PATIENCE} s")
        except Exception:  # whatever a reader lets out is the fault looked for
            (kept / "crash-random").write_bytes(data)
            traceback.print_exc()
            raise SystemExit(1) from None


def run_guided(name: str, seconds: float, seed: int, kept: Path) -> None:
    """libFuzzer by way of atheris; it ends the process itself."""
    import atheris

    own = [f"fedclip_plugin.{name}" for name in PACKAGES]
    with atheris.instrument_imports(include=own):
        watched = Watched(name, kept)
    corpus = kept / "corpus"
    corpus.mkdir()
    for number, data in enumerate(watched.seeds):
        (corpus / str(number)).write_bytes(data)
    options = [
        f"-max_total_time={int(seconds)}",
        f"-seed={seed + 1}",
        f"-max_len={LONGEST}",
        f"-timeout={PATIENCE}",
        f"-rss_limit_mb={watched.before + GROWTH}",
        f"-artifact_prefix={kept}{os.sep}",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], watched)
    atheris.Fuzz()


# ------------------------------------------------------------------- all, one after one


def fuzz(name: str, guided: bool, seconds: float, seed: int, folder: Path) -> Outcome:
    """Fuzz one reader in a process of its own."""
    kept = folder / re.sub(r"\W+", "-", name)
    kept.mkdir()
    command = [sys.executable, "-m", "benchmarks", "fuzz", "--only", name]
    command += ["--seconds", str(seconds), "--seed", str(seed), "--kept", str(kept)]
    command += [] if guided else ["--random"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    start = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, env=env, text=True, errors="replace",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    spent = time.monotonic() - start
    counts = kept / COUNTS
    held = counts.read_bytes() if counts.exists() else bytes(_COUNTED.size)
    runs, taken, before, peak = _COUNTED.unpack(held)
    fault = "" if runs else "nothing was run"
    if done.returncode:
        log = kept / "log.txt"
        log.write_text(done.stdout)
        fault = f"exit code {done.returncode}: {log}"
    elif peak - before > GROWTH:
        fault = f"memory grew by {peak - before} MiB"
    return Outcome(name, runs, taken, spent, peak, fault)


def report(outcomes: list[Outcome], how: str, seconds: float) -> str:
    """The results, as Markdown."""
    from fedclip_plugin.bench.timing import machine

    head = ["reader", "inputs", "taken for good", "crashes, hangs", "peak RSS, MiB"]
    body = [
        [o.name, f"{o.runs:,}", f"{o.taken:,}", o.fault or "0", f"{o.peak:,}"]
        for o in outcomes
    ]
    faults = sum(bool(outcome.fault) for outcome in outcomes)
    lines = [
        "# Fuzzing of what reads foreign bytes",
        "",
        f"`python -m benchmarks fuzz --seconds {seconds:g} --write`, {how};",
        ", ".join(f"{key} {value}" for key, value in machine().items()) + ".",
        "",
        f"{sum(o.runs for o in outcomes):,} inputs, {faults} faults. A fault is any "
        f"exception but the reader's own error, more than {PATIENCE} s for an input,",
        f"or {GROWTH} MiB beyond the start.",
        "",
        *table(head, body),
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz all readers, or the one that is named."""
    parser = build_parser("fuzz", __doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=20, help="for each reader")
    add("--only", help="one reader, in this process")
    add("--random", action="store_true", help="without atheris")
    add("--seed", type=int, default=0)
    add("--kept", type=Path, help="where inputs of faults go")
    args = parse(parser, argv, seconds=0.5)
    guided = not args.random and importlib.util.find_spec("atheris") is not None
    folder = args.kept or Path(tempfile.mkdtemp(prefix="fedclip-fuzz-"))
    if args.only:
        work = run_guided if guided else run_random
        work(args.only, args.seconds, args.seed, folder)
        return 0
    from benchmarks.faults.fuzz_targets import TARGETS

    how = "atheris (libFuzzer)" if guided else "random mutations"
    outcomes = []
    for name in list(TARGETS)[:: 5 if args.quick else 1]:
        outcomes.append(fuzz(name, guided, args.seconds, args.seed, folder))
        print(outcomes[-1], file=sys.stderr, flush=True)
    page = report(outcomes, how, args.seconds)
    save(args.out, "fuzz", md=page)
    print(page)
    return int(any(outcome.fault for outcome in outcomes))
