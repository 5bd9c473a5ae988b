"""A session that builds the CPU kernels for aarch64 and runs their tests in emulation.

Nothing is installed on this machine: Debian's Python for aarch64 is unpacked below
``.nox/``, and PyTorch lies beside it.  The emulated Python calls this machine's own
compiler, so that only what is tested runs slowly.
"""

from __future__ import annotations

import platform
import shutil

import nox

from checks.common import (
    CHECK_GENERIC,
    PATIENCE,
    ROOT,
    WITH_TOOLS,
    copy_sources,
    timed,
)

# Called -> the Debian package that has it.
TOOLS = {
    "qemu-aarch64": "qemu-user",
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
}
DEBIAN = ("python3", "libpython3-dev", "libstdc++6", "libgomp1")
# Later wheels of torch for aarch64 bring CUDA along: gigabytes that are not used here.
PACKAGES = ("torch==2.10.*", "numpy", "pillow", "safetensors", "scipy")
PACKAGES += ("setuptools>=77", "pybind11", "pytest", "hypothesis")
FOLDER = ROOT / ".nox" / "aarch64"
SYSTEM, SITE = FOLDER / "system", FOLDER / "site"
APT = {
    "Architecture": "arm64",
    "Architectures": "arm64",
    "Sandbox::User": "root",
    "Get::Assume-Yes": "true",
    "Install-Recommends": "false",
}
# What PyTorch does with the operators' declarations is the same on any processor, and
# the many teams of threads take minutes in emulation: test_numerics has threads, too.
LEFT_OUT = "not opcheck and not compile and not any_team"
TESTS = ("tests/ops", "tests/csrc/test_numerics.py", "-k", LEFT_OUT)


@nox.session(venv_backend="none")
@timed
def aarch64(session: nox.Session) -> None:
    """The CPU kernels for aarch64, cross-compiled; their tests under qemu."""
    if platform.machine() == "aarch64":
        session.skip("this is one: core has run the same")
    missing = {package for tool, package in TOOLS.items() if not shutil.which(tool)}
    if missing:
        session.skip(f"apt install {' '.join(sorted(missing))}, and it runs")
    made, wanted = FOLDER / "made", " ".join((*DEBIAN, *PACKAGES))
    if not made.is_file() or made.read_text("utf-8") != wanted:
        _unpack_python(session)
        _install(session)
        made.write_text(wanted, "utf-8")
    session.chdir(copy_sources(FOLDER / "work"))
    headers = (SYSTEM / "usr" / "include", *SYSTEM.glob("usr/include/python3.*"))
    cross = {
        "CC": "aarch64-linux-gnu-gcc",
        "CXX": "aarch64-linux-gnu-g++",
        "CPPFLAGS": " ".join(f"-I{folder}" for folder in headers),
        "FEDCLIP_CUDA": "0",
        "PATH": WITH_TOOLS,  # of ninja
    }
    _emulated(session, "setup.py", "build_ext", "--inplace", silent=True, **cross)
    _emulated(session, "-c", CHECK_GENERIC)
    _emulated(session, "-m", "pytest", "-q", *TESTS, FEDCLIP_ISA="generic")


def _unpack_python(session: nox.Session) -> None:
    """Debian's Python for aarch64 and what it needs, in SYSTEM; asks for no rights."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    state, cache = FOLDER / "apt", FOLDER / "debs"
    for folder in (SYSTEM, state / "lists" / "partial", cache / "archives" / "partial"):
        folder.mkdir(parents=True)
    (state / "status").touch()
    lines = [f'APT::{key} "{value}";' for key, value in APT.items()]
    places = {"State": state, "State::status": state / "status", "Cache": cache}
    lines += [f'Dir::{key} "{place}";' for key, place in places.items()]
    config = FOLDER / "apt.conf"
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for words in (("update",), ("install", "--download-only", *DEBIAN)):
        env = {"APT_CONFIG": str(config)}
        session.run("apt-get", "-qq", *words, external=True, env=env, silent=True)
    for archive in sorted(cache.glob("archives/*.deb")):
        words = ("dpkg-deb", "-x", str(archive), str(SYSTEM))
        session.run(*words, external=True, log=False)


def _install(session: nox.Session) -> None:
    """PACKAGES in SITE; by a copy of pip, which would else look beside itself, too."""
    import pip  # not every environment that only lists or runs sessions has it

    copy = FOLDER / "installer" / "pip"
    shutil.copytree(*pip.__path__, copy)
    command = (str(copy), "install", "-qq", "--no-compile", "--target", str(SITE))
    _emulated(session, *command, *PACKAGES, PYTHONPATH="")


def _emulated(
    session: nox.Session, *words: str, silent: bool = False, **env: str
) -> None:
    """``python WORDS`` for aarch64; programs that it calls are this machine's."""
    python = ("qemu-aarch64", "-L", str(SYSTEM), str(SYSTEM / "usr/bin/python3"))
    env = {"PYTHONPATH": str(SITE), **env}
    session.run(*python, *words, external=True, env=env, silent=silent, **PATIENCE)
