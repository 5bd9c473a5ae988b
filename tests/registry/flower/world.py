"""Flower's strategy and ClientApps as the contract of hosts wants to run them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import Array, ArrayRecord

from fedclip_plugin.errors import FedClipError
from fedclip_plugin.federation.build import Federation
from fedclip_plugin.registry import flower_host
from fedclip_plugin.registry.flower.records import to_state
from fedclip_plugin.runs.host_run import Setup, open_setup
from tests.federation.toy import DOMAINS
from tests.registry.contract import Ended, World, spoilt
from tests.registry.flower.grid import Fault, crash, grid_of, options

NAMES = {"rounds": "num_server_rounds"}


class Messages(World):
    """Real messages of Flower's, to clients in this process."""

    part: ClassVar[Mapping[str, Any]] = {"fraction_train": 0.67}
    slack: ClassVar[int] = 6000  # a message's own fields, metrics, configuration
    keeps: ClassVar[bool] = False  # it is in the nodes' states, which end with the run

    def __init__(self, toy: Path) -> None:
        self.toy = self.features = toy

    def run_config(self, **chosen: Any) -> dict[str, Any]:
        """The same options as a run config."""
        return options(self.toy, **{NAMES.get(k, k): v for k, v in chosen.items()})

    def run(
        self, faults: Mapping[tuple[str, int], str] | None = None, **chosen: Any
    ) -> Ended:
        run_config = self.run_config(**chosen)
        strategy = flower_host.FedClip(run_config)
        nodes = {
            100 - i: spoiling(name, faults or {}) for i, name in enumerate(DOMAINS)
        }
        result = strategy.start(grid_of(run_config, faults=nodes, reverse=True))
        assert strategy.host_run is not None
        return Ended(to_state(result.arrays), strategy.host_run)

    def setup(self, **chosen: Any) -> Setup:
        return open_setup(flower_host.FedClip(self.run_config(**chosen)).config)

    def federation(self, **chosen: Any) -> Federation:
        return self.setup(**chosen).fed

    def refusal(self, **chosen: Any) -> str:
        with pytest.raises(FedClipError) as caught:
            self.run(**chosen)
        return str(caught.value)


def spoiling(client: str, faults: Mapping[tuple[str, int], str]) -> Fault:
    """A node whose updates arrive spoilt, by (client, round)."""

    def fault(message: Any, context: Any, app: Any) -> Any:
        reply = app(message, context)
        config = message.content.config_records.get("config", {})
        kind = faults.get((client, int(config.get("server-round", 0))))
        if message.metadata.message_type != "train" or kind is None:
            return reply
        if kind == "nothing":
            return crash(reply)
        arrays = reply.content["arrays"]
        state = {k: torch.from_numpy(v.numpy().copy()) for k, v in arrays.items()}
        changed = {k: Array(v.numpy()) for k, v in spoilt(kind, state).items()}
        reply.content["arrays"] = ArrayRecord(changed)
        return reply

    return fault
