"""FedML's privacy noise, drawn from what nobody knows.

FedML seeds torch and NumPy with ``random_seed`` in every process.  Left at that, all
clients add the same noise, and whoever has read the configuration can take it away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


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
