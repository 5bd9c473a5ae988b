"""Ctrl-C and SIGTERM on the command line: what is kept, and the command that goes on.

Every file is replaced in one step, so a run may be ended anywhere; all that is left to
do is to say how it goes on.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import threading
from collections.abc import Sequence
from types import FrameType, TracebackType

from .console import print_error

STOPS = (signal.SIGINT, signal.SIGTERM)


class Stops:
    """The first of the two signals unwinds as KeyboardInterrupt, the next one exits.

    ``code`` is the exit code then: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, args: argparse.Namespace, words: Sequence[str]) -> None:
        self.args, self.words = args, words
        self.code = 128 + signal.SIGINT
        self._seen = self._told = False

    def __enter__(self) -> Stops:
        self._former = {}
        if threading.current_thread() is threading.main_thread():
            self._former = {each: signal.signal(each, self._stop) for each in STOPS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for each, former in self._former.items():
            signal.signal(each, former)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._seen:  # whatever hangs, hangs no longer
            if not self._told:  # not by print: the signal may have come within one
                os.write(2, f"fedclip: error: {self._line()}\n".encode())
            os._exit(self.code)
        self._seen, self.code = True, 128 + number
        raise KeyboardInterrupt

    def tell(self) -> None:
        """Say on stderr how to go on."""
        print_error(self._line())
        self._told = True

    def _line(self) -> str:
        return f"interrupted; {how_to_go_on(self.args, self.words)}"


def how_to_go_on(args: argparse.Namespace, words: Sequence[str]) -> str:
    """What is kept of a command that was broken off, and what to type."""
    if args.command == "fedml":
        line = shlex.join(["fedclip", *words])
        if args.role == "client" or args.rank:
            return f"the client joins in again with: {line}"
        line += "" if args.resume else " --resume"
        return f"where fedclip_out is set, go on with: {line}"
    out = getattr(args, "out", None)
    if args.command == "run" and out and (out / "config.toml").is_file():
        line = shlex.join(["fedclip", "run", "--resume", "--out", str(out)])
        return f"nothing is lost; go on with: {line}"
    return "nothing is lost; the same command goes on"
