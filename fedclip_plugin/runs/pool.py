"""Work in several processes that stay: torch is imported once, data are loaded once.

Workers are forked from a server process that has imported torch and has never computed,
so each may use as many threads as it likes, and a GPU.  A worker that dies takes the
one task with it that it had; when this process dies, by whatever signal, they die too.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any

from ..errors import one_line, translate, whole_line

Work = Callable[[Any, Callable[[Any], None]], Any]
"""A task, and what takes notes of its progress, to its result."""
_PRELOAD = ["fedclip_plugin.runs.sweep"]


@dataclass(frozen=True)
class Outcome:
    """What came of a task: its ``value``, or the ``error`` in a line.

    ``fault``: of ours, and not of what its user asked for.
    """

    value: Any = None
    error: str = ""
    fault: bool = False


def run_tasks(
    work: Work,
    tasks: Sequence[Any],
    jobs: int,
    on_note: Callable[[int, Any], None],
    on_done: Callable[[int, Outcome], None],
) -> None:
    """``work`` on every task, in ``jobs`` processes; in this one alone where it is 1.

    Both callbacks get the task's place.  ``work`` is a function of a module, tasks and
    results can be pickled.
    """
    if jobs == 1 or len(tasks) < 2:
        for i, task in enumerate(tasks):
            on_done(i, attempt(work, task, functools.partial(on_note, i)))
        return
    jobs = min(jobs, len(tasks))
    pool = [_Worker(work, jobs) for _ in range(jobs)]
    waiting = list(range(len(tasks)))[::-1]
    try:
        while waiting or any(worker.busy for worker in pool):
            for place, worker in enumerate(pool):
                if waiting and not worker.busy:
                    i = waiting.pop()
                    if not worker.begin(i, tasks[i]):  # it has died between two tasks
                        pool[place] = worker = _Worker(work, jobs)
                        worker.begin(i, tasks[i])
            ready = wait([worker.channel for worker in pool if worker.busy])
            for worker in [worker for worker in pool if worker.channel in ready]:
                i = worker.task
                try:
                    kind, value = worker.channel.recv()
                except (EOFError, OSError):
                    pool[pool.index(worker)] = _Worker(work, jobs)
                    on_done(i, Outcome(error=worker.ending(), fault=True))
                    continue
                if kind == "note":
                    on_note(i, value)
                else:
                    worker.busy = False
                    on_done(i, value)
    finally:
        for worker in pool:
            worker.process.kill()
        for worker in pool:
            worker.process.join()


def attempt(work: Work, task: Any, tell: Callable[[Any], None]) -> Outcome:
    """The outcome of one task; an error is part of it."""
    try:
        return Outcome(work(task, tell))
    except Exception as error:
        if os.environ.get("FEDCLIP_DEBUG"):
            raise
        if known := translate(error):
            return Outcome(error=whole_line(known))
        return Outcome(error=f"{type(error).__name__}: {one_line(error)}", fault=True)


def cores() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Worker:
    """A process, the channel to it, and the place of the task that it has."""

    def __init__(self, work: Work, jobs: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        self.channel, theirs = context.Pipe()
        threads = max(1, cores() // jobs)
        self.process = context.Process(
            target=_serve,
            args=(theirs, work, threads, dict(os.environ), os.getcwd()),
            daemon=True,
        )
        with _nameless_main():
            self.process.start()
        theirs.close()
        self.task, self.busy = -1, False

    def begin(self, place: int, task: Any) -> bool:
        """Hand a task over; False where the process is no more."""
        try:
            self.channel.send(task)
        except OSError:
            return False
        self.task, self.busy = place, True
        return True

    def ending(self) -> str:
        """How the process came to its end, in a line."""
        self.process.join()
        code = self.process.exitcode or 0
        if code >= 0:
            return f"its process ended with code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else -code
        hint = "; is the main memory full? try fewer --jobs" * (code == -9)
        return f"its process was ended by {name}{hint}"


@contextmanager
def _nameless_main() -> Iterator[None]:
    """Let no worker import the script that is run: it would run once more in each."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _serve(
    channel: Connection,
    work: Work,
    threads: int,
    environ: Mapping[str, str],
    folder: str,
) -> None:
    """A worker's life; the server process may be older than the environment."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    torch.set_num_threads(threads)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        try:
            task = channel.recv()
        except EOFError:
            return
        channel.send(
            ("done", attempt(work, task, lambda note: channel.send(("note", note))))
        )


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
