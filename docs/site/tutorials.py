"""Run the tutorials; their pages, with what they printed, go to a folder.

``python docs/site/tutorials.py TO [NAME...]``.  The scripts of ``docs/tutorials`` are
jupytext's py:percent.  All run in this process, with one cache of features, so that
torch is loaded and images are encoded once; a line ``!fedclip ...`` calls the command
line.  The first error of a tutorial ends everything.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import shlex
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext

FOLDER = Path(__file__).resolve().parents[1] / "tutorials"
FAILS = "fails"  # a cell with this tag shows what a user gets for a mistake
WIDTH = "100"  # columns of what is printed


class TutorialError(Exception):
    """A tutorial that does not do what it says."""


def pages() -> list[Path]:
    """The scripts, in their order."""
    return sorted(FOLDER.glob("[0-9]*.py"))


def as_page(script: Path, outputs: list[str] | None = None) -> str:
    """The Markdown of a tutorial; without ``outputs`` only what is to be typed."""
    parts, results = [], iter(outputs or ())
    for cell in jupytext.read(script).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        shell = cell.source.startswith("!")
        source = cell.source.removeprefix("!") if shell else cell.source
        parts.append(f"```{'bash' if shell else 'python'}\n{source}\n```")
        if output := next(results, "").rstrip():
            parts.append(f"```text {{.output}}\n{output}\n```")
    return "\n\n".join(parts) + "\n"


def run(script: Path) -> list[str]:
    """What each cell of code prints; TutorialError where one fails."""
    module = types.ModuleType(script.stem)
    sys.modules[script.stem] = module  # dataclasses look there
    outputs = []
    for number, cell in enumerate(jupytext.read(script).cells, 1):
        if cell.cell_type != "code":
            continue
        text = io.StringIO()
        fails = FAILS in cell.metadata.get("tags", ())
        try:
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                code = _execute(cell.source, module, f"{script.name}, cell {number}")
        except BaseException:
            print(text.getvalue(), file=sys.stderr)
            raise
        if bool(code) is not fails:
            raise TutorialError(
                f"{script.name}, cell {number}: exit code {code}\n{text.getvalue()}"
            )
        outputs.append(_plain(text.getvalue()))
    return outputs


def _execute(source: str, module: types.ModuleType, where: str) -> int:
    """The exit code of a command; 0 of Python."""
    if source.startswith("!"):
        from fedclip_plugin.cli import main

        _, *words = shlex.split(source.removeprefix("!"))
        return main(words)
    tree = ast.parse(source, where)
    exec(compile(tree, where, "exec"), module.__dict__)
    return 0


def _plain(text: str) -> str:
    """Without blanks at line ends, and folders that differ from run to run."""
    lines = (line.rstrip() for line in text.splitlines())
    return "\n".join(lines).replace(f"{os.getcwd()}/", "")


@contextlib.contextmanager
def _elsewhere() -> Iterator[None]:
    """A working directory that goes away."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="fedclip-tutorial-") as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def main(to: Path, names: list[str]) -> None:
    """Run and write all tutorials, or those whose names begin as ``names``."""
    os.environ |= {"COLUMNS": WIDTH, "NO_COLOR": "1"}
    to.mkdir(parents=True, exist_ok=True)
    to = to.resolve()
    os.environ["FEDCLIP_CACHE"] = str(to / "cache")
    for script in pages():
        if names and not any(script.stem.startswith(name) for name in names):
            continue
        start, used = time.monotonic(), time.process_time()
        with _elsewhere():
            outputs = run(script)
        (to / f"{script.stem}.md").write_text(as_page(script, outputs), "utf-8")
        seconds, busy = time.monotonic() - start, time.process_time() - used
        print(f"{script.stem}: {seconds:.1f} s, {busy:.1f} s of processor", flush=True)


def _arguments() -> tuple[Path, list[str]]:
    words: list[Any] = sys.argv[1:]
    if not words:
        raise SystemExit("usage: python docs/site/tutorials.py TO [NAME...]")
    return Path(words[0]), words[1:]


if __name__ == "__main__":
    main(*_arguments())
