"""Does every kind of CLIP encode, train, evaluate, predict, export and pass doctor?

    python -m benchmarks models [--only siglip2 coca]

Small variants with random weights (``zoo.py``), each by the commands of a user.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command import build_parser, measured_on, parse, save, table
from benchmarks.encoders import zoo
from fedclip_plugin.bench.timing import machine
from fedclip_plugin.cli import main as fedclip

STEPS = ("doctor", "encode", "train", "evaluate", "predict", "export")
COUNT = 256  # images that are encoded for the rate


def main(argv: Sequence[str] | None = None) -> int:
    """1 where one step of one model failed."""
    parser = build_parser("models", __doc__)
    parser.add_argument("--only", nargs="+", choices=sorted(zoo.ZOO), metavar="NAME")
    parser.add_argument("--formats", nargs="+", choices=("torch", "onnx"),
                        default=["torch", "onnx"])  # fmt: skip
    args = parse(parser, argv, only=["vit"], formats=["torch"])
    rows, failed = [], False
    with tempfile.TemporaryDirectory() as place:
        os.environ["FEDCLIP_CACHE"] = str(Path(place, "cache"))
        data = zoo.write_images(Path(place, "data"))
        for name in args.only or zoo.ZOO:
            row = judge(name, Path(place), data, args.formats)
            failed = failed or any(value.startswith("exit") for value in row)
            rows.append(row)
            print(" | ".join(row), flush=True)
    lines = [
        "# Every kind of CLIP",
        "",
        f"`python -m benchmarks models`; {measured_on(machine())}.  Small variants of "
        "the published architectures, random weights; seconds of each command, once, "
        f"export to {' and '.join(args.formats)}; images/s of the image tower with "
        f"{zoo.PIXELS} pixels (they compare nothing but these small ones).",
        "",
        *table(["variant", "of", "parameters", *STEPS, "images/s"], rows),
    ]
    save(args.out, "models", md="\n".join(lines) + "\n")
    print("\n".join(lines))
    return int(failed)


def judge(name: str, place: Path, data: Path, formats: Sequence[str]) -> list[str]:
    """The row of one model: seconds of every step, or the exit code."""
    folder = zoo.save(name, place / "models")
    of = ["--dataset", "shapes", "--root", str(data)]
    model = ["--model", f"local-dir:{folder}"]
    run, features = str(place / f"{name}-run"), str(place / f"{name}-features")
    export = [word for each in formats for word in ("--format", each)]
    commands = {
        "doctor": ["doctor", *of, *model],
        "encode": ["features", "--to", features, *of, *model],
        "train": [
            "run",
            "--rounds",
            "2",
            "--target",
            "dark",
            "--out",
            run,
            *of,
            *model,
        ],
        "evaluate": ["evaluate", run, *of],
        "predict": ["predict", run, str(data)],
        "export": ["export", run, "--to", f"{run}-export", *export],
    }
    spent = [_timed(commands[step]) for step in STEPS]
    parameters, rate = _rate(folder)
    return [name, zoo.ZOO[name].like, f"{parameters:,}", *spent, f"{rate:.0f}"]


def _timed(words: list[str]) -> str:
    start, said = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = fedclip([*words, "--quiet"])
    return f"{time.perf_counter() - start:.1f} s" if code == 0 else f"exit {code}"


def _rate(folder: Path) -> tuple[int, float]:
    """Parameters of a model, and how many images a second it encodes."""
    import torch

    from fedclip_plugin.clip.encoder import EncoderSpec, FrozenClip

    clip = FrozenClip.load(EncoderSpec(f"local-dir:{folder}", "auto", None, "fp32"))
    pixels = torch.randn(16, 3, *clip.source.image_size)
    clip.encode_images(pixels)
    start = time.perf_counter()
    for _ in range(COUNT // len(pixels)):
        clip.encode_images(pixels)
    seconds = time.perf_counter() - start
    return sum(p.numel() for p in clip.model.parameters()), COUNT / seconds
