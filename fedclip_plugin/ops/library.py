"""The library ``fedclip`` of torch: how an operator is defined, and how it is called.

Each family of operators has a file beside this one: schema, reference in plain PyTorch,
shapes for tracing, gradient and checked wrapper.  The operators exist with and without
the compiled extension: ``csrc/`` only adds kernels for CPU and CUDA, and where there is
none the dispatcher falls through to the reference, so no caller asks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .kernels import LIBRARY, serves

SCHEMAS: dict[str, str] = {}  # operator -> its schema

# Kept alive: they own the ops.  The kernels compute in float32 and send other types to
# `fedclip_reference`, where nothing but the reference is ever registered.
_library = torch.library.Library(LIBRARY, "DEF")
_reference_library = torch.library.Library(f"{LIBRARY}_reference", "DEF")


def define(
    name: str, schema: str, reference: Callable[..., Any], shapes: Callable[..., Any]
) -> Any:
    """Define the operator ``name`` and return it.

    ``reference`` computes it on any device and in any floating type; ``shapes`` returns
    empty tensors in its place, for tracing.  (One tensor on "meta" takes all others
    there: hence the checks in it.)
    """
    SCHEMAS[name] = schema
    for owner in (_library, _reference_library):
        owner.define(name + schema)
        owner.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{LIBRARY}::{name}", shapes, lib=_library)
    return getattr(torch.ops.fedclip, name).default


def differentiate(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> None:
    """Give the operator ``name`` its gradient, as ``torch.library`` takes it."""
    torch.library.register_autograd(
        f"{LIBRARY}::{name}", backward, setup_context=setup_context, lib=_library
    )


@functools.cache
def has_kernel(name: str, device: torch.device) -> bool:
    """Whether a compiled kernel serves ``fedclip::<operator>`` on a device."""
    if not serves(device):
        return False
    key = device.type.upper()
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))


def call(
    operator: Any, explain: Callable[[], None], lead: Tensor, dtype: Any, *args: Any
) -> Any:
    """``operator(*args)``; ``explain`` raises ValueError if the arguments do not fit.

    A compiled kernel, which takes ``lead`` in ``dtype``, checks the same in no time:
    Python's checks are made where another answers, or one has refused.
    """
    if not (lead.dtype is dtype and has_kernel(operator.name(), lead.device)):
        explain()
    try:
        return operator(*args)
    except RuntimeError:
        explain()
        raise
