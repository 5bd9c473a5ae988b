"""FedML's cross-silo mode, a client: it waits for its server, and answers it.

Imports fedml: reached through ``fedml_host``.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any

from fedml.core.distributed.communication.message import Message
from fedml.cross_silo.client.fedml_client_master_manager import ClientMasterManager
from fedml.cross_silo.client.fedml_trainer_dist_adapter import TrainerDistAdapter
from fedml.cross_silo.server.fedml_aggregator import FedMLAggregator
from fedml.cross_silo.server.fedml_server_manager import FedMLServerManager
from fedml.cross_silo.server.message_define import MyMessage
from torch import nn

from ...errors import ConfigError
from ...wire.message import is_count
from ..common.server import PATIENCE
from . import own_data
from .data import Params, asked
from .grpc import check_silo, deliver, undelivered
from .private import is_private
from .server import Wire, aggregator_of, unpacked
from .settings import FILE, SECONDS, TIMEOUT, bind, value
from .trainer import PROCESS, ROUND, trainer_of
from .transport import OverGrpc

_log = logging.getLogger("fedclip")


_MODEL = MyMessage.MSG_ARG_KEY_MODEL_PARAMS


_COUNT = MyMessage.MSG_ARG_KEY_NUM_SAMPLES


_FROM_CLIENT = MyMessage.MSG_TYPE_C2S_SEND_MODEL_TO_SERVER


class _Aggregator(FedMLAggregator):  # type: ignore[misc]
    def add_local_trained_result(self, index: int, params: Any, count: Any) -> None:
        # FedML would move whatever came to the device, and fail where it cannot
        self.model_dict[index] = self.aggregator.keep(params)
        self.sample_num_dict[index] = count
        self.flag_client_model_uploaded_dict[index] = True


class _Server(OverGrpc, FedMLServerManager):  # type: ignore[misc]
    def __init__(self, args: Any, aggregator: Any, *where: Any) -> None:
        super().__init__(args, aggregator, *where)
        self.args.round_idx = aggregator.aggregator.run.done
        self._process = uuid.uuid4().hex
        self.timeout = value(args, TIMEOUT, SECONDS)
        self.wire = Wire()
        self._processes: dict[int, str | None] = {}
        if self.transport is not None:
            self.transport.idle = self._look_around
            aggregator.aggregator.wire = self.wire
        elif self.timeout:
            raise ConfigError(
                f"{FILE}: {TIMEOUT} works with backend: GRPC, not with {args.backend}"
            )
        self._since = self._told = time.monotonic()

    def send_message(self, message: Message) -> None:
        """FedML's, with the round; a client that is not there is named."""
        heavy = message.get(_MODEL) is not None
        if heavy:
            message.add_params(_MODEL, self.aggregator.aggregator.payload())
            message.add_params(ROUND, self._next_round(message))
            message.add_params(PROCESS, self._process)
        try:
            super().send_message(message)
        except Exception as error:
            if not undelivered(error):
                raise
            self._unreachable(message.get_receiver_id())
        else:
            if self.transport is not None and heavy:
                self.wire.down += self.transport.sent
        self._since = self._told = time.monotonic()

    def handle_message_connection_ready(self, msg_params: Message) -> None:
        """FedML's, which draws the first round's clients; here of any round."""
        number = self.args.round_idx
        self.args.round_idx = max(0, number - 1)  # as at the end of the round before
        super().handle_message_connection_ready(msg_params)
        self.args.round_idx = number

    def process_online_status(self, client_status: Any, msg_params: Message) -> None:
        """FedML's until all are there; later, a client started again joins in.

        FedML's client reports twice, and its server sends the model to all anew.
        """
        sender, process = msg_params.get_sender_id(), msg_params.get(PROCESS)
        before, self._processes[sender] = self._processes.get(sender), process
        if not (self.is_initialized or self._finished()):
            super().process_online_status(client_status, msg_params)
        elif process != before and sender in self.client_id_list_in_this_round:
            _log.warning("client %s is back", self._name(sender))
            place = self.client_id_list_in_this_round.index(sender)
            model = self.aggregator.get_global_model_params()
            index = self.data_silo_index_list[place]
            self.send_message_init_config(sender, model, index)

    def handle_message_receive_model_from_client(self, msg_params: Message) -> None:
        sender, number = msg_params.get_sender_id(), msg_params.get(ROUND)
        if not self.is_initialized:  # to the server before this one; it is asked again
            return
        if self.transport is not None:
            self.wire.up += self.transport.received
        if number != self.args.round_idx:
            _log.warning(
                "late answer of client %s to round %s left out in round %d",
                *(self._name(sender), _counted(number), self.args.round_idx + 1),
            )
            return
        if not is_count(msg_params.get(_COUNT)):
            msg_params.add_params(_COUNT, -1)  # for the screening to name
        super().handle_message_receive_model_from_client(msg_params)

    def _next_round(self, message: Message) -> int:
        started = message.get_type() != MyMessage.MSG_TYPE_S2C_INIT_CONFIG
        return int(self.args.round_idx + started)

    def _name(self, client_id: int) -> str:
        server = self.aggregator.aggregator
        place: int = self.client_real_ids.index(client_id)
        return f"{asked(server.binding, self.args)[place].name} (rank {client_id})"

    def _unreachable(self, client_id: int) -> None:
        _log.warning("client %s cannot be reached", self._name(client_id))
        if self._finished():
            self.client_finished_mapping[str(client_id)] = True

    def _finished(self) -> bool:
        return bool(self.aggregator.aggregator.summary)

    def _missing(self) -> list[int]:
        """The clients whose word the server waits for, by their ids."""
        if self.client_id_list_in_this_round is None:
            return []
        if self._finished():
            there = self.client_finished_mapping
        elif not self.is_initialized:
            there = self.client_online_mapping
        else:
            flags = self.aggregator.flag_client_model_uploaded_dict
            there = {str(c): flags[i] for i, c in enumerate(self.client_real_ids)}
        return [c for c in self.client_real_ids if not there.get(str(c), False)]

    def _look_around(self) -> None:
        """Called while no message comes: say who is missing, end an overdue round."""
        now, missing = time.monotonic(), self._missing()
        if self._finished() and not missing:
            self.finish()
            return
        if not missing:
            return
        waits = self.timeout if self.timeout and self.is_initialized else None
        if waits and now - self._since > waits:
            self._go_on_without(missing)
        elif now - self._told > PATIENCE:
            self._told = now
            names = ", ".join(map(self._name, missing))
            _log.warning("waiting for client %s since %.0f s", names, now - self._since)

    def _go_on_without(self, missing: Sequence[int]) -> None:
        names = ", ".join(map(self._name, missing))
        _log.warning("client %s did not answer in %.0f s", names, self.timeout)
        if self._finished():
            self.finish()
            return
        for client_id in missing:
            nothing = Message(_FROM_CLIENT, client_id, 0)
            nothing.add_params(_COUNT, 0)
            super().handle_message_receive_model_from_client(nothing)


def _counted(number: Any) -> str:
    """A round as people count it, of what a message says."""
    return str(number + 1) if is_count(number) else "unknown"


def serve(
    args: Any,
    device: Any,
    dataset: Sequence[Any],
    model: nn.Module,
    server_aggregator: Any = None,
) -> None:
    """Serve until the last round; ``dataset`` is FedML's eight."""
    if is_private(args):
        own_data.serve(args, server_aggregator)
        return
    (count, _, train_all, test_all, counts, trains, tests, _) = dataset
    workers = args.worker_num
    if workers != args.client_num_per_round:
        raise ConfigError(
            f"{FILE}: worker_num: {workers}, but client_num_per_round: "
            f"{args.client_num_per_round}: cross-silo has one process for each client"
        )
    check_silo(args)
    aggregator = aggregator_of(server_aggregator, model, args)
    aggregator.set_id(0)
    inner = _Aggregator(
        *(train_all, test_all, count, trains, tests, counts),
        *(workers, device, args, aggregator),
    )
    _Server(args, inner, args.comm, args.rank, workers, args.backend).run()


_PLACE = MyMessage.MSG_ARG_KEY_CLIENT_INDEX


class _Adapter(TrainerDistAdapter):  # type: ignore[misc]
    def update_dataset(self, client_index: int | None = None) -> None:
        # FedML takes index 0 for none given, and the process's own index instead
        own = self.client_index if client_index is None else client_index
        self.trainer.update_dataset(int(own))

    def update_model(self, model_params: Params) -> None:
        """FedML's, of the adapter as it went down."""
        super().update_model(unpacked(bind(self.args), model_params))


class _Client(OverGrpc, ClientMasterManager):  # type: ignore[misc]
    is_inited: bool

    def __init__(self, args: Any, adapter: Any, *where: Any) -> None:
        super().__init__(args, adapter, *where)
        self._process = uuid.uuid4().hex
        self._server: str | None = None

    def send_message(self, message: Message) -> None:
        """FedML's, with the round; a server that is not up yet is waited for."""
        if message.get_type() == _FROM_CLIENT:
            message.add_params(ROUND, self.round_idx)
        else:
            message.add_params(PROCESS, self._process)
        deliver(super().send_message, message, self.args)

    def _asks(self, message: Message) -> bool:
        """Whether it asks for work that there is; the log names what does not."""
        number, place = message.get(ROUND), message.get(_PLACE)
        ranks = {str(i) for i in range(self.args.client_num_in_total)}
        if is_count(number) and str(place) in ranks and message.get(_MODEL):
            return True
        _log.warning("a message asks client %s for round %s: refused", place, number)
        return False

    def handle_message_init(self, msg_params: Message) -> None:
        if not self._asks(msg_params):
            return
        before, self._server = self._server, msg_params.get(PROCESS)
        if self._server != before:  # the first, or one that was started again
            self.is_inited = False
        if not msg_params.get(ROUND):
            super().handle_message_init(msg_params)
        elif not self.is_inited:  # back, or late, in a run that is under way
            self.is_inited = True
            self.handle_message_receive_model_from_server(msg_params)

    def handle_message_receive_model_from_server(self, msg_params: Message) -> None:
        if not self._asks(msg_params):
            return
        self.round_idx = msg_params.get(ROUND)
        super().handle_message_receive_model_from_server(msg_params)


def join(
    args: Any,
    device: Any,
    dataset: Sequence[Any],
    model: nn.Module,
    model_trainer: Any = None,
) -> None:
    """Train for the server until it is done; ``dataset`` is FedML's eight."""
    if is_private(args):
        own_data.join(args, model_trainer)
        return
    (count, _, _, _, counts, trains, tests, _) = dataset
    check_silo(args)
    trainer = trainer_of(model_trainer, model, args)
    adapter = _Adapter(
        *(args, device, args.rank, model, count, counts, trains, tests, trainer)
    )
    where = (args.comm, args.rank, args.worker_num, args.backend)
    _Client(args, adapter, *where).run()
