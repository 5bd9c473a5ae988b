"""FedCLIP as a Flower strategy, and the ServerApp that runs it.

A round: the adapter goes to the clients, theirs come back, are screened and averaged by
the package's own rules; then the clients measure the new one.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result, Strategy

from ...algorithms import get_algorithm
from ...data.partition import NO_TARGET
from ...errors import ConfigError, FedClipError, RunError
from ...federation import downlink
from ...federation.build import participants
from ...federation.doubts import check_counts
from ...federation.engine import Round
from ...federation.evaluation import summary_scores
from ...federation.rounds import scored
from ...runs.host_run import HostRun, one_run
from ...stats import mean
from ...wire.spool import Spool, spool_for
from ...wire.update import ClientUpdate, State
from ..common.log import conclude, greet, tell
from ..common.roster import card_of_target, setup_of_server, setup_without_data
from . import records
from .arrivals import Arrivals, Take
from .nodes import Nodes, Phase
from .options import server_settings

_log = logging.getLogger("flwr")


class FedClip(Strategy):  # type: ignore[misc]  # flwr is not there when types are
    """FedCLIP (Lu et al. 2023, arXiv 2302.13485) over Flower's message API.

    ``options`` are those of a run config (docs/flower.md): the long options of
    ``fedclip run``, and Flower's ``num-server-rounds``, ``fraction-train``, ...
    FEDCLIP_* variables and fedclip.toml fill in what is not among them.

    The clients run ``flower_host:client_app``, or answer as it does: one ArrayRecord
    and one MetricRecord with ``num-examples``.
    """

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        config, self.out, self.sampling = server_settings(options or {})
        self.config = one_run(config)
        if not get_algorithm(config.algorithm).communicates:
            raise ConfigError(
                f"--alg {config.algorithm} sends nothing to a server: use `fedclip run`"
            )
        self.nodes = Nodes(self.config, self.sampling)
        self.host_run: HostRun | None = None
        self._phase = Phase()
        self._round: Round | None = None  # from its opening to its close
        self._trained: Mapping[int, str] = {}  # node -> client of the round
        self._spool: Spool | None = None  # of updates that are too many for the memory

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Any = None,
    ) -> Result:
        """Run all rounds; ``result.arrays`` is the last adapter.

        What is None comes from the options; the first adapter is drawn from the seed.
        A run that goes on (``resume``) takes its own, and counts its rounds from 1 in
        the result; log and files have their numbers.  Raises FedClipError where the run
        cannot begin.
        """
        if timeout is not None:
            self.nodes.timeout = timeout
        if num_rounds is not None:
            train = replace(self.config.train, rounds=num_rounds)
            self.config = self.nodes.config = replace(self.config, train=train)
        first, done = self.initial_arrays(grid), self._run.done
        if initial_arrays is not None and not done:
            first = initial_arrays
        result = super().start(
            Arrivals(grid, self._taker),
            first,
            max(0, self.config.train.rounds - done),
            self.nodes.timeout,
            train_config,
            evaluate_config,
            evaluate_fn,
        )
        if done >= self.config.train.rounds:
            result.arrays = first
        self.finish()
        return result

    def initial_arrays(self, grid: Grid) -> ArrayRecord:
        """Ask the clients what they are; the first adapter, drawn from the seed.

        For strategies that wrap this one and have a ``start`` of their own.
        """
        if self.host_run is None:
            setup = None
            if self.config.data.targets != (NO_TARGET,):
                setup = setup_of_server(self.config)
                self.nodes.roster.model = card_of_target(setup)
            else:
                for note in self.config.notes:
                    _log.warning("fedclip: note: %s", note)
            share = self.config.server.participation
            first = self.nodes.first(grid, share, self.sampling.min_train_nodes)
            cards = list(first.values())
            setup = setup or setup_without_data(self.config, cards)
            if self.nodes.asks_all and not self.out.resume:
                # else others may have what these lack
                check_counts(setup.fed.algorithm, [card.rows[0] for card in cards])
            self.host_run = HostRun(setup, *self.out, drawn_from=self.nodes.drawn_from)
            if self.nodes.asks_all:
                greet(_log.log, cards, "the number of SuperNodes")
            if self.host_run.done:
                done, rounds = self.host_run.done, self.config.train.rounds
                _log.info("fedclip: going on after round %d of %d", done, rounds)
        return records.to_arrays(self.host_run.state)

    def summary(self) -> None:
        """Log the configuration, in the form of Flower's own strategies."""
        c, server, s = self.config.train, self.config.server, self.sampling
        _log.info(
            "\t├── FedCLIP: lr %g, %d local epochs, batch size %d, %s weighting, "
            "seed %d",
            *(c.lr, c.local_epochs, c.batch_size, server.weighting),
            self.config.seeds[0],
        )
        _log.info(
            "\t└── Sampling: train %g of at least %d, evaluate %g; %d nodes needed",
            *(server.participation, s.min_train_nodes, s.fraction_evaluate),
            s.min_available_nodes,
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The adapter for the clients of this round, drawn by the seed."""
        self.initial_arrays(grid)  # no-op but in a strategy that wraps this one
        opened = self._round = self._run.open_round(self._state(arrays))
        share, least = self.config.server.participation, self.sampling.min_train_nodes
        chosen = self.nodes.draw(grid, share, opened.number, least)
        self._run.drawn_from, self._trained = self.nodes.drawn_from, chosen
        device = self._run.fed.task.text.device
        self._spool = spool_for(len(chosen), opened.sent.answer, device)
        return self._send(
            MessageType.TRAIN, opened.sent.payload, config, opened.number, chosen
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The average of the sound adapters; the former one where there is none."""
        phase, self._spool = self._phase, None
        updates = [
            phase.updates.get(name) or self._read(name, content)
            for name, content in phase.sound(replies, self.nodes.timeout)
        ]
        arrays, sound = self._aggregate(updates)
        metrics = {
            "clients": len(sound),
            "left-out": len(phase.sent) - len(sound),
            "bytes-up": phase.bytes_up,
            "bytes-down": phase.bytes_down,
            "loss": mean([u.metrics.get("loss") for u in sound]),
        }
        return arrays, records.to_metrics(metrics)

    def _read(self, name: str, content: RecordDict) -> ClientUpdate:
        like, codec = self._opened.sent.answer, self.config.wire.compress
        return records.to_update(name, content, like, codec)

    def _taker(self) -> Take | None:
        """Who takes the replies of this phase as they come, if anybody."""
        spool, phase = self._spool, self._phase
        if spool is None:
            return None
        return lambda reply: phase.put_away(reply, self._read, spool)

    def _aggregate(
        self, updates: list[ClientUpdate]
    ) -> tuple[ArrayRecord, list[ClientUpdate]]:
        """The server's next state as arrays, and the updates that made it."""
        opened, phase = self._opened, self._phase
        state = self._run.aggregate(opened, updates, phase.clients)
        opened.count_bytes(phase.bytes_up, phase.bytes_down)
        return records.to_arrays(state), opened.screened.sound

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The new adapter for the clients; for nobody where the server scores."""
        opened, state = self._opened, self._state(arrays)
        opened.state = state  # a strategy around this one may have changed it
        number = opened.number
        theirs = scored(self.config.train, number) and not self._scores_here
        share = self.sampling.fraction_evaluate if theirs else 0.0
        chosen = self._judges(grid, share, number) if share else {}
        judged = self._run.judged(opened)
        sent = downlink.payload(self._run.fed, judged) if chosen else {}
        return self._send(MessageType.EVALUATE, sent, config, number, chosen)

    def _judges(self, grid: Grid, share: float, number: int) -> Mapping[int, str]:
        """Who measures the new adapter; of nodes that are not all asked the round's."""
        if self.nodes.asks_all:
            return self.nodes.draw(grid, share, number)
        nodes, seed = sorted(self._trained), self.config.seeds[0]
        chosen = participants(nodes, share, seed, number) if nodes else []
        return {node: self._trained[node] for node in chosen}

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Accuracy of every client and their mean, kept and written down."""
        phase = self._phase
        contents = phase.sound(replies, self.nodes.timeout)
        scores = {name: records.to_scores(content) for name, content in contents}
        if self._round is None:
            return None
        opened, self._round = self._round, None
        before = opened.screened  # with the bytes of training
        opened.count_bytes(
            before.bytes_up + phase.bytes_up, before.bytes_down + phase.bytes_down
        )
        result = self._run.close_round(opened, None if self._scores_here else scores)
        tell(_log.log, result, self.nodes.roster.cards.values(), self._run.setup.target)
        metrics = {
            **records.client_metrics(result.clients),
            "val-accuracy": result.mean_val if result.clients else None,
            "test-accuracy": result.mean_test,
            "target-accuracy": result.target,
            "round-bytes-up": result.bytes_up,
            "round-bytes-down": result.bytes_down,
        }
        return records.to_metrics(metrics)

    def finish(self) -> dict[str, Any]:
        """The summary of the run; with ``out`` its files are written."""
        cards = self.nodes.roster.cards.values()
        shots = summary_scores(None, {card.name: card.shot for card in cards})
        summary = self._run.finish(shots)
        conclude(_log.log, summary, self._run.directory)
        return summary

    @property
    def _run(self) -> HostRun:
        if self.host_run is None:
            raise RunError("the strategy has not begun: call start(grid) first")
        return self.host_run

    @property
    def _opened(self) -> Round:
        if self._round is None:
            raise RunError("no round is open: configure_train comes first")
        return self._round

    @property
    def _scores_here(self) -> bool:
        return bool(self._run.fed.clients)

    def _send(
        self,
        kind: str,
        payload: State,
        config: ConfigRecord,
        number: int,
        clients: Mapping[int, str],
    ) -> list[Message]:
        arrays = records.to_arrays(payload)
        self._phase = self.nodes.address(kind, arrays, config, number, clients)
        return [message for message, _ in self._phase.sent]

    def _state(self, arrays: ArrayRecord) -> State:
        state = records.to_state(arrays, self._run.state)
        got, want = (
            {k: tuple(v.shape) for k, v in s.items()} for s in (state, self._run.state)
        )
        if got != want:
            raise ConfigError(f"arrays {got} are not an adapter of this run: {want}")
        return state


def serve(strategy: type[FedClip], grid: Grid, context: Context) -> None:
    """Run a ServerApp with ``strategy``, on the run config."""
    try:
        strategy(context.run_config).start(grid)
    except FedClipError as error:  # Flower logs a traceback: make it a short one
        raise error.with_traceback(None) from None


def _main(grid: Grid, context: Context) -> None:
    serve(FedClip, grid, context)


server_app = ServerApp()
server_app.main()(_main)
