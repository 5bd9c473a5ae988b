"""The operators of the library ``fedclip``: schemas, references, fakes and autograd.

The schemas live here, so that they exist with and without the compiled extension;
``csrc/`` only adds kernels for CPU and CUDA.  Where there is none the dispatcher falls
through to the pure-PyTorch reference (``reference.py``), so no caller asks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from .checks import check_adapter, check_like, check_scaled

_ADAM = (
    "float lr, float beta1, float beta2, float eps, float weight_decay, "
    "float logit_scale, bool bf16=False"
)
_MUTATED = "Tensor(a!)[] params, Tensor(b!)[] exp_avg, Tensor(c!)[] exp_avg_sq"
SCHEMAS = {
    "adapter": "(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2)"
    " -> (Tensor z, Tensor h)",
    "adapter_backward": "(Tensor dz, Tensor? dh, Tensor x, Tensor h, Tensor z,"
    " Tensor w2) -> (Tensor dw1, Tensor db1, Tensor dw2, Tensor db2)",
    "local_epoch": "(Tensor x, Tensor y, Tensor text, Tensor perm, int batch_size,"
    f" {_MUTATED}, int step, {_ADAM}) -> Tensor",
    "local_round": "(Tensor[] x, Tensor[] y, Tensor text, Tensor[] perm,"
    f" int batch_size, {_MUTATED}, int[] step, {_ADAM}) -> Tensor",
    "squared_distances": "(Tensor[] xs, Tensor origin) -> Tensor",
    "squared_norms_int8": "(Tensor[] qs, Tensor[] scales) -> Tensor",
    "weighted_mean": "(Tensor[] xs, Tensor weights) -> Tensor",
    "weighted_mean_int8": "(Tensor[] qs, Tensor[] scales, Tensor weights) -> Tensor",
}

# Kept alive: they own the ops.  The kernels compute in float32 and send other types to
# `fedclip_reference`, where nothing but the reference is ever registered.
_library = torch.library.Library("fedclip", "DEF")
_reference_library = torch.library.Library("fedclip_reference", "DEF")
for _name, _schema in SCHEMAS.items():
    _kernel = getattr(reference, f"{_name}_reference")
    for _owner in (_library, _reference_library):
        _owner.define(_name + _schema)
        _owner.impl(_name, _kernel, "CompositeExplicitAutograd")


# ---------------------------------------------------------------- shapes for tracing
# One tensor on "meta" takes all others here: hence the checks.


@torch.library.register_fake("fedclip::adapter", lib=_library)
def _(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Any:
    check_adapter("", x, (w1, b1, w2, b2))
    return x.new_empty(x.shape), x.new_empty(x.shape)


@torch.library.register_fake("fedclip::adapter_backward", lib=_library)
def _(dz: Tensor, dh: Any, x: Tensor, h: Tensor, z: Tensor, w2: Tensor) -> Any:
    dim = w2.shape[0]
    weight, bias = (dim, dim), (dim,)
    return tuple(w2.new_empty(shape) for shape in (weight, bias, weight, bias))


def step_count(rows: int, batch_size: int) -> int:
    """Optimizer steps of an epoch over ``rows``; a last batch of 1 is none."""
    if batch_size < 2:
        return 0
    return (rows + batch_size - 2) // batch_size


@torch.library.register_fake("fedclip::local_epoch", lib=_library)
def _(x: Tensor, y: Any, text: Any, perm: Tensor, batch_size: int, *_: Any) -> Tensor:
    return x.new_empty(step_count(perm.shape[0], batch_size))


@torch.library.register_fake("fedclip::local_round", lib=_library)
def _(
    x: Any, y: Any, text: Tensor, perm: list[Tensor], batch_size: int, *_: Any
) -> Tensor:
    return text.new_empty(sum(step_count(p.shape[0], batch_size) for p in perm))


@torch.library.register_fake("fedclip::squared_distances", lib=_library)
def _(xs: list[Tensor], origin: Tensor) -> Tensor:
    check_like("xs", xs, origin)
    return origin.new_empty(len(xs), dtype=torch.float64)


@torch.library.register_fake("fedclip::squared_norms_int8", lib=_library)
def _(qs: list[Tensor], scales: list[Tensor]) -> Tensor:
    check_scaled(qs, scales)
    return scales[0].new_empty(len(qs), dtype=torch.float64)


@torch.library.register_fake("fedclip::weighted_mean", lib=_library)
def _(xs: list[Tensor], weights: Tensor) -> Tensor:
    check_like("xs", xs, xs[0])
    return xs[0].new_empty(xs[0].shape)


@torch.library.register_fake("fedclip::weighted_mean_int8", lib=_library)
def _(qs: list[Tensor], scales: list[Tensor], weights: Tensor) -> Tensor:
    check_scaled(qs, scales)
    return scales[0].new_empty(qs[0].shape)


# -------------------------------------------------------------------------- autograd


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, _, _, w2, _ = inputs
    z, h = output
    ctx.save_for_backward(x, h, z, w2)


def _adapter_backward(ctx: Any, dz: Tensor, dh: Tensor) -> Any:
    x, h, z, w2 = ctx.saved_tensors
    grads = torch.ops.fedclip.adapter_backward(dz, dh, x, h, z, w2)
    return (None, *grads)  # x is a frozen feature


torch.library.register_autograd(
    "fedclip::adapter", _adapter_backward, setup_context=_setup_context, lib=_library
)
