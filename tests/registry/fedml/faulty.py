"""A user's own script whose trainer fails as it is told.

    python -m tests.registry.fedml.faulty PLAN --cf fedml_config.yaml --rank 1 ...

PLAN is JSON, a list of (client, round from 1, fault): what ``contract.FAULTS`` spoils,
or "late" (when the server has gone on, by its log), "dies", "dies once".  Other words
are FedML's.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, ClassVar

import fedml

from fedclip_plugin.registry import fedml_host, register
from tests.registry.contract import Faults, spoilt
from tests.waiting import wait_until

SERVER_LOG = Path("0.log")


class Faulty(fedml_host.FedCLIPTrainer):  # type: ignore[misc]
    """A trainer of the user's own; ``faults`` tell which of its updates go wrong."""

    faults: ClassVar[Faults] = {}
    fault: str | None = None
    overdue: str = ""  # what the server's log says when it waits no longer

    def train(self, train_data: Any, device: Any, args: Any) -> None:
        """FedCLIP's, and a look at what is to go wrong."""
        super().train(train_data, device, args)
        self.fault = self.faults.get((train_data.client.name, args.round_idx + 1))
        self.overdue = f"(rank {args.rank}) did not answer"

    def get_model_params(self) -> Any:
        """The update, spoilt, late, or never."""
        params, fault = super().get_model_params(), self.fault
        died = Path("died")
        if fault == "dies" or (fault == "dies once" and not died.exists()):
            died.touch()
            os._exit(9)
        if fault == "late":
            wait_until(lambda: self.overdue in SERVER_LOG.read_text(), 0.1)
        if fault is None or fault in ("late", "dies once"):
            return params
        return None if fault == "nothing" else spoilt(fault, params)


def command(faults: Faults, *words: str) -> list[str]:
    """This script with ``faults``."""
    plan = json.dumps([[*place, kind] for place, kind in faults.items()])
    return [sys.executable, "-m", __name__, plan, *words]


def main() -> None:
    """What FedML's documentation has users write."""
    plan = json.loads(sys.argv.pop(1))
    Faulty.faults = {(client, number): kind for client, number, kind in plan}
    register("fedml")
    fedml_host.go_offline()
    args = fedml.init(check_env=False)
    device = fedml.device.get_device(args)
    dataset, classes = fedml.data.load(args)
    model = fedml.model.create(args, classes)
    trainer = Faulty(model, args)
    fedml.FedMLRunner(args, device, dataset, model, client_trainer=trainer).run()


if __name__ == "__main__":
    main()
