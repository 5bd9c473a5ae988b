"""FedML's MPI simulation: rank 0 serves, every other rank trains one sampled client.

FedML's own server averages by itself and leaves out the aggregator's hooks; its client
leaves out the trainer's, and waits for ever when there is but one round.  Imports
fedml: reached through ``fedml_host``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedml.simulation.mpi.fedavg.FedAVGAggregator import FedAVGAggregator
from fedml.simulation.mpi.fedavg.FedAvgClientManager import FedAVGClientManager
from fedml.simulation.mpi.fedavg.FedAvgServerManager import FedAVGServerManager
from fedml.simulation.mpi.fedavg.FedAVGTrainer import FedAVGTrainer
from fedml.simulation.mpi.fedavg.message_define import MyMessage
from torch import nn

from ..errors import ConfigError
from .fedml_roles import ROUND, trainer_of
from .fedml_server import aggregator_of
from .fedml_settings import FILE, bind
from .fedml_updates import Params, packed, unpacked

_MODEL = MyMessage.MSG_ARG_KEY_MODEL_PARAMS


class _Server(FedAVGAggregator):  # type: ignore[misc]
    def aggregate(self) -> Params:
        raw = [
            (self.sample_num_dict[i], self.model_dict[i])
            for i in range(self.worker_num)
        ]
        state: Params = self.aggregator.close_round(raw)
        return state


class _Trainer(FedAVGTrainer):  # type: ignore[misc]
    def update_model(self, weights: Params) -> None:
        super().update_model(unpacked(bind(self.args), weights))

    def train(self, round_idx: int | None = None) -> tuple[Params, int]:
        self.args.round_idx = round_idx
        given = (self.train_local, self.device, self.args)
        self.trainer.on_before_local_training(*given)
        self.trainer.train(*given)
        self.trainer.on_after_local_training(*given)
        return self.trainer.get_model_params(), self.local_sample_number


class _Manager(FedAVGServerManager):  # type: ignore[misc]
    def send_message(self, message: Any) -> None:
        message.add_params(ROUND, self.args.round_idx)
        if (whole := message.get(_MODEL)) is not None:
            message.add_params(_MODEL, packed(bind(self.args), whole))
        super().send_message(message)


class _Client(FedAVGClientManager):  # type: ignore[misc]
    def handle_message_init(self, msg_params: Any) -> None:
        number = msg_params.get(ROUND)
        if number >= self.num_rounds:
            self.finish()
        elif number:  # the run goes on: FedML counts from the round before
            self.args.round_idx = number - 1
            self.handle_message_receive_model_from_server(msg_params)
        else:
            super().handle_message_init(msg_params)
            if self.num_rounds == 1:
                self.finish()


def simulate(
    args: Any,
    device: Any,
    dataset: Sequence[Any],
    model: nn.Module,
    client_trainer: Any = None,
    server_aggregator: Any = None,
) -> None:
    """Play this rank's part until the last round; ``dataset`` is FedML's eight."""
    (count, _, train_all, test_all, counts, trains, tests, _) = dataset
    _check_size(args)
    manager = (args.comm, args.process_id, args.worker_num, args.backend)
    if args.process_id == 0:
        aggregator = aggregator_of(server_aggregator, model, args)
        aggregator.set_id(-1)
        workers = args.worker_num - 1
        inner = _Server(
            *(train_all, test_all, count, trains, tests, counts),
            *(workers, device, args, aggregator),
        )
        server = _Manager(args, inner, *manager)
        args.round_idx = aggregator.run.done
        server.send_init_msg()
        if aggregator.summary is None:
            server.run()
        else:
            server.finish()
    else:
        trainer = trainer_of(client_trainer, model, args)
        place = args.process_id - 1
        trainer.set_id(place)
        own = _Trainer(place, trains, counts, tests, count, device, args, trainer)
        _Client(args, own, *manager).run()


def _check_size(args: Any) -> None:
    wanted = args.client_num_per_round + 1
    if args.worker_num != wanted:
        raise ConfigError(
            f"{FILE}: client_num_per_round: {args.client_num_per_round} needs "
            f"{wanted} MPI processes, this run has {args.worker_num}: start it with "
            f"mpirun -np {wanted}"
        )
