"""FedAVG of LoRA factors on all of CLIP: few bytes, but every image is encoded anew.

Hu et al. 2022 (arXiv 2106.09685) by the library peft, on every linear layer of both
towers; aggregated as in FedAVG, factor by factor.

The mean of the factors is not the mean of what they stand for, ``sum w_i B_i A_i``.
``--lora-mean products`` is HLoRA's reconstruction (Liu et al. 2025, arXiv 2503.00813):
the factors are stacked, ``[sqrt(w_1) B_1, ...] [sqrt(w_1) A_1; ...]``, and by QR of
both and the SVD of the small matrix between brought back to rank r, the best that
there is (Eckart and Young 1936).  A gets orthonormal rows and B the rest, so that no
direction is lost to training where a singular value is zero.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config.fields import Section, option
from ..errors import ConfigError
from ..server.aggregation import vote_weights, voters_of
from ..server.optimizer import chosen
from ..wire.update import ClientUpdate, State
from .base import Task
from .fedavg import FedAvg

RANK = 8
LORA_A, LORA_B = "lora_A", "lora_B"


@dataclass(frozen=True)
class LoraParams(Section):
    """What the server takes the mean of."""

    mean: str = option(
        "factors", "fedavg-lora: the server's mean, of A and of B, or of their "
        "products, brought back to the rank (HLoRA)", name="lora-mean",
        choices=("factors", "products"))  # fmt: skip


class FedAvgLora(FedAvg):
    """State: the factors A and B of every linear layer; B starts at zero."""

    name = "fedavg-lora"
    trains = "LoRA factors of every linear layer"
    source = "Hu et al. 2022, arXiv 2106.09685"
    Params = LoraParams
    defaults: ClassVar = {"lr": 1e-3, "weighting": "examples", "weight_decay": 0.0}

    def __init__(self) -> None:
        self._injected: tuple[nn.Module, nn.Module] | None = None

    def model(self, task: Task) -> nn.Module:
        """The CLIP with LoRA factors in it; a copy, made once."""
        plain = task.whole_clip.model
        if self._injected is None or self._injected[0] is not plain:
            self._injected = (plain, _inject(copy.deepcopy(plain), task.seed))
        return self._injected[1]

    def init(self, task: Task) -> State:
        """Factors whose product is zero: the pretrained CLIP.

        Raises ConfigError for options that go on from factors which ``--lora-mean
        products`` makes anew.
        """
        if task.params.mean == "products":
            _check_products(task)
        return {k: v for k, v in super().init(task).items() if "lora_" in k}

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: State, task: Task
    ) -> State:
        """The mean of the factors, or the factors of the mean product."""
        if task.params.mean == "factors":
            return super().aggregate(updates, state, task)
        voters = voters_of(updates)
        if not voters:
            return state
        weights = vote_weights(voters, task.server)
        after: State = {}
        for a, b in ((k, k.replace(LORA_A, LORA_B)) for k in state if LORA_A in k):
            pairs = [(u.state[a], u.state[b]) for u in voters]
            after[a], after[b] = mean_product(pairs, weights)
        return after


def mean_product(
    pairs: Sequence[tuple[Tensor, Tensor]], weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Factors A (r, in) and B (out, r) whose product is nearest to ``sum w_i B_i A_i``.

    ``pairs`` are K of A and B, ``weights`` (K,) non-negative; computed in float64.  A's
    rows are orthonormal, but for those beyond ``in``, which are zero.
    """
    share = (weights.double() / weights.double().sum()).sqrt().to(pairs[0][0].device)
    tall = torch.cat([w * b.double() for w, (_, b) in zip(share, pairs)], dim=1)
    wide = torch.cat([w * a.double() for w, (a, _) in zip(share, pairs)], dim=0)
    left, r_left = torch.linalg.qr(tall)  # (out, p), (p, K r)
    right, r_right = torch.linalg.qr(wide.t())  # (in, q), (q, K r)
    u, s, vh = torch.linalg.svd(r_left @ r_right.t(), full_matrices=False)
    a, b = pairs[0]
    rank = min(len(s), len(a))
    new_a, new_b = torch.zeros_like(a), torch.zeros_like(b)
    new_a[:rank] = (vh[:rank] @ right.t()).to(a.dtype)
    new_b[:, :rank] = (left @ (u[:, :rank] * s[:rank])).to(b.dtype)
    return new_a, new_b


def _check_products(task: Task) -> None:
    server, wire = task.server, task.wire
    refused = [
        (f"--aggregation {server.aggregation}", server.aggregation != "mean"),
        ("--dp-noise-multiplier", task.privacy.private),
        (f"--compress-down {wire.compress_down}", wire.compress_down != "none"),
        (
            f"--compress {wire.compress} with --error-feedback on",
            wire.compress != "none" and wire.error_feedback == "on",
        ),
        *((name, name.startswith("--server")) for name in chosen(server)),
    ]
    for name, is_given in refused:
        if is_given:
            raise ConfigError(
                f"--lora-mean products makes the factors anew each round: it does not "
                f"go with {name}; leave that out, or take --lora-mean factors"
            )


def _inject(model: nn.Module, seed: int) -> nn.Module:
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            "--alg fedavg-lora needs peft: pip install 'fedclip-plugin[lora]'"
        ) from error
    # The projections of nn.MultiheadAttention are not called as layers.
    inside = {
        f"{name}.{child}"
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        for child, _ in module.named_modules()
    }
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name not in inside
    ]
    config: Any = peft.LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules=layers, lora_dropout=0.0
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        injected: nn.Module = peft.inject_adapter_in_model(config, model)
    return injected.eval().requires_grad_(False)
