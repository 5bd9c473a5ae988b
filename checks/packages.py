"""Sessions that make what is published, and try it: sdist and wheels."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nox

from checks.common import (
    CHECK_GENERIC,
    CORE_TESTS,
    PYTHON,
    ROOT,
    WITH_TOOLS,
    build_wheel,
    run_installed,
    share_torch,
    timed,
)


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
    env = {**os.environ, "PATH": WITH_TOOLS}  # of patchelf
    subprocess.run([*PYTHON, *words], env=env, check=True)
    (repaired,) = folder.glob("*.whl")
    return repaired


def _size(path: Path) -> str:
    return f"{path.name}: {path.stat().st_size / 1e6:.2f} MB"


@nox.session(venv_backend="none")
@timed
def isolated(session: nox.Session) -> None:
    """From the sdist, in pip's isolation: wheels with and without kernels, and a run.

    The kernels of one instruction set tell; `make` has compiled them all.  The wheel is
    repaired and used where no compiler is to be found.
    """
    folder = ROOT / ".nox" / "isolated"
    tree = _sdist(folder)
    without = {"FEDCLIP_PURE_PYTHON": "1"}
    pure = build_wheel(tree, folder / "pure", "--no-build-isolation", **without)
    assert pure.name.endswith("-py3-none-any.whl"), pure
    least = {"FEDCLIP_BEST_ISA": "generic", "FEDCLIP_CXX_FLAGS": "-O0"}
    wheel = _repaired(build_wheel(tree, folder / "wheel", **least))
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
    env = {"PYTHONPATH": str(target), "PATH": str(target / "bin")}
    session.run(sys.executable, "-c", CHECK_GENERIC, external=True, env=env)
    run = ("fedclip_plugin.cli", "run", "--alg", "gda", "--target", "scan", "--quiet")
    env["FEDCLIP_CACHE"] = str(work / "cache")
    session.run(*PYTHON, *run, external=True, env=env)
    config = ("-c", str(tree / "pyproject.toml"), f"--rootdir={work}")
    tests = ("pytest", "-q", *config, "tests/wire/test_codecs.py")
    session.run(*PYTHON, *tests, external=True, env=env)


@nox.session
@timed
def wheel(session: nox.Session) -> None:
    """The sdist and both wheels of this machine in dist/; the one with kernels, tried.

    In an environment that has nothing but what the wheel names, without a compiler;
    its tests with what they need for the privacy extra.
    """
    dist, folder = ROOT / "dist", ROOT / ".nox" / "dist"
    tree = _sdist(folder)
    without = {"FEDCLIP_PURE_PYTHON": "1"}
    pure = build_wheel(tree, folder / "pure", "--no-build-isolation", **without)
    kernels = _repaired(build_wheel(tree, folder / "wheel", "--no-build-isolation"))
    dist.mkdir(exist_ok=True)
    for made in (next(folder.glob("*.tar.gz")), pure, kernels):
        shutil.copy2(made, dist)
        session.log(_size(made))
    share_torch(session)
    session.install(str(kernels))
    bare = {"PATH": str(session.bin)}
    session.run("fedclip", "run", "--target", "scan", "--quiet", env=bare)
    session.install(f"{kernels}[privacy]", "pytest", "hypothesis")
    run_installed(session, "pytest", "-q", "-m", "not slow", *CORE_TESTS)
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
