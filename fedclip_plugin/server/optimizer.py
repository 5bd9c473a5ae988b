"""Server optimizers and the average over rounds: what the server makes of a mean.

The mean update ``d = mean_i x_i - x`` is a pseudo-gradient; with ``m`` and ``v`` zero
and ``tau^2`` before the first round (Reddi et al. 2021, "Adaptive Federated
Optimization", arXiv 2003.00295, Algorithm 2)::

    m <- b1 m + (1 - b1) d
    adagrad   v <- v + m^2
    adam      v <- b2 v + (1 - b2) m^2
    yogi      v <- v - (1 - b2) m^2 sign(v - m^2)
    x <- x + lr m / (sqrt(v) + tau)

``momentum`` is FedAvgM (Hsu et al. 2019, arXiv 1909.06335): ``m <- b1 m + d``, ``x <- x
+ lr m``; ``none`` with another ``lr`` than 1 is a longer or shorter step.

The average over rounds, ``--server-ema b``, is Adam's unbiased one: after ``t`` rounds
``sum_{r<=t} b^(t-r) x_r`` over its weights, so that the first state counts for nothing.

All are functions of their arguments; what they remember, ``<slot>/<key>``, stays on the
server.  Noise for privacy is in ``d`` already: what follows spends no more of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.schema import ServerConfig
from ..wire.update import State

MOMENTUM, VARIANCE, AVERAGE = "momentum/", "variance/", "average/"
USUAL_LR = {"none": 1.0, "momentum": 1.0}  # the others' is 0.01
USUAL_BETA1 = {"adagrad": 0.0}  # the others' is 0.9


def chosen(config: ServerConfig) -> list[str]:
    """The options that make the server's state depend on more than its last round."""
    options = (
        ("--server-optimizer", config.server_optimizer != "none"),
        ("--server-lr", config.server_lr is not None),
        ("--server-ema", config.server_ema > 0),
        ("--weighting gap", config.weighting == "gap"),
    )
    return [name for name, is_chosen in options if is_chosen]


def plain(config: ServerConfig) -> bool:
    """Whether the server's next state is the mean itself."""
    return config.server_optimizer == "none" and learning_rate(config) == 1.0


def learning_rate(config: ServerConfig) -> float:
    """The server's step, by default that of the optimizer."""
    usual = USUAL_LR.get(config.server_optimizer, 0.01)
    return usual if config.server_lr is None else config.server_lr


def beta1(config: ServerConfig) -> float:
    """Of the mean update's average, by default that of the optimizer."""
    usual = USUAL_BETA1.get(config.server_optimizer, 0.9)
    return usual if config.server_momentum is None else config.server_momentum


def step(
    after: State, start: State, memory: State, config: ServerConfig
) -> tuple[State, State]:
    """The next state from the mean ``after`` of updates of ``start``, and the memory.

    Floating tensors under the keys of both are moved; the others are ``after``'s.
    """
    if plain(config):
        return after, memory
    state, memory = dict(after), dict(memory)
    for key, x in start.items():
        if key in after and x.is_floating_point():
            state[key], slots = _moved(key, x, after[key] - x, memory, config)
            memory |= slots
    return state, memory


def _moved(
    key: str, x: Tensor, d: Tensor, memory: State, config: ServerConfig
) -> tuple[Tensor, State]:
    kind, lr, b1 = config.server_optimizer, learning_rate(config), beta1(config)
    if kind == "none":
        return x + lr * d, {}
    m = memory.get(MOMENTUM + key, torch.zeros_like(d))
    if kind == "momentum":
        m = b1 * m + d
        return x + lr * m, {MOMENTUM + key: m}
    m = b1 * m + (1 - b1) * d
    tau = config.server_tau
    v = _variance(kind, memory.get(VARIANCE + key), m.square(), config)
    return x + lr * m / (v.sqrt() + tau), {MOMENTUM + key: m, VARIANCE + key: v}


def _variance(
    kind: str, before: Tensor | None, square: Tensor, config: ServerConfig
) -> Tensor:
    v = torch.full_like(square, config.server_tau**2) if before is None else before
    b2 = config.server_beta2
    if kind == "adagrad":
        return v + square
    if kind == "adam":
        return b2 * v + (1 - b2) * square
    return v - (1 - b2) * square * torch.sign(v - square)


def averaged(
    memory: State, state: State, config: ServerConfig, round_number: int
) -> State:
    """The ``memory`` with the average over rounds moved towards ``state``."""
    decay = config.server_ema
    if not decay:
        return memory
    share = (1 - decay) / (1 - decay**round_number)
    return memory | {
        AVERAGE + key: memory[AVERAGE + key].lerp(value, share)
        if AVERAGE + key in memory
        else value.clone()
        for key, value in state.items()
        if value.is_floating_point()
    }


def judged(memory: State, state: State) -> State:
    """What is scored, kept and exported: the average, where there is one."""
    if not any(key.startswith(AVERAGE) for key in memory):
        return state
    return {key: memory.get(AVERAGE + key, value) for key, value in state.items()}


def misfit(memory: State, first: State) -> str | None:
    """How remembered tensors differ from those of the ``first`` state, if any do."""
    for name, value in memory.items():
        slot, _, key = name.partition("/")
        if slot + "/" not in (MOMENTUM, VARIANCE, AVERAGE):
            continue
        like = first.get(key)
        if like is None or like.shape != value.shape or like.dtype != value.dtype:
            return f"memory/{name} does not fit the state"
    return None
