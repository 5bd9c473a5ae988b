"""FedML's MPI simulation: rank 0 serves, every other rank trains one sampled client.

FedML's own server averages by itself and leaves out the aggregator's hooks; its client
leaves out the trainer's, and waits for ever when there is but one round.  Imports
fedml: reached through ``fedml_host``.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from fedml import mlops
from fedml.core.dp.fedml_differential_privacy import FedMLDifferentialPrivacy
from fedml.simulation.mpi.fedavg.FedAVGAggregator import FedAVGAggregator
from fedml.simulation.mpi.fedavg.FedAvgClientManager import FedAVGClientManager
from fedml.simulation.mpi.fedavg.FedAvgServerManager import FedAVGServerManager
from fedml.simulation.mpi.fedavg.FedAVGTrainer import FedAVGTrainer
from fedml.simulation.mpi.fedavg.message_define import MyMessage
from fedml.simulation.sp.fedavg.fedavg_api import FedAvgAPI
from torch import nn

from ...algorithms import Client
from ...errors import ConfigError
from ...federation.rounds import train_clients
from ...wire.update import ClientUpdate, remember
from .data import Params, client_of, parameters
from .server import aggregator_of, unpacked
from .settings import FILE, bind
from .trainer import ROUND, FedCLIPTrainer, trainer_of


class FedCLIPAPI(FedAvgAPI):  # type: ignore[misc]
    """FedAvgAPI's loop and sampling with FedCLIP's training and aggregation.

    All sampled clients train in one call, and nothing is copied for each of them.  Used
    by hand: ``FedMLRunner(..., algorithm_flow=FedCLIPAPI(...))`` patches nothing.
    """

    def __init__(
        self,
        args: Any,
        device: Any,
        dataset: Sequence[Any],
        model: nn.Module,
        client_trainer: Any = None,
        server_aggregator: Any = None,
    ) -> None:
        super().__init__(args, device, dataset, model)
        self.model_trainer = trainer_of(client_trainer, model, args)
        self.server_aggregator = aggregator_of(server_aggregator, model, args)
        for client in self.client_list:
            client.model_trainer = self.model_trainer

    def train(self) -> None:
        """Run ``comm_round`` rounds; FedML's log tells of each."""
        rounds = self.args.comm_round
        mlops.log_training_status(
            mlops.ClientConstants.MSG_MLOPS_CLIENT_STATUS_TRAINING
        )
        mlops.log_aggregation_status(
            mlops.ServerConstants.MSG_MLOPS_SERVER_STATUS_RUNNING
        )
        mlops.log_round_info(rounds, -1)
        for number in range(self.server_aggregator.run.done, rounds):
            self.args.round_idx = number
            self._train_round(number)
            mlops.log_round_info(rounds, number)
        mlops.log_training_finished_status()
        mlops.log_aggregation_finished_status()

    run = train  # what FedMLRunner calls of an algorithm_flow

    def _train_round(self, number: int) -> None:
        logging.info(f"################Communication round : {number}")
        args = self.args
        chosen = self._client_sampling(
            number, args.client_num_in_total, args.client_num_per_round
        )
        loaders = [self.train_data_local_dict[i] for i in chosen]
        mlops.event("train", event_started=True, event_value=str(number))
        updates = self._local_updates(loaders)
        mlops.event("train", event_started=False, event_value=str(number))
        mlops.event("agg", event_started=True, event_value=str(number))
        self.server_aggregator.metrics = {u.client: u.metrics for u in updates}
        self.server_aggregator.close_round(
            [(u.num_examples, OrderedDict(u.state)) for u in updates]
        )
        mlops.event("agg", event_started=False, event_value=str(number))

    def _local_updates(self, loaders: Sequence[Any]) -> list[ClientUpdate]:
        trainer, opened = self.model_trainer, self.server_aggregator.opened
        clients = [client_of(loader) for loader in loaders]
        privacy = FedMLDifferentialPrivacy.get_instance()
        if type(trainer) is FedCLIPTrainer and not privacy.is_local_dp_enabled():
            clients = [client.with_kept(opened.kept) for client in clients]
            updates = train_clients(
                trainer.binding.setup.fed, opened.sent.seen, clients, opened.number
            )
            opened.kept = remember(opened.kept, updates)
            return updates
        whole, binding = parameters(self.model), self.server_aggregator.binding
        sent = unpacked(binding, self.server_aggregator.payload())
        ours = trainer if isinstance(trainer, FedCLIPTrainer) else None
        if ours:
            ours.kept = opened.kept
        updates = [
            self._one_by_one(client, loader, sent)
            for client, loader in zip(clients, loaders)
        ]
        if ours:
            opened.kept = ours.kept
        trainer.set_model_params(whole)  # the server's model is the same module
        return updates

    def _one_by_one(self, client: Client, loader: Any, sent: Any) -> ClientUpdate:
        """A trainer of the user's own, or noise that each client adds."""
        trainer, args = self.model_trainer, self.args
        trainer.set_id(client.index)
        trainer.set_model_params(sent)
        trainer.on_before_local_training(loader, self.device, args)
        trainer.train(loader, self.device, args)
        trainer.on_after_local_training(loader, self.device, args)
        state = dict(trainer.get_model_params())
        return ClientUpdate(client.name, state, len(client.train))


_MODEL = MyMessage.MSG_ARG_KEY_MODEL_PARAMS


class _Server(FedAVGAggregator):  # type: ignore[misc]
    def add_local_trained_result(self, index: int, params: Any, count: Any) -> None:
        super().add_local_trained_result(index, self.aggregator.keep(params), count)

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
        if message.get(_MODEL) is not None:
            message.add_params(_MODEL, self.aggregator.aggregator.payload())
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
    algorithm = bind(args).setup.fed.algorithm
    if algorithm.personal and args.client_num_per_round < args.client_num_in_total:
        raise ConfigError(
            f"{FILE}: client_num_per_round: a client of --alg {algorithm.name} keeps a "
            "part of the model in its process, and MPI gives a client that is drawn "
            f"now and then another one: take all {args.client_num_in_total}, or sp"
        )
    wanted = args.client_num_per_round + 1
    if args.worker_num != wanted:
        raise ConfigError(
            f"{FILE}: client_num_per_round: {args.client_num_per_round} needs "
            f"{wanted} MPI processes, this run has {args.worker_num}: start it with "
            f"mpirun -np {wanted}"
        )
