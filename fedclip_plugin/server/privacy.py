"""Client-level differential privacy: DP-FedAvg, and what its rounds have cost.

McMahan et al. 2018 (arXiv 1710.06963): every update is cut to the length ``dp_clip``,
the mean is over the whole cohort, whether its clients answered or not, and Gaussian
noise hides what any one of them changes.  Neighbours are two federations in which one
client holds other data, so that one update changes the sum by ``2 * dp_clip`` at most.

Accounting is that of dp-accounting.  All clients in every round: the composition of
Gaussian mechanisms, exact (Balle and Wang 2018, arXiv 1805.06530).  A sample without
replacement: Rényi privacy (Wang et al. 2019, arXiv 1808.00087).
"""

from __future__ import annotations

import importlib
import logging
import math
import secrets
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri

from ..config.schema import PrivacyConfig
from ..errors import ConfigError
from ..wire.update import ClientUpdate, State
from .aggregation import mean
from .screening import distances

Releases = tuple[tuple[int, int, int], ...]
"""(clients to draw from, size of the cohort, rounds): what was released so far."""

ORDERS = (*range(2, 17), 20, 24, 28, 32, 40, 48, 64)  # of Rényi; more gain little
_NOISE = 0xD1FF  # keeps this draw apart from the others of the seed
_log = logging.getLogger("fedclip")


def private_mean(
    updates: Sequence[ClientUpdate],
    sent: State,
    config: PrivacyConfig,
    cohort: int,
    entropy: Sequence[int] | None,
) -> State:
    """``sent`` plus the noisy mean of the clipped updates of a cohort.

    Of ``cohort`` clients, those without an update or training rows count as unmoved.
    Noise is N(0, (2 z C / cohort)^2) in every coordinate; it is added even if
    nobody answered, else its absence would reveal that.  ``entropy`` seeds it; None:
    the system's.
    """
    voters = {u.client: u for u in updates if u.num_examples > 0}  # one vote each
    chosen = [voters[name] for name in sorted(voters)]
    lengths = torch.tensor(distances(chosen, sent), dtype=torch.float64)
    share = (config.dp_clip / lengths).clamp(max=1) / cohort  # 1 / cohort where 0 long
    rest = (1 - share.sum()).clamp_min(0)[None]
    moved = mean([*({k: u.state[k] for k in sent} for u in chosen), sent],
                 torch.cat([share, rest]))  # fmt: skip
    scale = noise_scale(config, cohort)
    noise = standard_normal(moved, entropy)
    return {
        key: value + scale * noise[key].to(value.device, value.dtype)
        for key, value in moved.items()
    }


def standard_normal(like: State, entropy: Sequence[int] | None) -> State:
    """Standard normal tensors, float64 on the CPU, of the shapes in ``like``.

    The order of the keys does not matter: a checkpoint sorts them.
    """
    sizes = [like[key].numel() for key in sorted(like)]
    count = sum(sizes)
    if entropy is not None:
        flat = np.random.default_rng([*entropy, _NOISE]).standard_normal(count)
    else:
        bits = np.frombuffer(secrets.token_bytes(8 * count), np.uint64)
        flat = ndtri(((bits >> np.uint64(11)) + 0.5) * 2.0**-53)
    parts = zip(sorted(like), torch.from_numpy(flat).split(sizes))
    return {key: part.reshape(like[key].shape) for key, part in parts}


def private_update(
    updates: Sequence[ClientUpdate],
    sent: State,
    config: PrivacyConfig,
    cohort: int,
    entropy: Sequence[int] | None,
) -> ClientUpdate:
    """:func:`private_mean` as the one update that an aggregation may see.

    Its ``num_examples`` is the size of the cohort, which is no secret.
    """
    state = private_mean(updates, sent, config, cohort, entropy)
    return ClientUpdate("", state, cohort)


def noise_scale(config: PrivacyConfig, cohort: int) -> float:
    """Standard deviation of a coordinate of :func:`private_mean`."""
    return 2 * config.dp_noise_multiplier * config.dp_clip / cohort


def noise_entropy(
    config: PrivacyConfig, seed: int, round_number: int
) -> tuple[int, int] | None:
    """What the noise of a round is drawn from; None: the system's own entropy."""
    return None if config.dp_seed == "secret" else (seed, round_number)


def drawing_seed(config: PrivacyConfig, seed: int) -> int:
    """What decides who takes part: ``seed``, unless that has to stay hidden."""
    return _hidden_seed() if config.private and config.dp_seed == "secret" else seed


@lru_cache(maxsize=1)
def _hidden_seed() -> int:
    return secrets.randbits(128)


# -- accounting -----------------------------------------------------------------------


def accountant() -> Any:
    """The library dp-accounting; raises ConfigError where it is missing."""
    try:
        return importlib.import_module("dp_accounting")
    except ImportError as error:
        raise ConfigError(
            "differential privacy needs dp-accounting: "
            "pip install 'fedclip-plugin[privacy]'"
        ) from error


def multiplier_for(epsilon: float, delta: float) -> float:
    """The least noise, over its sensitivity, of one (epsilon, delta)-private release.

    Analytic calibration, Balle and Wang 2018; ConfigError where dp-accounting is
    missing or ``epsilon`` too large to tell from none.
    """
    try:
        return float(accountant().get_sigma_gaussian(epsilon, delta))
    except (OverflowError, ValueError) as error:
        raise ConfigError(f"no noise is known for epsilon {epsilon:g}") from error


def add_round(releases: Releases, clients: int, cohort: int) -> Releases:
    """``releases`` and a round in which ``cohort`` of ``clients`` were drawn."""
    counts = {(c, a): n for c, a, n in releases}
    counts[clients, cohort] = counts.get((clients, cohort), 0) + 1
    return tuple((c, a, n) for (c, a), n in sorted(counts.items()))


def epsilon(config: PrivacyConfig, releases: Releases) -> float:
    """Epsilon of all ``releases`` together, at ``config.dp_delta``."""
    return _epsilon(config.dp_noise_multiplier, config.dp_delta, releases)


@lru_cache(maxsize=1024)
def _epsilon(multiplier: float, delta: float, releases: Releases) -> float:
    library = accountant()
    rounds = sum(n for _, _, n in releases)
    if not rounds:
        return 0.0
    whole = float(library.get_epsilon_gaussian(multiplier / math.sqrt(rounds), delta))
    if all(cohort >= clients for clients, cohort, _ in releases):
        return whole
    replaced = library.NeighboringRelation.REPLACE_ONE
    renyi = library.rdp.RdpAccountant(ORDERS, replaced)
    noise = library.GaussianDpEvent(multiplier)
    for clients, cohort, n in releases:
        sample = library.SampledWithoutReplacementDpEvent(
            max(clients, cohort), cohort, noise
        )
        renyi.compose(sample, n)
    return min(whole, float(renyi.get_epsilon(delta)))  # both hold


def rounds_within(config: PrivacyConfig, rounds: int, clients: int, cohort: int) -> int:
    """How many of ``rounds`` the budget allows; all without one."""
    budget, low, high = config.dp_epsilon_budget, 0, rounds
    if not config.private or budget is None:
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if epsilon(config, ((clients, cohort, middle),)) <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def within_budget(config: PrivacyConfig, rounds: int, clients: int, cohort: int) -> int:
    """As many of ``rounds`` as the budget of ``config``, which is private, allows.

    Raises ConfigError where one is too many, or the accountant is missing.
    """
    if config.dp_delta > 1 / clients:
        _log.warning(
            "--dp-delta %g is more than 1 / %d clients: it would allow that one of "
            "them is exposed; choose a smaller one",
            config.dp_delta, clients,
        )  # fmt: skip
    once = epsilon(config, ((clients, cohort, 1),))
    allowed = rounds_within(config, rounds, clients, cohort)
    if not allowed:
        raise ConfigError(
            f"--dp-epsilon-budget {config.dp_epsilon_budget:g}: one round costs "
            f"{once:.3g}; add noise, or sample fewer clients a round"
        )
    return allowed


def planned(config: PrivacyConfig, rounds: int, clients: int, cohort: int) -> str:
    """What ``rounds`` will cost, in words."""
    cost = epsilon(config, ((clients, cohort, rounds),))
    text = (
        f"epsilon {cost:.3g} at delta {config.dp_delta:g} after {rounds} rounds "
        f"of {cohort} out of {clients} clients"
    )
    if config.dp_epsilon_budget is None:
        return text
    allowed = within_budget(config, rounds, clients, cohort)
    return f"{text}; the budget {config.dp_epsilon_budget:g} allows {allowed}"


def summary(config: PrivacyConfig, spent: float) -> dict[str, Any]:
    """The entry ``privacy`` of ``summary.json``."""
    return {
        "epsilon": spent,
        "delta": config.dp_delta,
        "noise_multiplier": config.dp_noise_multiplier,
        "clip": config.dp_clip,
        "promise": _promise(config, spent),
    }


def summary_of_rows(config: PrivacyConfig, spent: float) -> dict[str, Any]:
    """The entry ``privacy`` of a method that hides single training images."""
    text = (
        f"Training images are ({spent:.3g}, {config.dp_delta:g})-differentially "
        "private: the model that was sent out, and nothing else, would hardly differ "
        "with any one of them less"
    )
    return {
        "epsilon": spent,
        "delta": config.dp_delta,
        "unit": "example",
        "promise": _simulated(config, text),
    }


def _promise(config: PrivacyConfig, spent: float) -> str:
    text = (
        f"Clients are ({spent:.3g}, {config.dp_delta:g})-differentially private: the "
        "adapters that were sent out, and nothing else, would hardly differ if any "
        "one client held other data"
    )
    return _simulated(config, text)


def _simulated(config: PrivacyConfig, text: str) -> str:
    if config.dp_seed == "secret":
        return f"{text}."
    return f"{text}; simulated: not against those who know the run's seed."
