"""What the tests on a GPU share: when they run, inputs there, poisoned memory."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fedclip_plugin import capabilities
from tests.ops.inputs import Client

OPS = torch.ops.fedclip
BUILT = capabilities()["cuda_compiled"]
on_gpu = pytest.mark.skipif(
    not (BUILT and torch.cuda.is_available()), reason="needs a GPU and the CUDA kernels"
)
several_gpus = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two GPUs"
)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Memory full of NaN, so that what a kernel leaves unwritten shows."""
    if BUILT and torch.cuda.is_available():
        for size in (2**26, *[2**power for power in range(5, 24)]):
            torch.full((size,), float("nan"), device="cuda")  # freed at once


def move(client: Client, device="cuda", dtype=torch.float32) -> Client:
    """A copy on another device."""

    def to(value):
        if isinstance(value, list):
            return [to(v) for v in value]
        if not isinstance(value, torch.Tensor):
            return value
        kind = dtype if value.is_floating_point() else value.dtype
        return value.to(device=device, dtype=kind, copy=True)

    fields = dataclasses.fields(client)
    return Client(**{f.name: to(getattr(client, f.name)) for f in fields})


def doubles(*tensors):
    return [t.double() for t in tensors]


def close(got, want, tolerance=2e-5):
    assert got.shape == want.shape
    if got.numel():
        want = want.to(got.device)
        scale = max(0.1, float(want.abs().max()))
        assert float((got.double() - want).abs().max()) <= tolerance * scale


def strided(tensor):
    wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1)
    view = wide[..., 1::2]
    return view.copy_(tensor)
