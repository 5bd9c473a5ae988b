"""The server's side: weighting and aggregation of screened client updates.

Published rule (Lu et al. 2023, eq. 5; ``fed_at_clip.py: communication``): the uniform
mean of the participating clients' adapters.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .compression import PLAIN, decoded, mean
from .config import TrainConfig
from .robust import combine
from .update import ClientUpdate, State


def aggregate(
    updates: Sequence[ClientUpdate], state: State, train: TrainConfig
) -> State:
    """The next state, from updates of ``state``, in the order of the clients' names.

    ``train.weighting`` is ``uniform`` (as published) or ``examples``;
    ``train.aggregation`` the mean or a robust rule.  Clients without a training row say
    nothing and are left out; with none left the ``state`` that was sent out stays.  The
    order of arrival does not matter: same bits.  The mean of compressed updates is
    taken without decoding them first.
    """
    voters = sorted((u for u in updates if u.num_examples > 0), key=lambda u: u.client)
    if not voters or not state:
        return state
    uniform = train.weighting == "uniform"
    weights = torch.tensor([1.0 if uniform else float(u.num_examples) for u in voters])
    coded = {u.codec for u in voters}
    if train.aggregation == "mean" and len(coded) == 1 and PLAIN not in coded:
        return mean(voters, weights, state)
    voters = decoded(voters, state)
    states = [{key: u.state[key] for key in state} for u in voters]
    return combine(train.aggregation, states, weights, state, train.byzantine)
