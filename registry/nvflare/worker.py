"""A process that trains, apart from NVFlare's: its death ends a task, not the job.

NVFlare fails the whole job where the process that runs a site's part of it dies, as of
too little memory.  So that process only passes bytes on to this one, and starts it anew
where it is gone.  ``python -m fedclip_plugin.registry.nvflare.worker`` is that process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection, Pipe
from typing import Any

from ..common import messages

_PAUSE = 0.2  # seconds between two looks whether a task is to end
_PATIENCE = 5.0  # seconds for an idle process to end by itself
Lines = list[tuple[int, str]]


class Aborted(Exception):  # noqa: N818  as StopIteration
    """The job was aborted while a task ran."""


class Worker:
    """The process of a site, started when it is needed.

    ``lines`` holds what it logged since they were last taken.
    """

    def __init__(
        self, name: str, job: Mapping[str, Any], own: Mapping[str, Any]
    ) -> None:
        self._settings = json.dumps([name, dict(job), dict(own)])
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._kept = b""
        self.lines: Lines = []

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    def answer(self, task: str, data: bytes, stop: Callable[[], bool]) -> bytes:
        """The answer to a request; one that says so where the process died.

        Raises Aborted where ``stop`` says so meanwhile.
        """
        try:
            pipe = self._start()
            pipe.send_bytes(task.encode())
            pipe.send_bytes(data)
            pipe.send_bytes(self._kept)
            waiting = True
            while waiting:  # an answer that is there already does not hide an abort
                if stop():
                    self.end(at_once=True)
                    raise Aborted
                waiting = not pipe.poll(_PAUSE)
            self.lines += [
                (level, line) for level, line in json.loads(pipe.recv_bytes())
            ]
            answer = pipe.recv_bytes()
            self._kept = pipe.recv_bytes()
        except (EOFError, OSError):
            return messages.failure(f"its training process {self._fate()}")
        return answer

    def end(self, at_once: bool = False) -> None:
        """End the process; one at work only ``at_once``, or after some seconds."""
        process, self._process = self._process, None
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            pipe.close()
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0 if at_once else _PATIENCE)
        if process.poll() is None:
            process.kill()
            process.wait()

    def _start(self) -> Connection:
        if self._pipe is not None and self._process and self._process.poll() is None:
            return self._pipe
        self.end(at_once=True)
        self._pipe, theirs = Pipe()
        try:
            command = [sys.executable, "-m", __name__, str(theirs.fileno())]
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        finally:
            theirs.close()
        self._pipe.send_bytes(self._settings.encode())
        return self._pipe

    def _fate(self) -> str:
        process = self._process
        code = None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(_PATIENCE)
        self.end(at_once=True)
        if code is None:
            return "does not answer"
        return f"died of signal {-code}" if code < 0 else f"ended with code {code}"


class _Lines(logging.Handler):
    """Keeps the records of our loggers for the process that logs them."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.kept: Lines = []

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append((record.levelno, record.getMessage()))


def main(words: list[str]) -> None:
    """Answer requests until the pipe is closed."""
    _end_with_parent()
    pipe = Connection(int(words[0]))
    lines = _Lines()
    logging.getLogger("fedclip").addHandler(lines)
    with contextlib.suppress(EOFError, BrokenPipeError):
        name, job, own = json.loads(pipe.recv_bytes())
        answer = _answers(name, job, own)
        while True:
            task, data, kept = (pipe.recv_bytes() for _ in range(3))
            found = answer(task.decode(), data, kept)
            pipe.send_bytes(json.dumps(lines.kept).encode())
            lines.kept = []
            for part in found:
                pipe.send_bytes(part)


def _answers(
    name: str, job: Mapping[str, Any], own: Mapping[str, Any]
) -> Callable[[str, bytes, bytes], tuple[bytes, bytes]]:
    from .site import Site  # imports torch: the parent need not wait for it

    site = Site(name, job, own)

    def answer(task: str, data: bytes, kept: bytes) -> tuple[bytes, bytes]:
        try:
            return site.answer(task, data, kept)
        except Exception as error:  # a fault of ours ends this task alone
            traceback.print_exc()
            line = f"{type(error).__name__}: {error}"
            logging.getLogger("fedclip").error(traceback.format_exc())
            return messages.failure(line), kept

    return answer


def _end_with_parent() -> None:
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1:])
