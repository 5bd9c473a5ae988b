"""Processes that have FedML's libraries already: each import takes seconds.

They are as separate as others: a process group, a working directory, variables and a
log of their own, and a real exit code.  What ``mpirun`` starts cannot be among them.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

import tests

TESTS = Path(tests.__file__).parents[1]  # where `tests` is found
PRELOAD = [
    "torch",
    "fedclip_plugin.cli",
    "fedclip_plugin.report.page.page",
    "fedclip_plugin.registry.fedml.silo",
    "fedclip_plugin.registry.fedml.simulation",
    "tests.registry.fedml.faulty",
]


class Forked:
    """``python -m MODULE WORDS``, by the module's ``main``; a Popen in small."""

    def __init__(
        self, command: Sequence[str], folder: Path, env: Mapping[str, str], log: Path
    ) -> None:
        python, dash_m, module, *words = command
        assert (python, dash_m) == (sys.executable, "-m")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        given = (module, words, str(folder), dict(env), str(log))
        self._process = context.Process(target=_play, args=given, daemon=True)
        with pytest.MonkeyPatch.context() as patch:  # site-packages may have `tests`
            patch.setenv("PYTHONPATH", str(TESTS))
            self._process.start()

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended; TimeoutExpired where it has not."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return self._process.exitcode


Process = subprocess.Popen[bytes] | Forked


def launch(
    command: Sequence[str], folder: Path, env: Mapping[str, str], log: Path
) -> Process:
    """A process in a group of its own; what it says goes to the end of ``log``."""
    if command[0] == sys.executable and command[1] == "-m":
        return Forked(command, folder, env, log)
    with log.open("ab") as file:
        return subprocess.Popen(
            command, cwd=folder, env=env, stdout=file, stderr=file,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip


def kill(process: Process) -> None:
    """kill -9, whatever it started included."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has no group yet, or is gone
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    process.wait()


def _play(
    module: str, words: list[str], folder: str, env: dict[str, str], log: str
) -> None:
    os.setsid()
    with open(log, "ab") as file, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = [module, *words]
    sys.exit(importlib.import_module(module).main())
