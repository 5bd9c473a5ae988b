"""Ctrl-C and SIGTERM on the command line: say what is kept and how to resume.

Every file is replaced in one step, so a run may be stopped anywhere.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from .console import print_error

STOPS = (signal.SIGINT, signal.SIGTERM)


class Stops:
    """The first of the two signals unwinds as KeyboardInterrupt, the next one exits.

    ``code`` is the exit code then: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, args: argparse.Namespace, words: Sequence[str]) -> None:
        self.args, self.words = args, words
        self.code = 128 + signal.SIGINT
        self._seen = self._reported = False

    def __enter__(self) -> Stops:
        self._former = {}
        if threading.current_thread() is threading.main_thread():
            self._former = {each: signal.signal(each, self._stop) for each in STOPS}
        return self

    def __exit__(self, *_: object) -> None:
        for each, former in self._former.items():
            signal.signal(each, former)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._seen:  # nothing that hangs may hold the process
            if not self._reported:  # not by print: the signal may have come within one
                os.write(2, f"fedclip: error: {self._line()}\n".encode())
            os._exit(self.code)
        self._seen, self.code = True, 128 + number
        raise KeyboardInterrupt

    def report(self) -> None:
        """Say on stderr how to resume."""
        print_error(self._line())
        self._reported = True

    def _line(self) -> str:
        return f"interrupted; {how_to_resume(self.args, self.words)}"


def how_to_resume(args: argparse.Namespace, words: Sequence[str]) -> str:
    """What is kept of an interrupted command, and what to type to resume it."""
    if args.command == "fedml":
        line = shlex.join(["fedclip", *words])
        if args.role == "client" or args.rank:
            return f"the client joins again with: {line}"
        line += "" if args.resume else " --resume"
        return f"where fedclip_out is set, resume with: {line}"
    out = getattr(args, "out", None)
    if args.command == "run" and out and (Path(out) / "config.toml").is_file():
        line = shlex.join(["fedclip", "run", "--resume", "--out", str(out)])
        return f"nothing is lost; resume with: {line}"
    if args.command == "sweep" and out and (Path(out) / "sweep.toml").is_file():
        words = [word for word in words if word != "--resume"]
        if not any(word.partition("=")[0] == "--out" for word in words):
            words = [*words, "--out", str(out)]
        line = shlex.join(["fedclip", *words, "--resume"])
        return f"nothing is lost; resume with: {line}"
    return "nothing is lost; run the same command to resume"
