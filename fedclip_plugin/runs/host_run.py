"""A run in a host: the engine, and the files that ``fedclip run`` leaves.

A host hands over the updates that came in and passes on the state that comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..algorithms import Task
from ..errors import ConfigError
from ..federation.build import participants
from ..federation.engine import Round, Run
from ..federation.rounds import RoundResult, Scores
from ..report.trackers import find_trackers
from ..server.privacy import within_budget
from ..wire.update import State
from . import directory as directories
from .files import RunFiles
from .results import results
from .setup import Setup, one_run, open_setup

__all__ = ["HostRun", "Setup", "one_run", "open_setup"]


class HostRun(Run):
    """The server of a federation in a host.

    With ``out`` it leaves there what ``fedclip run`` leaves, so that ``fedclip report``
    and ``fedclip export`` work on runs of any host, and a checkpoint a round.  With
    ``resume`` it goes on with the run that it finds there, if there is one.  ``log``
    names the trackers that follow it.

    Raises ConfigError where the host's rounds would overspend a budget for privacy.
    """

    def __init__(
        self,
        setup: Setup,
        out: Path | None = None,
        resume: bool = False,
        log: Sequence[str] = (),
        drawn_from: int | None = None,
    ) -> None:
        _check_budget(setup.fed.task, drawn_from)
        find_trackers(log)
        for name in [*["resume"] * resume, *["log"] * bool(log)]:
            if out is None:
                raise ConfigError(
                    f"{name} needs the output directory of the run: set out"
                )
        self.setup = setup
        self.directory: Path | None = None
        self._files: RunFiles | None = None
        self._open = ExitStack()
        start = None
        if out is not None:
            resume = resume and (out / "config.toml").is_file()
            self.directory = directories.prepare_out(out, "", resume)
            self._open.callback(directories.hold(self.directory).release)
            if resume:
                directories.check_layout(self.directory, several=False)
            self._files = self._open.enter_context(
                RunFiles(self.directory, setup, log=log)
            )
            start = self._files.start(resume)
        super().__init__(setup.fed, start, drawn_from)

    def close_round(self, opened: Round, scores: Scores | None = None) -> RoundResult:
        """The engine's, and the round written down."""
        result = super().close_round(opened, scores)
        if self._files is not None:
            self._files.add(self.now)
        return result

    def finish(self, zero_shot: dict[str, Any] | None = None) -> dict[str, Any]:
        """The summary of the run; its files are written where there is ``out``.

        ``zero_shot`` is what the clients measured, where the data are with them.
        """
        files, self._files = self._files, None
        keep = files.keep_personal if files else _keep_nothing
        setup = replace(self.setup, fed=self.fed)
        with self._open:
            end = results(setup, self.now, keep, zero_shot=zero_shot)
            return files.finish(self.now, end) if files else end.summary


def _keep_nothing(client: str, state: State) -> None:
    """There is no directory for it."""


def _check_budget(task: Task, drawn_from: int | None) -> None:
    """A host counts the rounds itself: too many are refused before the first."""
    privacy, rounds = task.privacy, task.train.rounds
    if not privacy.private:
        return
    clients = drawn_from or 1
    cohort = len(participants(range(clients), task.server.participation, 0, 1))
    allowed = within_budget(privacy, rounds, clients, cohort)
    if allowed < rounds:
        raise ConfigError(
            f"--dp-epsilon-budget {privacy.dp_epsilon_budget:g} allows {allowed} "
            f"rounds, the host is to run {rounds}; set its rounds to {allowed}"
        )
