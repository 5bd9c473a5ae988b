"""Make the virtual environment FOLDER: python3 build_backend/make_venv.py FOLDER.

``python3 -m venv`` where that works.  Debian splits pip's bootstrap off into
python3-venv: without it virtualenv or an installed pip will do, else one line tells
what to install.  Standard library only, no syntax newer than Python 3.6: it tells older
ones apart.
"""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def check_version():
    """Exit with one line if pyproject.toml excludes this interpreter."""
    with open(os.path.join(ROOT, "pyproject.toml"), encoding="utf-8") as file:
        wanted = re.search(r'^requires-python = ">=3\.(\d+)"$', file.read(), re.M)
    oldest = int(wanted.group(1))
    if sys.version_info[:2] < (3, oldest):
        found = f"{sys.executable} is {sys.version.split()[0]}"
        raise SystemExit(
            f"Python 3.{oldest} or later needed, {found}; "
            f"name one, as in: make PYTHON=python3.{oldest} ..."
        )


def attempts(folder):
    """Commands to try in turn; every one is a list of commands that must all work."""
    python = sys.executable
    if find_spec("ensurepip"):
        yield [[python, "-m", "venv", folder]]
    if find_spec("virtualenv"):
        yield [[python, "-m", "virtualenv", "--quiet", folder]]
    if find_spec("pip"):
        target = os.path.join(folder, "bin", "python")
        yield [
            [python, "-m", "venv", "--without-pip", folder],
            [python, "-m", "pip", "--quiet", "--python", target, "install", "pip"],
        ]


def main(folder):
    """Make the environment, or exit with one line."""
    check_version()
    for commands in attempts(folder):
        shutil.rmtree(folder, ignore_errors=True)
        if all(subprocess.call(command) == 0 for command in commands):
            return
    shutil.rmtree(folder, ignore_errors=True)
    raise SystemExit(
        f"{sys.executable} can make no virtual environment with pip; on Debian: "
        "apt install python3-venv"
    )


if __name__ == "__main__":
    main(sys.argv[1])
