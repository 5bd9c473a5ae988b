"""FedML's role of a client, and what both roles share.

Imports fedml: reached through ``fedml_host``, which checks its version first.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

from fedml.core import ClientTrainer
from torch import Tensor, nn

from ..errors import ConfigError
from ..evaluation import accuracy, predict_labels
from ..federation import train_clients
from ..update import State
from .fedml_data import ClientLoader, client_of, parameters
from .fedml_log import forward
from .fedml_settings import FILE, Binding, bind

Params = OrderedDict[str, Tensor]


def open_binding(args: Any) -> Binding:
    """What a role works with; raises ConfigError for what no role can do."""
    if getattr(args, "enable_fhe", False):
        raise ConfigError(
            f"{FILE}: enable_fhe: FedCLIP's server screens and averages adapters that "
            "it can read; set enable_fhe: false"
        )
    forward()
    return bind(args)


def split_metrics(binding: Binding, model: nn.Module, data: Any) -> dict[str, Any]:
    """FedML's metrics of a split; the loss is not measured."""
    if not isinstance(data, ClientLoader):
        raise ConfigError(f"FedCLIP tests on data of fedml_host.load, got {data!r}")
    fed = binding.setup.fed
    predicted = predict_labels(
        fed.algorithm, device_state(binding, model), data.samples, fed.task
    )
    right = accuracy(predicted, data.samples.y) or 0.0
    total = len(data.samples)
    return {
        "test_correct": round(right * total),
        "test_total": total,
        "test_loss": 0.0,
        "test_accuracy": right,
    }


def device_state(binding: Binding, model: nn.Module) -> State:
    """The model's adapter where the features are; shared with it on the same device."""
    device = binding.setup.fed.task.text.device
    return {key: value.to(device) for key, value in model.state_dict().items()}


class FedCLIPTrainer(ClientTrainer):  # type: ignore[misc]
    """FedCLIP's local training in FedML's words; ``model`` is the adapter."""

    def __init__(self, model: nn.Module, args: Any) -> None:
        super().__init__(model, args)
        self.binding = open_binding(args)

    def get_model_params(self) -> Params:
        """The adapter, which is all that travels."""
        return parameters(self.model)

    def set_model_params(self, model_parameters: Params) -> None:
        """Take over an adapter."""
        self.model.load_state_dict(model_parameters)

    def train(self, train_data: Any, device: Any, args: Any) -> None:
        """Local epochs on ``train_data`` of ``fedml_host.load``, in place."""
        client, fed = client_of(train_data), self.binding.setup.fed
        number = getattr(args, "round_idx", 0) + 1
        state = device_state(self.binding, self.model)
        (update,) = train_clients(fed, state, [client], number)
        self.set_model_params(OrderedDict(update.state))
        told = ", ".join(f"{k} {v:.4f}" for k, v in update.metrics.items())
        logging.info(f"FedCLIP client {client.name} trained, round {number}: {told}")

    def test(self, test_data: Any, device: Any, args: Any) -> dict[str, Any]:
        """Correct predictions of ``test_data``, in FedML's keys."""
        return split_metrics(self.binding, self.model, test_data)
