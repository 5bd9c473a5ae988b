"""The operators ``adapter`` and ``adapter_backward``: the gate of FedCLIP.

The mathematics (exact, no approximation):

* the softmax denominator cancels in ``z = normalize(softmax(u) * x)``, so
  ``z = normalize(exp(u - max u) * x)``;
* backward of softmax, product and normalisation collapses to
  ``du = z * (dz - z <z, dz>)``.

Source of the method: Lu et al. 2023 (arXiv 2302.13485), section 3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .checks import check, check_adapter, check_matrix
from .library import call, define, differentiate

NORM_FLOOR = 1e-12  # of a length, as F.normalize has it: zeros give z = 0, not NaN
# Spares 6 us of torch.library's Python a call where nobody wants a gradient.
_below_autograd: Any = getattr(
    torch._C, "_AutoDispatchBelowAutograd", contextlib.nullcontext
)


def adapter(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor
) -> tuple[Tensor, Tensor]:
    """The attention adapter: ``x`` (N, D) raw features -> ``z`` (N, D), ``h`` (N, D).

    ``z`` is the normalised gated feature, ``h`` the hidden activation.  ``w1, w2``
    (D, D), ``b1, b2`` (D,); differentiable in these four, not in ``x``.
    Raises ValueError naming the argument of wrong shape, dtype or device.
    """
    params = (w1, b1, w2, b2)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        check(not x.requires_grad, "x: frozen features cannot require a gradient")
        _check_fit(x, params)
        z, h = _adapter(x, *params)
        return z, h
    with _below_autograd():
        explain = partial(_check_fit, x, params)
        z, h = call(_adapter, explain, x, torch.float32, x, *params)
    return z, h


def _check_fit(x: Tensor, params: Sequence[Tensor]) -> None:
    check_matrix("x", x)
    check_adapter("", x, params)


def operand(factor: Tensor, precision: str) -> Tensor:
    """A factor of a matrix product: as it is, or rounded to the nearest bfloat16.

    It keeps its type, so products are accumulated in that type, not in bfloat16.
    """
    return factor.bfloat16().to(factor.dtype) if precision == "bf16" else factor


def adapter_reference(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    precision: str = "fp32",
) -> tuple[Tensor, Tensor]:
    """Gated, normalised features.  ``x`` (N, D) -> ``z`` (N, D), ``h`` (N, D).

    ``h = tanh(x w1' + b1)``, ``z = normalize(softmax(h w2' + b2) * x)``.  ``precision``
    is that of the factors of both products, see ``operand``.
    """
    w1, w2 = operand(w1, precision), operand(w2, precision)
    h = torch.addmm(b1, operand(x, precision), w1.t()).tanh_()  # (N, D)
    u = torch.addmm(b2, operand(h, precision), w2.t())  # (N, D)
    if u.numel():
        u = u - u.amax(dim=1, keepdim=True)
    q = u.exp_().mul_(x)  # (N, D)
    norm = torch.linalg.vector_norm(q, dim=1, keepdim=True)  # (N, 1)
    return q.div_(norm.clamp_min_(NORM_FLOOR)), h


def adapter_backward_reference(
    dz: Tensor,
    dh: Tensor | None,
    x: Tensor,
    h: Tensor,
    z: Tensor,
    w2: Tensor,
    precision: str = "fp32",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``adapter`` for ``w1, b1, w2, b2``; ``x`` is frozen.

    ``dz``, ``dh`` (N, D) are the gradients of both outputs; ``dh`` may be None.
    ``precision`` is that of the factors of the three products, see ``operand``.
    """
    du = z * (dz - z * (z * dz).sum(dim=1, keepdim=True))  # (N, D)
    du_factor = operand(du, precision)
    grad_h = du_factor @ operand(w2, precision)  # (N, D)
    if dh is not None:
        grad_h = grad_h + dh
    da = grad_h * (1 - h * h)  # (N, D), before the tanh
    dw1 = operand(da, precision).t() @ operand(x, precision)  # (D, D)
    dw2 = du_factor.t() @ operand(h, precision)  # (D, D)
    return dw1, da.sum(dim=0), dw2, du.sum(dim=0)


def _shapes(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Any:
    check_adapter("", x, (w1, b1, w2, b2))
    return x.new_empty(x.shape), x.new_empty(x.shape)


def _backward_shapes(
    dz: Tensor, dh: Tensor | None, x: Tensor, h: Tensor, z: Tensor, w2: Tensor
) -> Any:
    dim = w2.shape[0]
    weight, bias = (dim, dim), (dim,)
    return tuple(w2.new_empty(shape) for shape in (weight, bias, weight, bias))


def _setup_context(ctx: Any, inputs: Any, output: Any) -> None:
    x, _, _, w2, _ = inputs
    z, h = output
    ctx.save_for_backward(x, h, z, w2)


def _backward(ctx: Any, dz: Tensor, dh: Tensor) -> Any:
    x, h, z, w2 = ctx.saved_tensors
    return (None, *_adapter_backward(dz, dh, x, h, z, w2))  # x is a frozen feature


_adapter = define(
    "adapter",
    "(Tensor x, Tensor w1, Tensor b1, Tensor w2, Tensor b2) -> (Tensor z, Tensor h)",
    adapter_reference,
    _shapes,
)
_adapter_backward = define(
    "adapter_backward",
    "(Tensor dz, Tensor? dh, Tensor x, Tensor h, Tensor z, Tensor w2)"
    " -> (Tensor dw1, Tensor db1, Tensor dw2, Tensor db2)",
    adapter_backward_reference,
    _backward_shapes,
)
differentiate("adapter", _backward, _setup_context)
