"""FedML's simulation in one process: a round is one call of the engine.

Imports fedml: reached through ``fedml_host``.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from fedml import mlops
from fedml.core.dp.fedml_differential_privacy import FedMLDifferentialPrivacy
from fedml.simulation.sp.fedavg.fedavg_api import FedAvgAPI
from torch import nn

from .. import downlink
from ..algorithms import Client
from ..rounds import train_clients
from ..update import ClientUpdate, private_states
from .fedml_data import client_of, parameters
from .fedml_roles import FedCLIPTrainer, device_state, trainer_of
from .fedml_server import aggregator_of
from .fedml_updates import packed, unpacked


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
        updates = self._local_updates(loaders, number + 1)
        mlops.event("train", event_started=False, event_value=str(number))
        mlops.event("agg", event_started=True, event_value=str(number))
        self.server_aggregator.metrics = {u.client: u.metrics for u in updates}
        self.server_aggregator.close_round(
            [(u.num_examples, OrderedDict(u.state)) for u in updates]
        )
        mlops.event("agg", event_started=False, event_value=str(number))

    def _local_updates(self, loaders: Sequence[Any], number: int) -> list[ClientUpdate]:
        trainer = self.model_trainer
        clients = [client_of(loader) for loader in loaders]
        privacy = FedMLDifferentialPrivacy.get_instance()
        if type(trainer) is FedCLIPTrainer and not privacy.is_local_dp_enabled():
            fed = trainer.binding.setup.fed
            state = device_state(trainer.binding, self.model)
            known = {**downlink.broadcast(fed, state).seen, **trainer.kept}
            updates = train_clients(fed, known, clients, number)
            trainer.kept |= private_states(updates)
            return updates
        whole, binding = parameters(self.model), self.server_aggregator.binding
        sent = unpacked(binding, packed(binding, whole))
        updates = [
            self._one_by_one(client, loader, sent)
            for client, loader in zip(clients, loaders)
        ]
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
