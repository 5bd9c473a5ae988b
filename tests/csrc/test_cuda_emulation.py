"""The CUDA kernels' numbers without a GPU; see cuda_emulation/__init__.py."""

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
from tests.csrc.cuda_emulation import Int, addresses, exact_copy, integers
from tests.ops.inputs import ADAM, REFERENCE, SCALE, epoch, make_client, make_params

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
pytestmark = needs_compiler
NAN = float("nan")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    return emulation.build(tmp_path_factory.mktemp("emulation"))


def run(kernels, name, *arguments, seed=0):
    """Call a kernel; tensors go in as pointers."""
    given = [
        emulation.address(a) if isinstance(a, torch.Tensor) or a is None else a
        for a in arguments
    ]
    given = [Int(a) if isinstance(a, int) else a for a in given]
    message = getattr(kernels, f"emulate_{name}")(*given, ctypes.c_uint64(seed))
    assert message == b""


def close(got, want, tolerance=2e-5):
    assert got.shape == want.shape
    if got.numel():
        scale = max(0.1, float(want.abs().max()))
        assert float((got.double() - want.double()).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("dim", [1, 7, 33, 130])
@pytest.mark.parametrize("rows", [1, 8, 19])
def test_what_stands_between_the_adapters_products(kernels, dim, rows):
    torch.manual_seed(dim * 100 + rows)
    x, params = torch.randn(rows, dim).double(), [p.double() for p in make_params(dim)]
    z64, h64 = ops.adapter_reference(x, *params)
    w1, b1, w2, b2 = params
    h = exact_copy((x @ w1.t()).float())
    run(kernels, "tanh_rows", h, exact_copy(b1.float()), rows, dim)
    close(h, h64)
    z, inputs = exact_copy((h64 @ w2.t()).float()), exact_copy(x.float())
    run(kernels, "gate_scores", z, exact_copy(b2.float()), inputs, rows, dim)
    close(z, z64)
    dz, dh = torch.randn(rows, dim).double(), torch.randn(rows, dim).double()
    du = exact_copy(torch.full((rows, dim), NAN))
    run(kernels, "grad_scores", exact_copy(dz.float()), z, du, rows, dim)
    du64 = z64 * (dz - z64 * (z64 * dz).sum(1, keepdim=True))
    close(du, du64)
    for extra in (None, dh):
        grad = exact_copy((du64 @ w2).float())
        given = None if extra is None else exact_copy(extra.float())
        run(kernels, "grad_hidden", grad, given, h, rows, dim)
        close(grad, (du64 @ w2 + (0 if extra is None else extra)) * (1 - h64 * h64))


def test_zero_rows_and_nan_in_the_gate(kernels):
    x, u = torch.randn(5, 40), torch.randn(5, 40)
    x[1], x[3] = 0, NAN
    run(kernels, "gate_scores", u, torch.zeros(40), x, 5, 40)
    assert torch.equal(u[1], torch.zeros(40))
    assert u[3].isnan().all()
    assert u[[0, 2, 4]].isfinite().all()


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 21])
@pytest.mark.parametrize("size", [1, 5, 1024, 2051])
def test_weighted_mean(kernels, count, size):
    torch.manual_seed(count)
    xs = [exact_copy(torch.randn(size)) for _ in range(count)]
    weights = torch.rand(count, dtype=torch.float64) + 0.1
    want = ops.weighted_mean_reference([x.double() for x in xs], weights)
    for vectors in (0, 1):
        out = exact_copy(torch.full((size,), NAN))
        share = weights / weights.sum()
        table = addresses(xs)
        run(kernels, "mean_float", table, share, count, size, out, vectors)
        torch.testing.assert_close(out.double(), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 8, 11])
@pytest.mark.parametrize("shape", [(5, 1), (3, 7), (6, 64), (2, 516)])
def test_weighted_mean_int8(kernels, count, shape):
    torch.manual_seed(count)
    qs = [exact_copy(torch.randint(-128, 128, shape).char()) for _ in range(count)]
    scales = [exact_copy(torch.rand(shape[0]) / 100) for _ in range(count)]
    weights = torch.rand(count, dtype=torch.float64) + 0.1
    want = ops.weighted_mean_int8_reference(qs, scales, weights)
    for vectors in (0, 1) if shape[1] % 4 == 0 else (0,):
        out = exact_copy(torch.full(shape, NAN))
        share = weights / weights.sum()
        tables = addresses(qs), share, addresses(scales)
        size, columns = out.numel(), shape[1]
        run(kernels, "mean_int8", *tables, count, size, columns, out, vectors)
        torch.testing.assert_close(out, want, rtol=0, atol=2e-6)


def train(kernels, clients, batch, blocks=6, group=0, shared=1 << 20, bf16=0, seed=0):
    """All clients in one launch, in place; losses, and how it was laid out."""
    for c in clients:
        for name in ("x", "y", "perm", "text"):
            setattr(c, name, exact_copy(getattr(c, name)))
        for name in ("params", "exp_avg", "exp_avg_sq"):
            setattr(c, name, [exact_copy(t) for t in getattr(c, name)])
    sizes = [
        len(c.perm) // batch + (len(c.perm) % batch > 1) if batch > 1 else 0
        for c in clients
    ]
    losses = [exact_copy(torch.full((n,), NAN)) for n in sizes]
    lr, beta1, beta2, eps, decay = ADAM
    found = integers([-1] * 7)
    text = clients[0].text
    arguments = emulation.RoundArguments(
        len(clients),
        text.shape[1],
        text.shape[0],
        batch,
        group,
        blocks,
        shared,
        emulation.address(text),
        *[
            addresses([getattr(c, name) for c in clients])
            for name in ("x", "y", "perm")
        ],
        *[
            integers(values)
            for values in (
                [len(c.x) for c in clients],
                [len(c.perm) for c in clients],
                [c.step for c in clients],
            )
        ],
        addresses([t for c in clients for t in c.state()]),
        addresses(losses),
        *(lr, beta1, beta2, eps, decay, SCALE),
        bf16,
        seed,
        found,
    )
    message = kernels.emulate_round(ctypes.byref(arguments))
    assert message == b""
    names = ("group", "features", "resident", "groups", "client", "at", "of_perm")
    return losses, dict(zip(names, found))


def compare(clients, losses, starts, batch):
    for mine, start, loss in zip(clients, starts, losses):
        exact = start.to(torch.float64)
        want = epoch(REFERENCE.local_epoch, exact, batch)
        torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-5)
        for a, b in zip(mine.state(), exact.state()):
            assert float((a - b).norm()) <= 2e-5 * float(b.norm()) + 1e-7


def check(kernels, dim, rows, batch, classes, **options):
    start = make_client(dim, rows, classes, seed=dim + rows)
    start.step = 3
    mine = start.to(torch.float32)
    losses, layout = train(kernels, [mine], batch, **options)
    compare([mine], losses, [start], batch)
    return layout


@pytest.mark.parametrize(
    ("dim", "rows", "batch", "classes"),
    [
        (1, 4, 2, 2),
        (7, 10, 3, 2),  # a trailing batch of 1 is skipped
        (20, 9, 9, 1),  # one class
        (24, 16, 5, 40),  # more classes than rows
        (33, 70, 35, 5),  # two tiles of rows
    ],
)
@pytest.mark.parametrize("group", [1, 3])
def test_local_round(kernels, dim, rows, batch, classes, group):
    layout = check(kernels, dim, rows, batch, classes, group=group, seed=dim)
    assert layout["resident"] == 6
    assert layout["group"] == min(group, -(-dim // layout["features"]))


@pytest.mark.parametrize("resident", range(7))
def test_slabs_in_global_memory(kernels, resident):
    features, dim = 12, 34
    slab = features * 68 * 4
    shared = resident * slab + 4 * (6336 + 32 * (features + 1) + 1024 + 512)
    layout = check(kernels, dim, 12, 6, 3, group=3, shared=shared)
    assert (layout["resident"], layout["group"]) == (resident, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dim", "rows", "batch", "classes", "group"),
    [
        (140, 40, 20, 6, 5),  # several chunks of terms
        (130, 12, 6, 3, 2),  # several tiles of features
        (520, 4, 4, 2, 4),  # more columns than a tile of 16 features takes
        (40, 150, 150, 9, 2),  # a loss that is too large for shared memory
        (16, 300, 150, 290, 2),  # several tiles of classes
        (20, 100, 100, 4, 1),
    ],
)
def test_large_local_rounds(kernels, dim, rows, batch, classes, group):
    check(kernels, dim, rows, batch, classes, group=group, blocks=8, seed=rows)


@pytest.mark.slow
def test_the_order_of_the_threads_does_not_change_a_bit(kernels):
    results = []
    for seed in range(4):
        mine = make_client(40, 33, 5).to(torch.float32)
        losses, _ = train(kernels, [mine], 11, group=3, seed=seed)
        results.append([*losses, *mine.state()])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result))


@pytest.mark.slow
def test_more_clients_than_groups(kernels):
    starts = [
        make_client(24, rows, 4, seed) for seed, rows in enumerate((9, 0, 14, 1, 5))
    ]
    for c in starts:
        c.text = starts[0].text
        c.x[:2] = 0
    clients = [c.to(torch.float32) for c in starts]
    losses, layout = train(kernels, clients, 4, group=3, blocks=6, seed=7)
    assert (layout["group"], layout["groups"]) == (3, 2)
    compare(clients, losses, starts, 4)
    for start, mine, loss in zip(starts, clients, losses):
        alone = start.to(torch.float32)
        again, _ = train(kernels, [alone], 4, group=3, blocks=6)
        assert torch.equal(loss, again[0])
        assert all(torch.equal(a, b) for a, b in zip(alone.state(), mine.state()))


def test_perm_may_choose_and_repeat_rows(kernels):
    start = make_client(24, 30, 4)
    start.perm = torch.tensor([5, 5, 29, 0, 7, 5, 1])
    mine = start.to(torch.float32)
    losses, _ = train(kernels, [mine], 4, group=2)
    compare([mine], losses, [start], 4)


@pytest.mark.parametrize(("rows", "batch"), [(0, 8), (1, 8), (7, 1)])
def test_nothing_to_train_on_changes_nothing(kernels, rows, batch):
    start = make_client(16, rows, 3)
    mine = start.to(torch.float32)
    losses, _ = train(kernels, [mine], batch)
    assert losses[0].shape == (0,)
    assert all(torch.equal(a, b) for a, b in zip(mine.state(), start.state()))


@pytest.mark.parametrize(
    ("client", "name", "at", "value"),
    [(0, "y", 3, 4), (1, "y", 8, -1), (1, "perm", 0, 9), (0, "perm", 8, -1)],
)
def test_a_wrong_index_is_found_and_nothing_is_trained(
    kernels, client, name, at, value
):
    starts = [make_client(16, 9, 4, seed) for seed in range(2)]
    clients = [c.to(torch.float32) for c in starts]
    getattr(clients[client], name)[at] = value
    clients[1].perm[-1] = 100  # a later one
    _, layout = train(kernels, clients, 4, group=2)
    found = (layout["client"], layout["at"], layout["of_perm"])
    assert found == (client, at, name == "perm")
    for start, mine in zip(starts, clients):
        assert all(torch.equal(a, b) for a, b in zip(start.state(), mine.state()))


@pytest.mark.parametrize(
    "bits", [0x7FC00000, 0x7F800001, -1, 0x7F800000, 0x3F808000, 0x3F818000, 1]
)
def test_bf16_rounds_as_pytorch_does(kernels, bits):
    value = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    want = value.bfloat16().float()
    kernels.emulate_round_bf16(emulation.address(value))
    torch.testing.assert_close(value, want, rtol=0, atol=0, equal_nan=True)


def test_bf16_operands(kernels):
    start = make_client(40, 24, 5)
    mine, exact = start.to(torch.float32), start.to(torch.float64)
    train(kernels, [mine], 12, group=2, bf16=1)
    epoch(REFERENCE.local_epoch, exact, 12, "bf16")
    plain = start.to(torch.float64)
    epoch(REFERENCE.local_epoch, plain, 12)
    for a, b, c in zip(mine.exp_avg, exact.exp_avg, plain.exp_avg):
        # a value next to a rounding limit may fall on its other side
        assert float((a - b).norm()) <= 2e-3 * float(b.norm())
        assert float((c - b).norm()) > 2 * float((a - b).norm())


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
    command = [sys.executable, "-m", "pytest", *options, __file__]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
