"""What the command line shows while it works: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from ..federation.engine import RunState
    from ..runs.files import RunPlan

PLAIN_SECONDS = 5.0  # between two lines where there is no terminal


class Stream:
    """``sys.stdout`` or ``sys.stderr`` while a command runs; its faults stay here.

    Signs that it lacks become ``?``, and what it does not take is dropped: ``error``
    holds why.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.error: OSError | None = None

    def __enter__(self) -> Stream:
        self._stream = getattr(sys, self._name)
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors="replace")
        setattr(sys, self._name, self)
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        setattr(sys, self._name, self._stream)
        if self.error is not None:  # Python would fail once more at its end
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def write(self, text: str) -> int:
        """Write ``text``, or drop it."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Hand on what waits."""
        self._try(self._stream.flush)

    def _try(self, do: Any, *arguments: str) -> None:
        try:
            if self.error is None:
                do(*arguments)
        except OSError as error:
            self.error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_closed_streams() -> None:
    """Let what the caller has closed lead nowhere, or a file gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, stream)


class Display:
    """Progress of encoding and of rounds, on stderr; silent when ``quiet``.

    Results go to ``out`` (stdout), so that they can be piped.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.out = Console()
        self.err = Console(stderr=True)
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._said = 0.0
        self.told: set[str] = set()  # the notes that were shown

    def __enter__(self) -> Display:
        self._handler = RichHandler(
            console=self.err, show_time=False, show_path=False, markup=False
        )
        log = logging.getLogger("fedclip")
        log.addHandler(self._handler)
        log.propagate = False  # a library that configures logging would tell it again
        if self.err.is_terminal and not self.quiet:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.err,
                transient=True,
            )
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()
        log = logging.getLogger("fedclip")
        log.removeHandler(self._handler)
        log.propagate = True

    def finish(self) -> Console:
        """Take the bars away; the console (stdout) on which to print results."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        return self.out

    def say(self, text: str) -> None:
        """A line of news."""
        if not self.quiet:
            self._print(text)

    def _print(self, text: str) -> None:
        self.err.print(text, highlight=False, markup=False, soft_wrap=True)

    def notes(self, notes: Iterable[str], *, kept: bool = False) -> None:
        """What was passed over, guessed or ignored, each once.

        Of those that a file ``kept`` nothing is said with ``--quiet``.
        """
        if kept and self.quiet:
            return
        for note in notes:
            if note not in self.told:
                self._print(f"note: {note}")
                self.told.add(note)

    def images(self, what: str, done: int, total: int) -> None:
        """``data.progress.Progress``: images hashed or encoded, with their rate."""
        now = time.monotonic()
        start, before = self._started.setdefault(what, (now, done))
        spent = now - start  # the first call comes when the first batch is done
        rate = f"{(done - before) / spent:.0f} images/s" if spent > 0.5 else ""
        self._show(what, done, total, rate)

    def round(self, plan: RunPlan, now: RunState) -> None:
        """``experiment.OnRound``: accuracy after each round."""
        note, result = "", now.result
        if result is not None and result.mean_val is not None:
            note = f"val {100 * result.mean_val:.1f}"
            if result.target is not None:
                note += f", {plan.target} {100 * result.target:.1f}"
        done = now.progress.round
        self._show(plan.label, done, done if now.last else plan.rounds, note)

    def step(self, what: str, done: int, total: int, note: str) -> None:
        """Progress of any other work."""
        self._show(what, done, total, note)

    def _show(self, what: str, done: int, total: int, note: str) -> None:
        line = f"{what}: {done}/{total}" + (f", {note}" if note else "")
        if self._bars is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total, note=note)
            task, ended = self._tasks[what], done == total
            self._bars.update(task, completed=done, note=note, visible=not ended)
            if ended:
                self.say(line)  # a finished bar becomes a line above the others
        elif done == total or time.monotonic() - self._said > PLAIN_SECONDS:
            self._said = time.monotonic()
            self.say(line)


def print_error(message: str) -> None:
    """One line on stderr, if it can be written to."""
    with contextlib.suppress(OSError, AttributeError):
        print(f"fedclip: error: {' '.join(message.split())}", file=sys.stderr)
