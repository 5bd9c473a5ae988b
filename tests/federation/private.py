"""Settings and states for the tests of privacy."""

from __future__ import annotations

import numpy as np
import torch

from fedclip_plugin.config.schema import PrivacyConfig
from fedclip_plugin.wire.update import State

PRIVATE = {"dp_noise_multiplier": 1.0, "dp_clip": 0.05}


def flat(state: State) -> np.ndarray:
    return torch.cat([v.reshape(-1) for v in state.values()]).double().numpy()


def privacy_of(multiplier: float, **more: object) -> PrivacyConfig:
    return PrivacyConfig(dp_noise_multiplier=multiplier, dp_clip=1.0, **more)
