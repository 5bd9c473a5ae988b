"""kill -9 at random moments, and what must be true of the files after each.

Shared by the tests (a few kills) and ``python -m benchmarks kills`` (all of them).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from fedclip_plugin.cli import main
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.data.dataset import ImageDataset, ImageDomain
from fedclip_plugin.data.digits import digits_dataset
from fedclip_plugin.features.encode import EncodeStats, EncodingJob, encode_once
from fedclip_plugin.features.feature_set import FeatureSet
from fedclip_plugin.settings.sources import load_config
from fedclip_plugin.storage.tensors import digest_tensors, read_tensors
from tests.faults.brake import RELEASED, Brake, braked
from tests.waiting import SECONDS, wait_until

PRELOAD = [
    "fedclip_plugin.runs.experiment",
    "fedclip_plugin.report.page.page",
    "tests.faults.kills",
]
PRELOAD += ["open_clip", "fedclip_plugin.clip.encoder", "sklearn.datasets"]


@dataclass
class Toll:
    """Kills by victim; how often what came of it was compared, bit for bit."""

    seed: int
    kills: dict[str, int] = field(default_factory=dict)
    compared: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)

    def count(self, victim: str) -> None:
        """One more kill of ``victim``."""
        self.kills[victim] = self.kills.get(victim, 0) + 1


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rounds_in(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


# ------------------------------------------------------------- processes of our own


def start(target: Callable[..., None], *args: object) -> ForkServerProcess:
    """Run ``target`` in a process; torch is loaded there already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def kill(process: ForkServerProcess) -> None:
    """kill -9; nothing that it started goes on."""
    assert process.pid is not None
    with contextlib.suppress(FileNotFoundError):  # it is over
        tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        assert tasks.read_text() == ""
    os.kill(process.pid, signal.SIGKILL)
    process.join()


@contextlib.contextmanager
def running(target: Callable[..., None], *args: object) -> Iterator[ForkServerProcess]:
    process = start(target, *args)
    try:
        yield process
    finally:
        if process.is_alive():
            process.kill()
        process.join()


def command(argv: list[str], folder: Path) -> None:
    """``fedclip ARGV`` in ``folder``; what it says on stderr goes to ``log`` there."""
    os.chdir(folder)
    write_to(Path("log"))
    write_to(Path(os.devnull), 1)
    sys.exit(main(argv))


def write_to(log: Path, *streams: int) -> None:
    """Append what this process says to ``log``."""
    with log.open("ab") as file:
        for stream in streams or (1, 2):
            os.dup2(file.fileno(), stream)


def here(argv: list[str]) -> None:
    """``fedclip ARGV`` in this process."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(argv) == 0


# ------------------------------------------------------------------ the embedded run


def break_runs(
    folder: Path, features: Path, toll: Toll, kills: int, rounds: int = 12
) -> None:
    """``fedclip run`` of two targets, killed ``kills`` times, resumed, compared.

    Each time it may do up to ``rounds`` rounds first; with 0 it is killed as it starts.
    """
    argv = ["run", "--features", str(features), "--target", "photo", "art"]
    argv += ["--rounds", "40", "--lr", "0.001", "--quiet"]
    whole, out, killed = folder / "whole", folder / "broken", 0
    here([*argv, "--out", str(whole)])
    while killed < kills:
        with running(command, start_or_resume(argv, out), folder) as process:
            killed += _struck(process, out, toll, rounds)
    log = (folder / "log").read_text() if (folder / "log").exists() else ""
    assert log == "", log  # --quiet: no error, no warning
    here(start_or_resume(argv, out))
    compare_runs(whole, out, toll)


def start_or_resume(argv: list[str], out: Path) -> list[str]:
    """The run ``argv`` into ``out``; resumed where it got as far as its first file."""
    begun = (out / "config.toml").exists()
    line = ["run", "--resume", "--quiet"] if begun else argv
    return [*line, "--out", str(out)]


def _struck(process: ForkServerProcess, out: Path, toll: Toll, rounds: int) -> bool:
    """Kill a run after some more rounds; False where it was over before."""
    goal = _all_rounds(out) + toll.rng.randint(0, rounds)
    wait_until(lambda: not process.is_alive() or _all_rounds(out) >= goal)
    time.sleep(toll.rng.random() * 0.05)
    if process.is_alive():
        kill(process)
        toll.count("embedded run")
        check_files(out)
        return True
    assert process.exitcode == 0
    compare_runs(out.with_name("whole"), out, toll)
    shutil.rmtree(out)
    return False


def _all_rounds(out: Path) -> int:
    return sum(map(rounds_in, out.glob("**/metrics.jsonl")))


def check_files(out: Path) -> None:
    """Whatever has its final name is whole."""
    for path in out.rglob("*.safetensors"):
        if not path.name.startswith("."):
            read_tensors(path)
    for path in out.rglob("*.json"):
        if not path.name.startswith("."):
            json.loads(path.read_text())
    for path in out.rglob("config.toml"):
        load_config(path)
    for path in out.rglob("checkpoint/last.safetensors"):
        _, meta = read_tensors(path)
        reached = json.loads(meta["progress"])["round"]
        assert rounds_in(path.parents[1] / "metrics.jsonl") >= reached


def compare_runs(whole: Path, out: Path, toll: Toll) -> None:
    """Same adapters by SHA-256, same rounds once each, nothing left lying about."""
    names = [p.relative_to(whole) for p in whole.rglob("adapter.safetensors")]
    assert names
    for name in names:
        assert sha256(whole / name) == sha256(out / name)
        assert timeless(whole / name.parent) == timeless(out / name.parent)
        toll.compared += 1
    assert not list(out.rglob("*.tmp"))


def timeless(leaf: Path) -> list[dict[str, object]]:
    """The lines of ``metrics.jsonl`` without what is never the same twice."""
    lines = (leaf / "metrics.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": None} for line in lines]


# ------------------------------------- a host's server, whose sites are in its process


def break_serving(
    serve: Callable[[Path, Path, int, Path], None],
    victim: str,
    folder: Path,
    toy: Path,
    toll: Toll,
    kills: int,
) -> None:
    """Kill the process of a host's server in some round, and submit the run again.

    ``serve(toy, out, rounds, log)`` is a run that goes on where there is one.
    """
    rounds, out, log = 6 * (kills + 1), folder / "out", folder / "log"
    stop = Brake(folder / "brake")
    _serve_all(serve, toy, folder / "whole", rounds, log)
    for _ in range(kills):
        metrics = out / "metrics.jsonl"
        goal = rounds_in(metrics) + toll.rng.randint(1, 4)
        stop.let(goal + 2)
        with running(braked, stop.file, serve, toy, out, rounds, log) as process:
            wait_until(lambda m=metrics, g=goal: rounds_in(m) >= g)
            time.sleep(toll.rng.random() * 0.03)
            assert process.is_alive()
            kill(process)
        toll.count(victim)
        check_files(out)
    _serve_all(serve, toy, out, rounds, log)
    adapter = "adapter.safetensors"
    assert sha256(folder / "whole" / adapter) == sha256(out / adapter)
    assert timeless(folder / "whole") == timeless(out)
    toll.compared += 1


def _serve_all(serve: Callable[..., None], *arguments: Any) -> None:
    """To the last round; ``arguments`` end with the log."""
    with running(serve, *arguments) as process:
        process.join(SECONDS)
        assert process.exitcode == 0, arguments[-1].read_text()


# ----------------------------------------------------------------------- the encoder


def some_digits(rows: int) -> ImageDataset:
    """The first ``rows`` digits of every domain."""
    whole = digits_dataset()
    domains = tuple(
        ImageDomain(d.name, d.files[:rows], d.labels[:rows], d.read)
        for d in whole.domains
    )
    return ImageDataset("some-digits", whole.classes, domains)


def encode(
    rows: int, cache: Path, stop: Path | None = None
) -> tuple[FeatureSet, EncodeStats]:
    """Encode with the shipped CLIP; a shard for every batch.

    ``stop`` is a file that holds how many shards there may be.
    """
    from fedclip_plugin.clip.encoder import EncoderSpec, FrozenClip, fingerprint
    from fedclip_plugin.features import store

    store.SHARD_ROWS = 1
    spec = EncoderSpec.from_config(RunConfig())

    def load() -> FrozenClip:
        clip = FrozenClip.load(spec)
        return clip if stop is None else _held(clip, cache, stop)

    job = EncodingJob(
        dataset=some_digits(rows),
        model="fedclip-tiny",
        pretrained="fedclip-tiny",
        prompts=("a picture of a {}",),
        encoder_key=fingerprint(spec),
        load_encoder=load,
    )
    return encode_once(job, cache)


def _held(clip: Any, cache: Path, stop: Path) -> Any:
    """The encoder, which waits where there are as many shards as there may be."""
    encode_images = clip.encode_images

    def encode_or_wait(pixels: Any) -> Any:
        while len(shards(cache)) >= int(stop.read_text()):
            time.sleep(0.01)
        return encode_images(pixels)

    clip.encode_images = encode_or_wait
    return clip


def encode_in_a_process(
    rows: int, cache: Path, log: Path, stop: Path | None = None
) -> None:
    logging.basicConfig(filename=log, level=logging.WARNING)
    encode(rows, cache, stop)


def digest_features(features: FeatureSet) -> str:
    """SHA-256 over all features, labels and the key."""
    tensors = {f"image/{k}": v for k, v in features.image.items()}
    tensors |= {f"label/{k}": v for k, v in features.label.items()}
    return digest_tensors({**tensors, "text": features.text}) + features.key


def shards(cache: Path) -> list[Path]:
    return sorted(cache.glob("features/*/shard-*.safetensors"))


def break_encoder(folder: Path, rows: int, toll: Toll, kills: int) -> None:
    """Encoding, killed ``kills`` times; it goes on, and ends in the same bits."""
    whole, _ = encode(rows, folder / "whole")
    cache, log, killed = folder / "cache", folder / "log", 0
    log.touch()  # a process may be killed before it does
    most = max(1, rows * 4 // 16 // (kills + 1))  # batches of 16 between two kills
    while killed < kills:
        goal = len(shards(cache)) + toll.rng.randint(0, most)
        with running(encode_in_a_process, rows, cache, log) as process:
            wait_until(
                lambda p=process, g=goal: not p.is_alive() or len(shards(cache)) >= g
            )
            time.sleep(toll.rng.random() * 0.03)
            if process.is_alive():
                kill(process)
                toll.count("feature encoder")
                killed += 1
                for path in shards(cache):
                    read_tensors(path)
                continue
            assert process.exitcode == 0
        shutil.rmtree(cache)
    stored = sum(len(read_tensors(p)[0]["digest"]) for p in shards(cache))
    features, stats = encode(rows, cache)
    assert stats.encoded == stats.images - stored  # what was kept is not done again
    assert digest_features(features) == digest_features(whole)
    assert log.read_text() == "", log.read_text()  # nothing was damaged
    assert not list(cache.rglob("shard-*.tmp"))
    toll.compared += 1


def share_cache(folder: Path, rows: int, toll: Toll, kills: int) -> None:
    """Four processes encode the same images; ``kills`` of them are killed."""
    whole, _ = encode(rows, folder / "whole")
    cache, log = folder / "cache", folder / "log"
    log.touch()
    stop = Brake(folder / "brake")
    with contextlib.ExitStack() as stack:
        four = [
            stack.enter_context(
                running(encode_in_a_process, rows, cache, log, stop.file)
            )
            for _ in range(4)
        ]
        for process in toll.rng.sample(four, kills):
            goal = len(shards(cache)) + toll.rng.randint(1, 3)
            stop.let(goal)
            wait_until(lambda g=goal: len(shards(cache)) >= g)
            assert process.is_alive()  # it encodes, or waits for the one that does
            kill(process)
            toll.count("one of four at a cache")
        stop.let(RELEASED)
        for process in four:
            process.join(SECONDS)
    codes = sorted(p.exitcode or 0 for p in four)
    assert codes == [-signal.SIGKILL] * kills + [0] * (4 - kills)
    features, stats = encode(rows, cache)
    assert stats.encoded == 0
    assert digest_features(features) == digest_features(whole)
    lines = log.read_text().splitlines()
    assert all("another process is encoding" in line for line in lines)
    toll.compared += 1
