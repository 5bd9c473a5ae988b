"""The operators of the library ``fedclip``, checked; a file a family.

Call the functions of this module: they check their arguments and name the one that is
wrong.  ``torch.ops.fedclip.<name>`` is the same without the checks of values, and
``torch.ops.fedclip_reference.<name>`` computes it in plain PyTorch.
"""

from .adapter import adapter, adapter_backward_reference, adapter_reference
from .distances import (
    squared_distances,
    squared_distances_reference,
    squared_norms_int8,
    squared_norms_int8_reference,
)
from .fresh import FreshClient, fresh_round, fresh_round_reference
from .kernels import load_kernels
from .library import SCHEMAS
from .means import (
    GROUP,
    group_sum,
    shares_of,
    weighted_mean,
    weighted_mean_int8,
    weighted_mean_int8_reference,
    weighted_mean_reference,
)
from .memory import BufferPool
from .training import (
    PRECISIONS,
    Hyperparameters,
    LocalClient,
    local_epoch,
    local_epoch_reference,
    local_round,
    local_round_reference,
)

__all__ = [
    "GROUP",
    "PRECISIONS",
    "SCHEMAS",
    "BufferPool",
    "FreshClient",
    "Hyperparameters",
    "LocalClient",
    "adapter",
    "adapter_backward_reference",
    "adapter_reference",
    "fresh_round",
    "fresh_round_reference",
    "group_sum",
    "local_epoch",
    "local_epoch_reference",
    "local_round",
    "local_round_reference",
    "shares_of",
    "squared_distances",
    "squared_distances_reference",
    "squared_norms_int8",
    "squared_norms_int8_reference",
    "weighted_mean",
    "weighted_mean_int8",
    "weighted_mean_int8_reference",
    "weighted_mean_reference",
]

load_kernels()  # now that there are schemas for them
