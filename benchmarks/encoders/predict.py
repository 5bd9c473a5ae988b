"""Images a second of ``fedclip predict`` beside ``fedclip features``, in turn.

    python -m benchmarks predict --images PACS_MINI --model-config DIR --model NAME
                                 --pretrained FILE [--repeats N]

Both load the model, read and encode the same images; a repeat does one after the other,
from an empty cache, so that a change of the machine's load meets both.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command import build_parser, measured_on, parse, save, table
from benchmarks.encoders import zoo
from fedclip_plugin.bench.timing import machine
from fedclip_plugin.cli import main as fedclip


def main(argv: Sequence[str] | None = None) -> None:
    """Time both and compare."""
    parser = build_parser("predict", __doc__)
    add = parser.add_argument
    add("--images", type=Path, metavar="DIR", help="<domain>/<class>/<image>")
    add("--model", default="fedclip-tiny")
    add("--model-config", metavar="DIR")
    add("--pretrained", metavar="FILE")
    add("--repeats", type=int, default=3)
    args = parse(parser, argv, repeats=1)
    words = ["--model", args.model]
    for flag in ("model_config", "pretrained"):
        if value := getattr(args, flag):
            words += [f"--{flag.replace('_', '-')}", value]
    with tempfile.TemporaryDirectory() as place:
        images = args.images or zoo.write_images(Path(place, "images"))
        pairs = measure(Path(place), images, words, args.repeats)
    shares = [features / predict for features, predict, _ in pairs]
    rows = [
        [str(i), f"{n / f:.1f}", f"{n / p:.1f}", f"{f / p:.2f}"]
        for i, (f, p, n) in enumerate(pairs, 1)
    ]
    lines = [
        "# Prediction beside encoding",
        "",
        f"`python -m benchmarks predict`; {measured_on(machine())}.  {pairs[0][2]} "
        f"images, {args.model}; images a second of the whole command, its start and "
        "the model's loading included; in turn.",
        "",
        *table(["repeat", "features", "predict", "predict / features"], rows),
        "",
        f"Median share: {statistics.median(shares):.2f}.",
    ]
    save(args.out, "predict", md="\n".join(lines) + "\n")
    print("\n".join(lines))


def measure(
    place: Path, images: Path, model: Sequence[str], repeats: int
) -> list[tuple[float, float, int]]:
    """Seconds of features and of predict, and the images, of every repeat."""
    data = ["--dataset", "images", "--root", str(images), *model]
    os.environ["FEDCLIP_CACHE"] = str(place / "cache")
    features, run = str(place / "features"), str(place / "run")
    _timed(["features", "--to", features, *data])  # imports, and the run's features
    short = ["--rounds", "1", "--target", "none"]
    _timed(["run", "--features", features, "--out", run, *short])
    count = sum(1 for path in images.rglob("*") if path.is_file())
    pairs = []
    for number in range(repeats):
        os.environ["FEDCLIP_CACHE"] = str(place / f"cache-{number}")
        again = str(place / f"features-{number}")
        encoded = _timed(["features", "--to", again, *data])
        words = ["predict", run, str(images), *model, "--format", "csv"]
        pairs.append((encoded, _timed(words), count))
    return pairs


def _timed(words: list[str]) -> float:
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        code = fedclip([*words, "--quiet"])
    if code:
        raise SystemExit(f"fedclip {words[0]}: exit code {code}")
    return time.perf_counter() - start
