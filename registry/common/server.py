"""The rounds of a federation whose data are with its sites, however they are reached.

The server needs no data: sites say what they are, train, and measure.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ...algorithms import get_algorithm
from ...config.schema import RunConfig
from ...data.partition import NO_TARGET
from ...errors import ConfigError, RunError, UpdateError
from ...federation import downlink
from ...federation.doubts import check_counts
from ...federation.engine import Round
from ...federation.evaluation import summary_scores
from ...federation.rounds import RoundResult, scored
from ...runs.host_run import HostRun, one_run
from ...settings.sources import Output
from ...wire.spool import spool_for
from ...wire.update import ClientUpdate, on_device
from . import messages
from .log import Log, conclude, greet, tell
from .options import in_order, shared_text
from .roster import (
    Card,
    Roster,
    card_of_target,
    draw,
    setup_of_server,
    setup_without_data,
)

_PAUSE = 0.2  # seconds between two looks who has introduced itself
PATIENCE = 30.0  # seconds between two lines about who is missing
_ERROR = logging.ERROR
T = TypeVar("T")


class Sampling(Protocol):
    """Which sites take part in a round, and how long the server waits for them.

    Times are in seconds: until the first round, and for each phase of one.
    """

    @property
    def min_sites(self) -> int:
        """Without so many nothing begins."""

    @property
    def min_train_sites(self) -> int:
        """At least so many of a round."""

    @property
    def start_timeout(self) -> float:
        """To open the data, and to encode them."""

    @property
    def round_timeout(self) -> float:
        """For each phase."""


class Sites(Protocol):
    """The sites of a run, and how to reach them; raises what ends the run."""

    def names(self) -> list[str]:
        """The sites that may take part."""

    def ask(
        self,
        task: str,
        data: bytes,
        sites: Sequence[str],
        seconds: float,
        take: Callable[[str, bytes], None],
    ) -> None:
        """Hand each answer that comes in time to ``take``, with its site.

        One at a time, as they come; none of them is kept.
        """

    def post(self, task: str, data: bytes, site: str) -> None:
        """Ask without waiting: the answer will be among those that have come."""

    def come(self) -> dict[str, bytes]:
        """Answers to what was posted since the last call, by site."""

    def pause(self, seconds: float) -> None:
        """Wait; as every call, it raises where the run was aborted."""

    def anew(self) -> list[str]:
        """Sites whose process began anew since the last call, where that is known."""

    def refuse(self, site: str, reason: str) -> None:
        """Tell a site that it cannot take part, where that is possible."""


class Server:
    """The server of a run: ``sites`` are who may take part, each called a ``word``.

    A site that fails to answer in time is left out of the rounds, and asked again
    without waiting: it is back as soon as it answers.
    """

    word = "site"
    alone = False  # whether the server's data are none of the sites'

    def __init__(
        self,
        config: RunConfig,
        out: Output,
        sampling: Sampling,
        sites: Sites,
        log: Log,
    ) -> None:
        self.config, self.out, self.sampling = one_run(config), out, sampling
        if not get_algorithm(config.algorithm).communicates:
            raise ConfigError(
                f"--alg {config.algorithm} sends nothing to a server: use `fedclip run`"
            )
        self.sites, self.log = sites, log
        self.roster: Roster[str] = Roster(logging.getLogger("fedclip"), self.word)
        self.run: HostRun | None = None
        self._shared = shared_text(self.config)
        self._asked: set[str] = set()  # posted to, without an answer so far
        self._away: set[str] = set()
        self._refused: set[str] = set()  # those that were told so
        self._names = in_order(sites.names())

    def play(self) -> dict[str, Any]:
        """All rounds; the summary of the run.  Raises FedClipError."""
        run = self.run = self._begin()
        while run.done < self.config.train.rounds:
            self._round(run)
        cards = self.roster.cards.values()
        shots = summary_scores(None, {card.name: card.shot for card in cards})
        summary = run.finish(shots)
        self.concluded(summary, run.directory)
        return summary

    def closed(self, result: RoundResult) -> None:
        """Tell of a round."""
        target = None if self.run is None else self.run.setup.target
        tell(self.log, result, self.roster.cards.values(), target)

    def concluded(self, summary: Mapping[str, Any], directory: Path | None) -> None:
        """Tell of the run."""
        conclude(self.log, summary, directory)

    # -------------------------------------------------------------- who takes part

    def _begin(self) -> HostRun:
        setup = None
        if self.config.data.targets != (NO_TARGET,):
            setup = setup_of_server(self.config, self.alone)
            self.roster.model = card_of_target(setup)
        else:
            for note in self.config.notes:
                self.log(logging.WARNING, f"fedclip: note: {note}")
        cards = list(self._gathered().values())
        setup = setup or setup_without_data(self.config, cards)
        if not (self._asked or self.out.resume):  # else others may have what these lack
            check_counts(setup.fed.algorithm, [card.rows[0] for card in cards])
        run = HostRun(setup, *self.out, drawn_from=len(cards))
        greet(self.log, cards, f"the number of {self.word}s")
        if run.done:
            line = f"after round {run.done} of {self.config.train.rounds}"
            self.log(logging.INFO, f"fedclip: going on {line}")
        return run

    def _gathered(self) -> dict[str, Card]:
        """The clients once all sites have answered, or time is up."""
        self._look_around()
        begun = told = time.monotonic()
        late = False
        while self._asked and not late:
            now = time.monotonic()
            late = now - begun > self.sampling.start_timeout
            if now - told > PATIENCE:
                told, missing = now, ", ".join(in_order([*self._asked]))
                line = f"waiting for {self.word} {missing} since {now - begun:.0f} s"
                self.log(logging.WARNING, f"fedclip: {line}")
            self.sites.pause(_PAUSE)
            self._look_around()
        clients, least = self._clients(), self.sampling.min_sites
        for site in in_order([*self._asked]):
            waited = f"did not say in {self.sampling.start_timeout:g} s what it is"
            self.log(logging.WARNING, f"fedclip: {self.word} {site} {waited}")
        if len(clients) < least:
            why = "; ".join(self.roster.refusals()) or f"no {self.word} answered"
            raise RunError(f"{len(clients)} of {least} clients can take part: {why}")
        return clients

    def _look_around(self) -> None:
        """Take in who has answered, and ask who has not been asked."""
        for site in self.sites.anew():
            self.roster.pardon(site)
            self._refused.discard(site)
            self._asked.discard(site)
            self._away.add(site)
        for site, data in self.sites.come().items():
            self._asked.discard(site)
            self._away.discard(site)
            self._take_in(site, data)
        strangers = self.roster.strangers(self._names)
        for site in in_order([*{*strangers, *self._away} - self._asked]):
            sent = messages.request({}, 0, self._shared, self._names)
            self.sites.post(messages.INTRODUCE, sent, site)
            self._asked.add(site)

    def _take_in(self, site: str, data: bytes) -> None:
        try:
            if line := messages.failure_in(data, f"{self.word} {site}"):
                self.roster.refuse(site, line)
            else:
                self.roster.add(site, messages.card_in(data, f"{self.word} {site}"))
        except UpdateError as error:
            self.roster.refuse(site, str(error))

    def _clients(self) -> dict[str, Card]:
        there = [n for n in self._names if n not in self._away]
        clients = self.roster.clients(there)
        for site, reason in self.roster.refused.items():
            if site in there and site not in self._refused:
                self._refused.add(site)
                self.sites.refuse(site, reason)
        return clients

    # --------------------------------------------------------------------- rounds

    def _round(self, run: HostRun) -> None:
        cards = self._present(run)
        opened = run.open_round()
        share, least = self.config.server.participation, self.sampling.min_train_sites
        chosen = draw(cards, self.config, share, opened.number, least)
        run.drawn_from = len(cards)
        counted = [0, 0]
        updates = self._answers(
            *(messages.TRAIN, opened.sent.payload, opened.number, chosen, counted),
            self._reader(run, opened, len(chosen)),
        )
        run.aggregate(opened, list(updates.values()), list(chosen.values()))
        del updates  # and the file that they may lie in
        scores = self._scores(run, opened, counted)
        opened.count_bytes(*counted)
        result = run.close_round(opened, scores)
        self.closed(result)

    def _reader(
        self, run: HostRun, opened: Round, count: int
    ) -> Callable[[str, bytes], ClientUpdate]:
        """What makes a client's update of its answer.

        On the disk, where memory is not to hold ``count`` of them.
        """
        like, codec = opened.sent.answer, self.config.wire.compress
        device = run.fed.task.text.device
        spool = spool_for(count, like, device)

        def read(client: str, data: bytes) -> ClientUpdate:
            update = messages.update_in(data, client, like, codec)
            if spool is not None:
                return spool.keep([update])[0]
            return replace(update, state=on_device(update.state, device))

        return read

    def _present(self, run: HostRun) -> dict[str, Card]:
        """The clients of a round; waits where there is none that could train."""
        self._look_around()
        end = time.monotonic() + self.sampling.round_timeout
        idle = not run.fed.algorithm.learns  # a round without examples will do
        while True:
            cards = self._clients()
            if any(card.rows[0] or idle for card in cards.values()):
                return cards
            if time.monotonic() > end:
                lack = " with training images" if cards else ""
                raise RunError(
                    f"round {run.done + 1}: no {self.word}{lack} has answered in "
                    f"{self.sampling.round_timeout:g} s; the run ends"
                )
            self.sites.pause(_PAUSE)
            self._look_around()

    def _scores(
        self, run: HostRun, opened: Round, counted: list[int]
    ) -> dict[str, dict[str, float | None]] | None:
        """What the clients measure; None where the server does, {} for nobody."""
        if run.fed.clients:
            return None
        if not scored(self.config.train, opened.number):
            return {}
        present = {site: card.name for site, card in self._clients().items()}
        judged = downlink.payload(run.fed, run.judged(opened))
        answers = self._answers(
            *(messages.VALIDATE, judged, opened.number, present, counted),
            lambda client, data: data,
        )
        return messages.scores_in(answers)

    def _answers(
        self,
        task: str,
        payload: Mapping[str, Any],
        number: int,
        clients: Mapping[str, str],
        counted: list[int],
        read: Callable[[str, bytes], T],
    ) -> dict[str, T]:
        """What ``read`` makes of answers, by client, in client order.

        The log names those who gave none.
        """
        data = messages.request(dict(payload), number, self._shared, self._names)
        seconds = self.sampling.round_timeout
        answers: dict[str, T] = {}
        heard: set[str] = set()
        missing = dict.fromkeys(clients, f"no answer within {seconds:g} s")

        def take(site: str, answer: bytes) -> None:
            heard.add(site)
            counted[0] += len(answer)
            if reason := self._failure(site, answer):
                missing[site] = reason
                return
            missing.pop(site, None)
            answers[site] = read(clients[site], answer)

        self.sites.ask(task, data, list(clients), seconds, take)
        counted[1] += len(data) * len(clients)
        self._away |= missing.keys() - heard
        phase = "round" if task == messages.TRAIN else "the evaluation of round"
        for site, reason in missing.items():
            line = f"client {clients[site]} left out of {phase} {number}: {reason}"
            self.log(_ERROR, line)
        return {
            name: answers[site] for site, name in clients.items() if site in answers
        }

    def _failure(self, site: str, answer: bytes) -> str | None:
        """Why a site could not do what was asked; torn bytes are left to screening."""
        try:
            return messages.failure_in(answer, f"{self.word} {site}")
        except UpdateError as error:
            self.log(_ERROR, f"fedclip: {error}")
            return None
