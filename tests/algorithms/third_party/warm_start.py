"""An algorithm as another package brings it: FedCLIP from a scaled first adapter."""

from __future__ import annotations

from dataclasses import dataclass

from fedclip_plugin.algorithms import FedClip, Task
from fedclip_plugin.algorithms.fedclip import FedClipParams
from fedclip_plugin.config.fields import option
from fedclip_plugin.wire.update import State


@dataclass(frozen=True)
class Params(FedClipParams):
    """FedCLIP's, and how far from zero the adapter starts."""

    scale: float = option(1.0, "of the first adapter's weights", within="(0, 10]")
    zero_bias: bool = False
    layers: tuple[str, ...] = ("0", "2")


class WarmStart(FedClip):
    """FedCLIP from ``scale`` times its first adapter, in the ``layers`` named."""

    name = "warm-start"
    Params = Params

    def init(self, task: Task) -> State:
        """The scaled adapter."""
        p = task.params

        def scaled(key: str) -> float:
            if p.zero_bias and key.endswith("bias"):
                return 0.0
            return p.scale if key.split(".")[0] in p.layers else 1.0

        return {k: scaled(k) * v for k, v in super().init(task).items()}
