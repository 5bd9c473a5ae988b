"""FedML's role of the server: screening and averaging between FedML's hooks.

Imports fedml: reached through ``fedml_host``, which checks its version first.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from fedml import mlops
from fedml.core import ServerAggregator
from fedml.core.dp.fedml_differential_privacy import FedMLDifferentialPrivacy
from fedml.core.security.fedml_attacker import FedMLAttacker
from fedml.core.security.fedml_defender import FedMLDefender
from torch import Tensor, nn

from ...algorithms import FedClip
from ...errors import ConfigError
from ...federation import downlink
from ...federation.engine import Round
from ...federation.rounds import Scores, next_state, screen_round, stepped
from ...runs.host_run import HostRun
from ...wire.compression import decoded
from ...wire.message import update_bytes
from ...wire.spool import Spool, let_go, spool_for
from ...wire.update import ClientUpdate, State, on_device
from .data import Params, asked, parameters
from .log import final_lines, round_line
from .settings import Binding
from .trainer import device_state, open_binding, split_metrics, unforeseen


def unpacked(binding: Binding, sent: Mapping[str, Tensor]) -> Params:
    """The adapter that a client makes of what the server sent, on the CPU.

    Raises UpdateError for one that cannot be read.
    """
    fed = binding.setup.fed
    state = downlink.received(fed, on_device(sent, fed.task.text.device))
    return OrderedDict(on_device(state, "cpu"))


def hooked() -> bool:
    """Whether FedML's security or privacy looks at the single updates."""
    return bool(
        FedMLDefender.get_instance().is_defense_enabled()
        or FedMLDifferentialPrivacy.get_instance().is_dp_enabled()
        or FedMLAttacker.get_instance().is_attack_enabled()
    )


def fits(update: ClientUpdate, like: State) -> bool:
    """Whether a plain update has the keys, shapes and dtypes of ``like``, and rows."""
    state = update.state
    return (
        update.num_examples > 0
        and update.codec == "none"
        and state.keys() == like.keys()
        and all(
            state[k].shape == v.shape and state[k].dtype == v.dtype
            for k, v in like.items()
        )
    )


def finite(state: State) -> bool:
    """Whether all values are numbers."""
    return all(bool(torch.isfinite(value).all()) for value in state.values())


@contextmanager
def named_fedavg(args: Any) -> Iterator[None]:
    """FedML's average knows its own optimizers by name, and fails for another."""
    name, args.federated_optimizer = args.federated_optimizer, "FedAvg"
    try:
        yield
    finally:
        args.federated_optimizer = name


def like(state: Mapping[str, Tensor], model: State) -> Params:
    """``state`` in the dtypes and on the device of ``model``."""
    return OrderedDict((k, state[k].to(v.device, v.dtype)) for k, v in model.items())


_log = logging.getLogger("fedclip")


Raw = Sequence[tuple[float, Params]]
"""What FedML hands to an aggregator: number of examples and parameters, no names."""


@dataclass
class Wire:
    """Bytes of messages with an adapter in them, since the round before."""

    up: int = 0
    down: int = 0


class FedCLIPAggregator(ServerAggregator):  # type: ignore[misc]
    """FedCLIP's screening and averaging between FedML's security and privacy hooks.

    The round is written down in :meth:`on_after_aggregation`, the last of the three
    calls that FedML makes, and the run closed after round ``comm_round``.
    """

    def __init__(self, model: nn.Module, args: Any) -> None:
        super().__init__(model, args)
        self.binding = open_binding(args)
        self.metrics: dict[str, Mapping[str, float]] = {}
        self.wire: Wire | None = None
        self.summary: dict[str, Any] | None = None
        self._opened: Round | None = None
        self._voters: list[str] = []
        self._unread: list[ClientUpdate] = []  # those whose values nobody has looked at
        self._codec = "none"  # of what on_before_aggregation gave
        self._spool: tuple[Round, Spool | None] | None = None

    @cached_property
    def run(self) -> HostRun:
        """The server's side; first needed, and its directory made, on the server."""
        return HostRun(self.binding.setup, *self.binding.out)

    @property
    def opened(self) -> Round:
        """The round under way; opened by what is sent first, or comes first."""
        if self._opened is None:
            state = device_state(self.binding, self.model)
            self._opened = self.run.open_round({k: v.clone() for k, v in state.items()})
        return self._opened

    def payload(self) -> Params:
        """The adapter as it goes down, ``fedclip_compress_down``; on the CPU."""
        return OrderedDict(on_device(self.opened.sent.payload, "cpu"))

    def get_model_params(self) -> Params:
        """The adapter, whole."""
        return parameters(self.model)

    def set_model_params(self, model_parameters: Params) -> None:
        """Take over an adapter."""
        self.model.load_state_dict(model_parameters)

    def keep(self, params: Any) -> Any:
        """What a client sent; on the disk where memory is not to hold a round of it."""
        tensors = isinstance(params, Mapping) and all(
            isinstance(value, Tensor) for value in params.values()
        )
        if not tensors:
            return params
        if self._spool is None or self._spool[0] is not self.opened:
            count = len(asked(self.binding, self.args))
            device = self.binding.setup.fed.task.text.device
            self._spool = self.opened, spool_for(count, self.opened.sent.answer, device)
        spool = self._spool[1]
        if spool is None:
            return params
        kept = OrderedDict(spool.place(params))
        let_go()
        return kept

    def close_round(self, raw: Raw) -> Params:
        """FedML's three steps in a row; the model holds the result."""
        kept, _ = self.on_before_aggregation(raw)
        state = self.on_after_aggregation(self.aggregate(kept))
        self.set_model_params(state)
        return state

    def on_before_aggregation(self, raw_client_model_or_grad_list: Raw) -> Any:
        """Screen the updates, then FedML's clipping, attacks and defenses.

        Returns the list and the places in the given one that are in it.
        """
        names = [client.name for client in asked(self.binding, self.args)]
        updates = [
            self._received(name, *entry)
            for name, entry in zip(names, raw_client_model_or_grad_list)
        ]
        self.metrics = {}
        answers = [update for update in updates if update]
        self.run.check_examples(self.opened, answers, names)
        sound = self._screen(answers, names)
        ids = {id(update) for update in sound}
        places = [i for i, update in enumerate(updates) if id(update) in ids]
        self._voters = [u.client for u in sound]
        readable = self._readable(sound)
        raw = [(u.num_examples, OrderedDict(u.state)) for u in readable]
        if not raw:
            return raw, places
        try:
            kept, benign = super().on_before_aggregation(raw)
        except ValueError as error:
            if len(raw) == len(names):  # nobody is missing: it never could
                raise
            _log.warning("a defense of FedML's refuses %d updates: %s", len(raw), error)
            self._voters = []
            return [], []
        if len(kept) != len(raw):  # a defense chose: it does not tell whom
            self._voters = [f"chosen-{i:03d}" for i in range(len(kept))]
        return kept, [places[i] for i in benign]

    def aggregate(self, raw_client_model_or_grad_list: Raw) -> Params:
        """FedCLIP's average; with a defense FedML's own, of FedCLIP's weights."""
        raw = raw_client_model_or_grad_list
        opened, fed = self.opened, self.run.fed
        state = opened.state
        voters = [(count, given) for count, given in raw if count > 0]
        if not voters and not fed.task.privacy.private:
            return OrderedDict(state)
        if FedMLDefender.get_instance().is_defense_enabled():
            if fed.task.server.weighting == "uniform":
                voters = [(1, given) for _, given in voters]
            with named_fedavg(self.args):
                theirs = like(super().aggregate(voters), opened.sent.seen)
            after, opened.memory = stepped(
                fed, theirs, state, opened.sent, opened.memory
            )
            return OrderedDict(after)
        privacy = FedMLDifferentialPrivacy.get_instance()
        if privacy.to_compute_params_in_aggregation_enabled():
            privacy.set_params_for_dp(raw)
        told = {u.client: u.metrics for u in opened.screened.sound}
        updates = [
            ClientUpdate(
                name, dict(given), int(count), told.get(name, {}), codec=self._codec
            )
            for name, (count, given) in zip(self._voters, raw)
        ]
        screened = replace(opened.screened, sound=updates)
        before = opened.memory
        after, memory = next_state(fed, screened, state, opened.number, before)
        if self._unread and not finite(after):  # once more, without what spoiled it
            names = screened.participants
            opened.screened = screen_round(fed, opened.sent, self._unread, names)
            opened.count_bytes(screened.bytes_up, screened.bytes_down)
            screened = opened.screened
            after, memory = next_state(fed, screened, state, opened.number, before)
        opened.memory = memory
        return OrderedDict(after)

    def on_after_aggregation(self, aggregated_model_or_grad: Params) -> Params:
        """FedML's noise and defenses; then the round is scored and written down."""
        with unforeseen():
            after = super().on_after_aggregation(aggregated_model_or_grad)
        state = like(after, self.opened.state)
        self._close_round(state)
        return OrderedDict((key, value.cpu()) for key, value in state.items())

    def test(self, test_data: Any, device: Any, args: Any) -> tuple[Any, ...]:
        """Accuracy of ``test_data`` in the first of FedML's four places."""
        found = split_metrics(self.binding, self.model, test_data)
        return found["test_accuracy"], found["test_loss"], None, None

    def test_all(self, *args: Any) -> bool:
        """Every client is tested in each round already."""
        return True

    def _received(self, name: str, count: Any, state: Any) -> ClientUpdate | None:
        """What a client sent, as far as it can be read; None for no answer."""
        number = getattr(self.args, "round_idx", 0) + 1
        if state is None:
            _log.warning("client %s sent no update in round %d", name, number)
            return None
        device = self.binding.setup.fed.task.text.device
        tensors = isinstance(state, Mapping) and all(
            isinstance(value, Tensor) for value in state.values()
        )
        read = {k: v.detach().to(device) for k, v in state.items()} if tensors else {}
        examples = int(count) if isinstance(count, (int, float)) else -1
        codec = self.run.fed.task.wire.compress
        told = self.metrics.get(name, {})
        return ClientUpdate(name, read, examples, told, codec=codec)

    def _readable(self, updates: list[ClientUpdate]) -> list[ClientUpdate]:
        """Decoded where FedML or a derived class looks at them; our mean reads both."""
        shown = hooked() or getattr(self.args, "enable_contribution", False)
        if shown or type(self) is not FedCLIPAggregator:
            updates = decoded(updates, self.opened.sent.answer)
        self._codec = updates[0].codec if updates else "none"
        return updates

    def _screen(
        self, updates: list[ClientUpdate], names: list[str]
    ) -> list[ClientUpdate]:
        """The sound ones; values are read only where something asks for them.

        Without screening by distance (``max_norm_ratio`` 0) the mean tells enough: NaN
        and Inf pass through it, so where it is finite, all that went in was.
        """
        opened, fed, self._unread = self.opened, self.run.fed, []
        if self._mean_tells() and all(fits(u, opened.sent.answer) for u in updates):
            self._unread = updates
            size = sum(map(update_bytes, updates))
            nobody = screen_round(fed, opened.sent, [], names)
            opened.screened = replace(nobody, sound=updates, bytes_up=size)
        else:
            opened.screened = screen_round(fed, opened.sent, updates, names)
        if self.wire is not None:
            opened.count_bytes(self.wire.up, self.wire.down)
            self.wire.up = self.wire.down = 0
        return opened.screened.sound

    def _mean_tells(self) -> bool:
        fed = self.binding.setup.fed
        server = fed.task.server
        return (
            type(self) is FedCLIPAggregator
            and type(fed.algorithm) is FedClip
            and server.aggregation == "mean"
            and server.max_norm_ratio == 0
            and not fed.task.privacy.private
            and not hooked()
        )

    def _close_round(self, state: State) -> None:
        opened, self._opened, self._spool = self.opened, None, None
        if not opened.screened.participants:  # FedML aggregated nothing of ours
            return
        opened.state = state
        place, rounds = getattr(self.args, "round_idx", 0), self.args.comm_round
        every = max(1, int(getattr(self.args, "frequency_of_the_test", 1) or 1))
        last = place == rounds - 1
        scores: Scores | None = None if last or place % every == 0 else {}
        result = self.run.close_round(opened, scores)
        logging.info(round_line(result, rounds))
        if result.mean_test is not None:
            mlops.log({"Test/Acc": result.mean_test, "round": place})
        if last:
            self._close()

    def _close(self) -> None:
        self.summary = self.run.finish()
        for line in final_lines(self.summary):
            logging.info(line)

    def go_on(self) -> int:
        """Take over the adapter of a run that goes on; the number of rounds done."""
        done, rounds = self.run.done, self.args.comm_round
        if done:
            _log.warning("going on after round %d of %d", done, rounds)
            self.set_model_params(OrderedDict(self.run.state))
        if done >= rounds:
            self._close()
        return done


def aggregator_of(configured: Any, model: nn.Module, args: Any) -> FedCLIPAggregator:
    """The server's aggregator, ``configured`` or ours; its directory is opened now."""
    aggregator = FedCLIPAggregator(model, args) if configured is None else configured
    if not isinstance(aggregator, FedCLIPAggregator):
        raise ConfigError(
            f"server_aggregator: expected a FedCLIPAggregator, got {aggregator!r}"
        )
    aggregator.go_on()  # a directory that cannot be used is refused before training
    return aggregator
