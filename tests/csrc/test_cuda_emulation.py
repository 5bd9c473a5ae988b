"""The CUDA operators without a GPU, host code included; see cuda_emulation/__init__.py.

Memory that nobody wrote is NaN: torch fills what it allocates.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedclip_plugin import ops
from tests.csrc import cuda_emulation as emulation
from tests.csrc.on_gpu import close
from tests.ops.inputs import (
    REFERENCE,
    epoch,
    make_client,
    make_params,
    whole_round,
)

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.mark.parametrize("dim", [1, 7, 33, 130])
@pytest.mark.parametrize("rows", [0, 1, 8, 19])
def test_adapter_and_its_backward(gpu, dim, rows):
    torch.manual_seed(dim * 100 + rows)
    x, params = torch.randn(rows, dim), make_params(dim)
    z, h = gpu.ops.adapter(x, *params)
    z64, h64 = ops.adapter_reference(x.double(), *[p.double() for p in params])
    close(z, z64)
    close(h, h64)
    dz, dh = torch.randn(rows, dim), torch.randn(rows, dim)
    for extra in (None, dh):
        got = gpu.ops.adapter_backward(dz, extra, x, h, z, params[2])
        extra64 = None if extra is None else extra.double()
        exact = dz.double(), extra64, x.double(), h64, z64, params[2].double()
        for a, b in zip(got, ops.adapter_backward_reference(*exact)):
            close(a, b, 5e-5)


def test_zero_rows_and_nan_in_the_gate(gpu):
    x = torch.randn(5, 40)
    x[1], x[3] = 0, float("nan")
    z, _ = gpu.ops.adapter(x, *make_params(40))
    assert torch.equal(z[1], torch.zeros(40))
    assert z[3].isnan().all()
    assert z[[0, 2, 4]].isfinite().all()


@pytest.mark.parametrize("count", [1, 7, 8, 9, 21])
@pytest.mark.parametrize("size", [0, 1, 5, 1024, 2051])
def test_weighted_mean_and_distances(gpu, count, size):
    torch.manual_seed(count)
    xs = [torch.randn(size) for _ in range(count)]
    odd = [torch.zeros(size + 1)[1:].copy_(x) for x in xs]  # no vectors of four
    weights = torch.rand(count, dtype=torch.float64) + 0.1
    doubles = [x.double() for x in xs]
    want = ops.weighted_mean_reference(doubles, weights)
    squares = ops.squared_distances_reference(doubles, doubles[-1])
    for given in (xs, odd):
        mean = gpu.ops.weighted_mean(given, weights)
        torch.testing.assert_close(mean.double(), want, rtol=0, atol=1e-6)
        found = gpu.ops.squared_distances(given, xs[-1])
        torch.testing.assert_close(found, squares, rtol=1e-6, atol=0)


def test_a_distance_over_many_blocks(gpu):
    xs = [torch.randn(40_000) for _ in range(2)]
    found = gpu.ops.squared_distances(xs, xs[0])
    want = ops.squared_distances_reference([x.double() for x in xs], xs[0].double())
    torch.testing.assert_close(found, want, rtol=1e-6, atol=0)
    xs[1][39_999] = float("nan")
    assert gpu.ops.squared_distances(xs, xs[0]).isnan().tolist() == [False, True]
    assert gpu.ops.squared_distances([], xs[0]).shape == (0,)


@pytest.mark.parametrize("count", [1, 8, 11])
@pytest.mark.parametrize("shape", [(0, 4), (5, 1), (3, 7), (6, 64), (2, 516)])
def test_int8(gpu, count, shape):
    torch.manual_seed(count)
    qs = [torch.randint(-128, 128, shape).char() for _ in range(count)]
    weights = torch.rand(count, dtype=torch.float64) + 0.1
    for rows in {shape[0], 1}:
        scales = [torch.rand(rows) / 100 for _ in range(count)]
        want = ops.weighted_mean_int8_reference(qs, scales, weights)
        mean = gpu.ops.weighted_mean_int8(qs, scales, weights)
        torch.testing.assert_close(mean, want, rtol=0, atol=2e-6)
        norms = ops.squared_norms_int8_reference(qs, scales)
        found = gpu.ops.squared_norms_int8(qs, scales)
        torch.testing.assert_close(found, norms, rtol=1e-12, atol=0)


def test_a_capture_is_refused_before_anything_is_done(gpu):
    """What a capture does not allow would end it; the fake runtime keeps the error."""
    x, client = torch.randn(4, 8), make_client(8, 9, 4)
    gpu.device.capturing = 1
    weights, launches = torch.ones(2), gpu.device.launches
    q = x.char()
    for call in (
        lambda: gpu.ops.weighted_mean([x, x], weights),
        lambda: gpu.ops.weighted_mean_int8([q, q], [x[:, 0], x[:, 0]], weights),
        lambda: gpu.ops.squared_distances([x], x),
        lambda: gpu.ops.squared_norms_int8([q], [x[:, 0]]),
        lambda: epoch(gpu.ops.local_epoch, client, 4),
    ):
        with pytest.raises(RuntimeError, match=r"cannot be captured in a CUDA graph$"):
            call()
    assert gpu.device.launches == launches
    z, _ = gpu.ops.adapter(x, *make_params(8))
    assert z.isfinite().all()
    assert gpu.device.launches == launches + 2


@pytest.fixture
def without_code(gpu):
    """A GPU of another generation than those that the module was built for."""
    gpu.device.has_code = 0
    gpu.library.emulated_forget()
    yield gpu
    gpu.library.emulated_forget()


def test_a_gpu_without_code_gets_the_references(without_code):
    gpu, x, params = without_code, torch.randn(4, 8), make_params(8)
    client, twin = make_client(8, 9, 4), make_client(8, 9, 4)
    assert torch.equal(
        epoch(gpu.ops.local_epoch, client, 4), epoch(REFERENCE.local_epoch, twin, 4)
    )
    assert all(torch.equal(a, b) for a, b in zip(client.state(), twin.state()))
    q, scale, weights = x.char(), x[:, 0].abs(), torch.ones(1)
    for name, arguments in {
        "adapter": (x, *params),
        "weighted_mean": ([x], weights),
        "weighted_mean_int8": ([q], [scale], weights),
        "squared_distances": ([x], x),
        "squared_norms_int8": ([q], [scale]),
    }.items():
        found, want = (getattr(o, name)(*arguments) for o in (gpu.ops, REFERENCE))
        pairs = zip(found, want) if isinstance(found, tuple) else [(found, want)]
        assert all(torch.equal(a, b) for a, b in pairs), name
    assert gpu.device.launches == 0


def test_other_types_run_the_reference(gpu):
    mine, twin = (make_client(12, 20, 3).to(torch.float64) for _ in range(2))
    losses = whole_round(gpu.ops.local_round, [mine], 8)[0]
    assert losses.dtype == torch.float64
    assert torch.equal(losses, epoch(REFERENCE.local_epoch, twin, 8))
    assert gpu.device.launches == 0


@pytest.mark.parametrize(
    "bits", [0x7FC00000, 0x7F800001, -1, 0x7F800000, 0x3F808000, 0x3F818000, 1]
)
def test_bf16_rounds_as_pytorch_does(gpu, bits):
    value = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    want = value.bfloat16().float()
    gpu.library.emulate_round_bf16(ctypes.c_void_p(value.data_ptr()))
    torch.testing.assert_close(value, want, rtol=0, atol=0, equal_nan=True)


def test_arguments_are_checked(gpu):
    client = make_client(9, 12, 3)
    client.params[2] = client.params[2][:, :8]
    with pytest.raises(RuntimeError, match=r"^params\[2\]: expected float32 \(9, 9\)"):
        epoch(gpu.ops.local_epoch, client, 4)
    gpu.group("none")
    with pytest.raises(RuntimeError, match=r"^FEDCLIP_CUDA_GROUP=none: expected"):
        epoch(gpu.ops.local_epoch, make_client(9, 12, 3), 4)
    with pytest.raises(RuntimeError, match=r"^weights: expected float32 or"):
        gpu.ops.weighted_mean([torch.ones(3)], torch.ones(2))
    empty = make_client(0, 2, 3)
    with pytest.raises(RuntimeError, match=r"^x\[0\]: expected at least one column"):
        epoch(gpu.ops.local_epoch, empty, 2)


@pytest.mark.slow
@pytest.mark.skipif(emulation.INNER in os.environ, reason="already inside")
def test_no_access_out_of_bounds():
    """The quick tests again under AddressSanitizer and UBSan."""
    libraries = []
    for name in ("libasan.so", "libubsan.so"):
        command = ["g++", f"-print-file-name={name}"]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        if not Path(found.stdout.strip()).is_absolute():
            pytest.skip(f"needs {name}")
        libraries.append(found.stdout.strip())
    env = {
        **os.environ,
        emulation.INNER: "1",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "OMP_NUM_THREADS": "1",
    }
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not slow"]
    files = sorted(
        str(path) for path in Path(__file__).parent.glob("test_cuda_emulation*")
    )
    command = [sys.executable, "-m", "pytest", *options, *files]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
