"""FedML's role of a client, and what both roles share.

Imports fedml: reached through ``fedml_host``, which checks its version first.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from fedml.core import ClientTrainer
from torch import nn

from ...errors import ConfigError
from ...federation.evaluation import predict_labels
from ...federation.metrics import accuracy
from ...federation.rounds import as_sent
from ...wire.update import ClientUpdate, Kept, State, on_device, remember
from .data import ClientLoader, Params, client_of, parameters
from .log import forward
from .settings import FILE, Binding, bind


@contextmanager
def unforeseen() -> Iterator[None]:
    """Within it, draws come from the system's entropy; after it, as if none were."""
    before = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.seed()
        np.random.seed()
        try:
            yield
        finally:
            np.random.set_state(before)


ROUND = "fedclip_round"  # of the answer that a message asks for, or is


PROCESS = "fedclip_process"  # tells a second word from a second start


def open_binding(args: Any) -> Binding:
    """What a role works with; raises ConfigError for what no role can do."""
    if getattr(args, "enable_fhe", False):
        raise ConfigError(
            f"{FILE}: enable_fhe: FedCLIP's server screens and averages adapters that "
            "it can read; set enable_fhe: false"
        )
    forward()
    binding = bind(args)
    algorithm = binding.setup.fed.algorithm
    if getattr(args, "enable_defense", False) and not algorithm.averages:
        raise ConfigError(
            f"{FILE}: enable_defense: FedML's defenses average updates, which "
            f"fedclip_alg: {algorithm.name} does not; choose one"
        )
    if binding.setup.config.train.augment != "none":
        raise ConfigError(
            f"{FILE}: fedclip_augment: the first round's moments are not a model, "
            "and FedML's clients pass on models alone; use `fedclip run` or Flower"
        )
    theirs = [k for k in ("enable_dp", "enable_defense") if getattr(args, k, False)]
    if theirs and binding.setup.config.private:
        config = binding.setup.config.privacy
        ours = "dp_noise_multiplier" if config.private else "gda_epsilon"
        raise ConfigError(
            f"{FILE}: {theirs[0]} and fedclip_{ours}: FedCLIP's privacy "
            "cannot account for what FedML's changes; choose one"
        )
    if binding.setup.config.server.weighting == "gap":
        _check_gap(args)
    return binding


def _check_gap(args: Any) -> None:
    """Refuse ``gap`` where the gaps do not reach the mean."""
    if getattr(args, "enable_defense", False):
        raise ConfigError(
            f"{FILE}: enable_defense and fedclip_weighting: gap: FedML's defenses "
            "weigh the clients by themselves; choose one"
        )
    silo = getattr(args, "training_type", "simulation") != "simulation"
    if silo or getattr(args, "backend", "sp") != "sp":
        raise ConfigError(
            f"{FILE}: fedclip_weighting: gap needs what clients measure, which FedML's "
            "messages do not carry: use the simulation with backend: sp"
        )


def split_metrics(
    binding: Binding, model: nn.Module, data: Any, kept: Kept | None = None
) -> dict[str, Any]:
    """FedML's metrics of a split; the loss is not measured.

    A client's split is predicted with what the client ``kept`` too, if that predicts.
    """
    if not isinstance(data, ClientLoader):
        raise ConfigError(f"FedCLIP tests on data of fedml_host.load, got {data!r}")
    fed = binding.setup.fed
    state = device_state(binding, model)
    if data.client is not None and kept:
        state = fed.algorithm.client_state(state, data.client.with_kept(kept))
    predicted = predict_labels(fed.algorithm, state, data.samples, fed.task)
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
    return on_device(model.state_dict(), binding.setup.fed.task.text.device)


class FedCLIPTrainer(ClientTrainer):  # type: ignore[misc]
    """FedCLIP's local training in FedML's words; ``model`` is the adapter."""

    def __init__(self, model: nn.Module, args: Any) -> None:
        super().__init__(model, args)
        self.binding = open_binding(args)
        self.kept: Kept = {}  # what the clients of this process keep
        self._sent: State = {}  # what the round began with
        self._keeps: State = {}  # what the client that trains will keep
        self._other: State = {}  # an update that is not a model: moments
        self._answer: Params | None = None

    def get_model_params(self) -> Params:
        """The adapter, which is all that travels; after training as it travels."""
        return self._answer or parameters(self.model)

    def set_model_params(self, model_parameters: Params) -> None:
        """Take over an adapter."""
        self.model.load_state_dict(model_parameters)
        self._answer = None

    def on_before_local_training(self, train_data: Any, device: Any, args: Any) -> None:
        """FedML's; what came is remembered."""
        super().on_before_local_training(train_data, device, args)
        self._keeps = {}
        self._sent = {
            k: v.clone() for k, v in device_state(self.binding, self.model).items()
        }

    def train(self, train_data: Any, device: Any, args: Any) -> None:
        """Local epochs on ``train_data`` of ``fedml_host.load``, in place."""
        client, fed = client_of(train_data).with_kept(self.kept), self.binding.setup.fed
        number = getattr(args, "round_idx", 0) + 1
        if fed.algorithm.personal and number > 1 and not client.kept:
            logging.warning(
                f"FedCLIP client {client.name} keeps nothing from before round "
                f"{number}: its own part of the model is new"
            )
        state = device_state(self.binding, self.model)
        (update,) = fed.algorithm.local_round(state, [client], fed.task, number)
        self._keeps, self._other = update.kept, {}
        if update.state.keys() == state.keys():
            self.set_model_params(OrderedDict(update.state))
        else:
            self._other = update.state
        metrics = ", ".join(f"{k} {v:.4f}" for k, v in update.metrics.items())
        logging.info(f"FedCLIP client {client.name} trained, round {number}: {metrics}")

    def on_after_local_training(self, train_data: Any, device: Any, args: Any) -> None:
        """FedML's, such as noise; then the update is compressed where that is asked."""
        with unforeseen():
            super().on_after_local_training(train_data, device, args)
        client, fed = client_of(train_data), self.binding.setup.fed
        state = self._other or device_state(self.binding, self.model)
        update = ClientUpdate(client.name, state, len(client.train), kept=self._keeps)
        (update,) = as_sent(fed, self._sent, [update], self.kept)
        self.kept = remember(self.kept, [update])
        if update.codec != "none" or self._other:
            cpu = ((key, value.cpu()) for key, value in update.state.items())
            self._answer = OrderedDict(cpu)

    def test(self, test_data: Any, device: Any, args: Any) -> dict[str, Any]:
        """Correct predictions of ``test_data``, in FedML's keys."""
        return split_metrics(self.binding, self.model, test_data, self.kept)


def trainer_of(given: Any, model: nn.Module, args: Any) -> Any:
    """The client's trainer, ``given`` or ours; ConfigError where it sends too much."""
    trainer = FedCLIPTrainer(model, args) if given is None else given
    if isinstance(trainer, FedCLIPTrainer):
        return trainer
    codec = bind(args).setup.config.wire.compress
    if codec != "none":
        raise ConfigError(
            f"{FILE}: fedclip_compress: {codec}: a trainer of your own has to be "
            "derived from FedCLIPTrainer, which compresses"
        )
    return trainer
