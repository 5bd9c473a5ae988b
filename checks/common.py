"""What the sessions of noxfile.py share: how they run, and what they run in."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nox

PYTHON = [sys.executable, "-m"]
ROOT = Path(__file__).parents[1]
# The path to programs, those beside this Python first.
WITH_TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
# What computes: run once more without the kernels, and on lesser processors.
COMPUTES = ("algorithms", "features", "federation", "ops", "runs", "server")
COMPUTES += ("wire/test_codecs.py", "wire/test_compression.py")
CORE_TESTS = tuple(f"tests/{name}" for name in COMPUTES)
# Of these, what calls the operators: encoding is PyTorch's alone.
OPERATOR_TESTS = tuple(name for name in CORE_TESTS if name != "tests/features")
# After Ctrl-C tests end the processes that they started.
PATIENCE: dict[str, Any] = {"interrupt_timeout": 10.0, "terminate_timeout": 2.0}


def timed(function: Callable[..., None]) -> Callable[..., None]:
    """The session, which says at its end what it took."""

    @functools.wraps(function)
    def timed(session: nox.Session, *args: Any, **kwargs: Any) -> None:
        start, before = time.monotonic(), _processor_seconds()
        try:
            function(session, *args, **kwargs)
        finally:
            minutes, seconds = divmod(round(time.monotonic() - start), 60)
            busy = round(_processor_seconds() - before)
            session.log(
                f"{session.name}: {minutes} min {seconds:02d} s, {busy} s of processor"
            )

    return timed


def _processor_seconds() -> float:
    """What the processes that have ended took, on all cores."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(session: nox.Session, *command: str, **env: str) -> None:
    """``python -m`` in the environment of nox itself."""
    # waiting threads that spin starve each other where cores are shared
    settings = {"OMP_WAIT_POLICY": "PASSIVE", **env}
    session.run(*PYTHON, *command, external=True, env=settings, **PATIENCE)


def output(session: nox.Session, *command: str) -> str:
    """The last line that a command prints."""
    return str(session.run(*command, external=True, silent=True)).split("\n")[-2]


# What a build of generic kernels alone tells of itself.
CHECK_GENERIC = """
import fedclip_plugin
made = fedclip_plugin.capabilities()
print(fedclip_plugin.__file__, made)
assert (made["compiled"], made["isa"]) == (True, "generic")
assert made["ops"]["weighted_mean"] and "local_round" in made["slower"]
"""


def build_wheel(tree: Path, folder: Path, *options: str, **env: str) -> Path:
    """The wheel of the sources in ``tree``, in an emptied ``folder``."""
    shutil.rmtree(folder, ignore_errors=True)
    command = ("pip", "wheel", "-q", "--no-deps", *options, "--wheel-dir", str(folder))
    # the CUDA kernels are built in .venv; here they would only cost their minutes
    env = {**os.environ, "FEDCLIP_CUDA": "0", **env}
    subprocess.run([*PYTHON, *command, str(tree)], env=env, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def copy_sources(tree: Path) -> Path:
    """The sources in a folder of their own, without what was made of them."""
    shutil.rmtree(tree, ignore_errors=True)
    ignored = shutil.ignore_patterns(".*", "build", "runs", "*.so", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=ignored)
    return tree


def share_torch(session: nox.Session) -> None:
    """Show the environment the PyTorch of .venv: gigabytes that are there already.

    pip takes it for installed, and leaves alone what is outside of its environment.
    """
    shared = Path(session.virtualenv.location) / "shared"
    shutil.rmtree(shared, ignore_errors=True)
    shared.mkdir()
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"].lower()
        if re.match(r"(torch(vision)?|triton)$|(nvidia|cuda)[-_]", name):
            for top in {file.parts[0] for file in distribution.files or ()} - {".."}:
                link = shared / top
                if not link.exists():
                    link.symlink_to(Path(str(distribution.locate_file(top))).resolve())
    (packages,) = shared.parent.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(f"{shared}\n")


def run_installed(session: nox.Session, module: str, *words: str) -> None:
    """``python -m`` where no sources are seen: the installed package runs."""
    folder = Path(session.virtualenv.location).resolve() / "work"
    folder.mkdir(exist_ok=True)
    for name in ("benchmarks", "tests"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    session.chdir(folder)
    if module == "pytest":
        words = ("-c", str(ROOT / "pyproject.toml"), f"--rootdir={folder}", *words)
    env = {
        # waiting threads that spin starve the many processes of a host
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": "1",
    }
    session.run("python", "-m", module, *words, env=env, **PATIENCE)
