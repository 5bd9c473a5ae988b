"""How long does FedCLIP take on PACS, from images on: the authors' code and ours?

    PERSONALIZEDFL_HOME=~/PersonalizedFL python -m benchmarks vs-reference --images PACS

Both sides get the same images, model, weights and threads, in turn: a round of the
authors' main script, a whole `fedclip run` of ours from an empty cache with the
precision that `auto` chooses, and one in fp32.  What is measured on a part is carried
to 200 rounds of all of PACS by `round_cost.py`; README.md states the formulas.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.authors import round_cost as cost
from benchmarks.authors import vs_report
from benchmarks.command import PACS, ROOT, as_json, parse, save
from benchmarks.command import build_parser as common_parser

EPILOG = """\
examples:
  quick look, our side only, on 20 images of each class and domain:
      python -m benchmarks vs-reference --images PACS
  both sides; ours encodes all of --images, so that no image of it is extrapolated:
      PERSONALIZEDFL_HOME=DIR python -m benchmarks vs-reference --images PACS --ours-all
PERSONALIZEDFL_HOME is a checkout of the PersonalizedFL repository.  Where OpenAI's
package `clip` is not installed a stand-in with open_clip's ViT-B/32 takes its place;
without --pretrained both sides have the same random weights: the work is the same.
"""


def build_parser() -> argparse.ArgumentParser:
    parser = common_parser("vs-reference", __doc__)
    parser.epilog = EPILOG
    add = parser.add_argument
    # fmt: off
    add("--images", metavar="DIR",
        help="PACS: art_painting, cartoon, photo, sketch, with class folders")
    add("--images-per-class", metavar="N", type=int, default=20,
        help="measure on the first N of each class and domain; 0 = all (default: 20)")
    add("--authors-rounds", metavar="N", type=int, default=2,
        help="passes: a round of theirs and two runs of ours each (default: 2)")
    add("--our-rounds", metavar="N", type=int, default=20,
        help="rounds of each of our runs, at PACS's full size (default: 20)")
    add("--ours-all", action="store_true",
        help="ours with precision auto encodes all of --images, not only that part")
    add("--threads", metavar="N", type=int, default=len(os.sched_getaffinity(0)),
        help="threads of both sides (default: the cores here)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    add(
        "--model",
        default="ViT-B-32-quickgelu",
        help="open_clip model, default: %(default)s",
    )
    add("--model-config", metavar="DIR", help="folder with further model configs")
    add("--pretrained", metavar="FILE", help="weights (default: random, seeded)")
    # fmt: on
    return parser


# ---------------------------------------------------------------------------- inputs


def write_subset(images: str, per_class: int, root: Path) -> dict[str, int]:
    """Copy the first images of each class to ``root/pacs``; images by domain.

    That is the layout that the authors' code reads.  Raises DataError.
    """
    from fedclip_plugin.data.folders import load_dataset

    dataset, sizes = load_dataset("pacs", images), {}
    for domain in dataset.domains:
        taken: dict[int, int] = {}
        for i, label in enumerate(domain.labels.tolist()):
            if per_class and taken.get(label, 0) == per_class:
                continue
            taken[label] = taken.get(label, 0) + 1
            folder = root / "pacs" / domain.name / dataset.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{taken[label]:05d}{Path(domain.files[i]).suffix}"
            (folder / name).write_bytes(domain.read(i))
        sizes[domain.name] = sum(taken.values())
    return sizes


def random_weights(model: str, config: str | None, file: Path) -> str:
    """A checkpoint of ``model`` as open_clip initialises it, seed 0."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    if config:
        open_clip.add_model_config(config)
    torch.manual_seed(0)
    state = open_clip.create_model(model).state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, file)
    return str(file)


# ---------------------------------------------------------------------------- running


def environment(args: argparse.Namespace, weights: str, cache: Path) -> dict[str, str]:
    """What both sides' processes see."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(args.threads))
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if args.device == "cpu" else {}
    standin = {"CLIP_STANDIN_WEIGHTS": weights, "CLIP_STANDIN_MODEL": args.model}
    standin["CLIP_STANDIN_CONFIG"] = args.model_config or ""
    path = os.pathsep.join(filter(None, (str(ROOT), os.getenv("PYTHONPATH"))))
    own = {"FEDCLIP_CACHE": str(cache), "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **threads, **hidden, **standin, **own}


def run_lines(
    command: list[str], env: dict[str, str], cwd: Path
) -> list[tuple[float, str]]:
    """Run a Python module; its lines with the time at which each appeared."""
    cwd.mkdir(parents=True, exist_ok=True)
    errors = cwd / "stderr.txt"
    with errors.open("w") as stderr, subprocess.Popen(
        [sys.executable, "-u", "-m", *command],
        env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=stderr, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        lines = [(time.perf_counter(), line.rstrip()) for line in process.stdout]
    if process.returncode:
        tail = errors.read_text().strip().splitlines()[-12:]
        raise SystemExit("\n".join((f"{command[0]} failed:", *tail)))
    return lines


def run_authors(
    home: Path, args: argparse.Namespace, root: Path, env: dict[str, str]
) -> tuple[str, list[float]]:
    """One round of the authors' code: which `clip` it had, and seconds line by line."""
    options = ["--dataset", "pacs", "--root_dir", f"{root}/", "--iters", "1"]
    options += ["--test_envs", "0", "--batch", str(cost.BATCH), "--net", "ViT-B/32"]
    command = ["benchmarks.authors.run_authors", str(home), args.device, *options]
    lines = run_lines(command, env, root / "authors" / "run")
    steps = cost.round_steps(lines)
    if len(steps) != 1:
        raise SystemExit(f"the authors' code printed {len(steps)} rounds, not 1")
    return lines[0][1].removeprefix("clip: "), steps[0]


def run_ours(
    args: argparse.Namespace, root: str, precision: str, env: dict[str, str]
) -> dict[str, Any]:
    """A whole run of ours from an empty cache; ``seconds`` from start to exit."""
    model = {"name": args.model, "pretrained": env["CLIP_STANDIN_WEIGHTS"]}
    model |= {"precision": precision, "device": args.device}
    if args.model_config:
        model["config_dir"] = args.model_config
    with tempfile.TemporaryDirectory() as work:
        options = {"model": model, "root": root, "rounds": args.our_rounds}
        options |= {"sizes": cost.PACS, "out": f"{work}/out"}
        Path(work, "options.json").write_text(json.dumps(options))
        env = {**env, "FEDCLIP_CACHE": f"{work}/cache"}
        command = ["benchmarks.authors.run_ours", f"{work}/options.json"]
        start = time.perf_counter()
        lines = run_lines(command, env, Path(work))
        seconds = time.perf_counter() - start
    return {**json.loads(lines[-1][1]), "seconds": seconds}


# --------------------------------------------------------------------------- results


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """Where and with what it was measured."""
    import open_clip
    import torch

    import fedclip_plugin
    from fedclip_plugin.bench.timing import cpu_name

    can = fedclip_plugin.capabilities()
    gpu = torch.cuda.get_device_name() if args.device == "cuda" else None
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": f"{cpu_name()}, {os.cpu_count()} cores",
        "gpu": gpu,
        "threads": args.threads,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "fedclip_plugin": fedclip_plugin.__version__,
        "kernels": sorted(op for op, there in can["ops"].items() if there),
        "isa": can["isa"] if can["compiled"] else "none, pure PyTorch",
    }


def measure(args: argparse.Namespace, home: Path | None, work: Path) -> dict[str, Any]:
    """All passes, one side after the other."""
    sizes = write_subset(args.images, args.images_per_class, work)
    say(f"measuring on {sum(sizes.values())} images: {sizes}")
    weights = str(Path(args.pretrained).resolve()) if args.pretrained else None
    weights = weights or random_weights(
        args.model, args.model_config, work / "w.safetensors"
    )
    env = environment(args, weights, work / "cache")
    roots = {"auto": str(work), "fp32": str(work)}
    if args.ours_all:
        roots["auto"] = str(Path(args.images).resolve())
    found: dict[str, Any] = {"machine": machine(args), "sizes": sizes, "clip": None}
    found |= {"weights": args.pretrained and Path(args.pretrained).name, "authors": []}
    found |= {
        "model": args.model,
        "our_rounds": args.our_rounds,
        "auto": [],
        "fp32": [],
    }
    for number in range(1, args.authors_rounds + 1):
        if home is not None:
            found["clip"], steps = run_authors(home, args, work, env)
            found["authors"].append(steps)
            say(f"pass {number}: the authors' round {sum(steps):.1f} s")
        for precision, root in roots.items():
            run = run_ours(args, root, precision, env)
            found[precision].append(run)
            name, seconds = run["precision"], run["encode"]
            say(f"pass {number}: ours, {name}: encoding {seconds:.1f} s")
    return found


def authors_home() -> Path | None:
    """The folder `fedclip` of PERSONALIZEDFL_HOME, or None when that is not set."""
    set_to = os.environ.get("PERSONALIZEDFL_HOME")
    if not set_to:
        say("PERSONALIZEDFL_HOME is not set: only our side is measured")
        return None
    home = Path(set_to).expanduser().resolve() / "fedclip"
    if not (home / "methods" / "fed_at_clip.py").is_file():
        raise SystemExit(f"PERSONALIZEDFL_HOME={set_to} holds no fedclip/methods")
    return home


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def try_out(folder: Path) -> dict[str, Any]:
    """Options for a tiny model on a few images of each domain."""
    from tests.clip.fake_encoder import png
    from tests.clip.makers import VIT, tiny_clip

    folder.mkdir(exist_ok=True)
    weights = tiny_clip(folder / "model", "tiny-vs", VIT)
    for d, domain in enumerate(PACS):
        for c, name in enumerate(("cat", "dog")):
            images = folder / "images" / domain / name
            images.mkdir(parents=True)
            for i in range(6):
                (images / f"{i}.png").write_bytes(png(100 * d + 10 * c + i))
    return {
        "images": str(folder / "images"), "images_per_class": 5, "threads": 1,
        "model": "tiny-vs", "model_config": str(folder / "model"),
        "pretrained": str(weights), "ours_all": True,
        "authors_rounds": 1, "our_rounds": 1,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 2 where the images or the weights are not what they should be."""
    from fedclip_plugin.errors import FedClipError

    with tempfile.TemporaryDirectory(prefix="vs-reference-") as folder:
        work = Path(folder)
        quick = "--quick" in (sys.argv[1:] if argv is None else argv)
        parser = build_parser()
        args = parse(parser, argv, **(try_out(work / "quick") if quick else {}))
        if args.images is None:
            parser.error("it needs --images PACS")
        try:
            found = measure(args, authors_home(), work)
        except FedClipError as error:
            say(f"vs-reference: error: {error}")
            return 2
    results = {**found, "result": vs_report.extrapolate(found)}
    page = vs_report.markdown(results)
    save(args.out, "vs_reference", json=as_json(results), md=page)
    print(page)
    return 0
