"""The checks behind `make test`: `nox` runs all, `nox -l` lists, `nox -s lint` picks.

A session that needs packages which do not go together with the others gets a virtual
environment of its own; the rest run in the one that nox itself is installed in.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.4"

PYTHON = [sys.executable, "-m"]
ROOT = Path(__file__).parent
CXX_SUFFIXES = {".cpp", ".h", ".cu", ".cuh"}


def _run(session: nox.Session, *command: str, **env: str) -> None:
    session.run(*PYTHON, *command, external=True, env=dict(env))


@nox.session(venv_backend="none")
def core(session: nox.Session) -> None:
    """All tests, with the compiled kernels."""
    _run(session, "pytest", *session.posargs)


@nox.session(venv_backend="none")
def pure(session: nox.Session) -> None:
    """The quick tests, on the pure-PyTorch references."""
    env = {"FEDCLIP_PURE_PYTHON": "1", "OMP_NUM_THREADS": "1"}
    _run(session, "pytest", "-m", "not slow", *session.posargs, **env)


def _as_installed(folder: Path) -> Path:
    """Links that lay the sources out as they are installed, for mypy."""
    package = folder / "fedclip_plugin"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for source in (ROOT / "fedclip_plugin").iterdir():
        if source.suffix == ".py" or (source / "__init__.py").exists():
            (package / source.name).symlink_to(source)
    (package / "registry").symlink_to(ROOT / "registry")
    return folder


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Style and types: ruff, mypy --strict, clang-format."""
    _run(session, "ruff", "check", ".")
    _run(session, "ruff", "format", "--check", ".")
    tree = _as_installed(ROOT / ".nox" / "as_installed")
    config = str(ROOT / "pyproject.toml")
    with session.chdir(tree):
        _run(session, "mypy", "--config-file", config, MYPYPATH=os.curdir)
    sources = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "csrc").rglob("*")
        if path.suffix in CXX_SUFFIXES
    )
    tool = str(Path(sys.executable).with_name("clang-format"))
    session.run(tool, "--dry-run", "-Werror", *sources, external=True)
