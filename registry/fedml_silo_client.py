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
from fedml.cross_silo.server.message_define import MyMessage
from torch import nn

from ..errors import ConfigError
from ..wire import is_count
from .fedml_grpc import check_silo, refusal, undelivered
from .fedml_roles import PROCESS, ROUND, trainer_of
from .fedml_settings import bind
from .fedml_transport import OverGrpc
from .fedml_updates import Params, unpacked

_log = logging.getLogger("fedclip")

SERVER_SECONDS = 120.0  # for which a client waits for its server
_RETRY = 0.5  # seconds
_MODEL = MyMessage.MSG_ARG_KEY_MODEL_PARAMS
_PLACE = MyMessage.MSG_ARG_KEY_CLIENT_INDEX
_FROM_CLIENT = MyMessage.MSG_TYPE_C2S_SEND_MODEL_TO_SERVER


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
        until = time.monotonic() + SERVER_SECONDS
        while not self._sent(message):
            if time.monotonic() > until:
                raise ConfigError(
                    f"the server (rank 0 of {self.args.grpc_ipconfig_path}) could not "
                    f"be reached for {SERVER_SECONDS:.0f} s: is it running?"
                )
            time.sleep(_RETRY)

    def _sent(self, message: Message) -> bool:
        try:
            super().send_message(message)
        except Exception as error:
            if not undelivered(error):
                raise
            if reason := refusal(error):
                raise ConfigError(f"the server refused a message: {reason}") from error
            return False
        return True

    def _asks(self, message: Message) -> bool:
        """Whether it asks for work that there is; the log names what does not."""
        number, place = message.get(ROUND), message.get(_PLACE)
        known = {str(i) for i in range(self.args.client_num_in_total)}
        if is_count(number) and str(place) in known and message.get(_MODEL):
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
    (count, _, _, _, counts, trains, tests, _) = dataset
    check_silo(args)
    trainer = trainer_of(model_trainer, model, args)
    adapter = _Adapter(
        *(args, device, args.rank, model, count, counts, trains, tests, trainer)
    )
    where = (args.comm, args.rank, args.worker_num, args.backend)
    _Client(args, adapter, *where).run()
