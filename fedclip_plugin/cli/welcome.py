"""What there is to do: for who types ``fedclip`` alone, and after a run."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from .. import __version__

_FIRST = (
    ("fedclip run", "a first federation: embedded data and model, half a minute"),
    ("fedclip run --dataset NAME --root DIR", "your images, DIR/<domain>/<class>/*"),
    ("fedclip algorithms", "the methods that --alg chooses from"),
    ("fedclip hosts", "the frameworks it plugs into, and how"),
    ("fedclip doctor", "what this machine has, and what is missing"),
    ("fedclip completion SHELL", "let TAB complete commands and options"),
    ("fedclip COMMAND --help", "every option of a command; fedclip --help lists them"),
)


def welcome(folder: Path) -> str:
    """What to do next; the newest run in ``folder`` comes last, if there is any."""
    lines = [f"fedclip {__version__}: federated learning on frozen CLIP features", ""]
    lines += _aligned(_FIRST)
    finished = sorted(folder.glob("*/summary.json"), key=lambda p: p.stat().st_mtime)
    if finished:
        lines += ["", f"newest run here: {finished[-1].parent}", ""]
        lines += _aligned(_after(finished[-1].parent))
    return "\n".join(lines)


def after_run(run: Path, algorithm: str, classifies: bool) -> str:
    """What to do with a finished run, which may be a classifier of images."""
    other = "gda" if algorithm != "gda" else "linear"
    rows = [(f"fedclip run --alg {other}", "another method on the same features")]
    rows += _after(run)[: None if classifies else 1]
    return "\n".join(["next:", *_aligned(rows)])


def _after(run: Path) -> list[tuple[str, str]]:
    here = Path.cwd()
    if run.is_relative_to(here):
        run = run.relative_to(here)
    name, together = shlex.quote(str(run)), shlex.quote(str(run.parent))
    return [
        (f"fedclip report {together}/*", "the runs in one table"),
        (f"fedclip predict {name} IMAGE", "what it says about images"),
        (f"fedclip export {name} --to DIR", "a module that needs no fedclip, ONNX too"),
    ]


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(command) for command, _ in rows)
    return [f"  {command:<{width}}   {text}" for command, text in rows]
