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

from fedclip_plugin import capabilities, ops
from tests.csrc import cuda_emulation as emulation
from tests.csrc.cuda_emulation import Emulation
from tests.ops.inputs import (
    REFERENCE,
    epoch,
    make_client,
    make_params,
    whole_round,
)

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return Emulation(tmp_path_factory.mktemp("emulation"))


@pytest.fixture
def gpu(built, monkeypatch):
    """The emulated operators on a device as it comes; memory starts as NaN."""
    monkeypatch.setenv("FEDCLIP_CUDA_GROUP", "")
    torch.use_deterministic_algorithms(True)
    yield built
    torch.use_deterministic_algorithms(False)
    built.reset()


def close(got, want, tolerance=2e-5):
    assert got.shape == want.shape
    if got.numel():
        scale = max(0.1, float(want.abs().max()))
        assert float((got.double() - want.double()).abs().max()) <= tolerance * scale


def strided(tensor):
    wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1)
    return wide[..., 1::2].copy_(tensor)


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


def compare(clients, losses, starts, batch):
    for mine, start, loss in zip(clients, starts, losses, strict=True):
        exact = start.to(torch.float64)
        want = epoch(REFERENCE.local_epoch, exact, batch)
        torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-5)
        for a, b in zip(mine.state(), exact.state()):
            assert float((a - b).norm()) <= 2e-5 * float(b.norm()) + 1e-7


def check(gpu, dim, rows, batch, classes, group=0, seed=0):
    """One client's epoch; returns the blocks that trained it."""
    if group:
        gpu.group(group)
    gpu.device.seed = seed
    start = make_client(dim, rows, classes, seed=dim + rows)
    start.step = 3
    mine = start.to(torch.float32)
    losses = epoch(gpu.ops.local_epoch, mine, batch)
    compare([mine], [losses], [start], batch)
    return gpu.device.blocks


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
def test_local_epoch(gpu, dim, rows, batch, classes, group):
    blocks = check(gpu, dim, rows, batch, classes, group, seed=dim)
    features, of_group, resident, _, _ = gpu.shape(dim, 6, 1 << 20, group)
    assert (blocks, resident) == (of_group, 6)
    assert of_group == min(group, -(-dim // features))


@pytest.mark.parametrize(
    ("rows", "batch", "classes"),
    [(20, 32, 5), (70, 32, 5), (75, 75, 6), (150, 150, 9)],
)
@pytest.mark.parametrize("capability", [7, 9])
def test_blocks_of_one_tile_of_features(gpu, rows, batch, classes, capability):
    """On tensor cores where there are some for float32; see tensor.cuh."""
    gpu.device.multiprocessors, gpu.device.capability = 8, capability
    assert check(gpu, 128, rows, batch, classes, group=8, seed=rows) == 8


def test_unaligned_rows_give_the_same_bits(gpu):
    gpu.device.multiprocessors = 8
    gpu.group(8)
    plain, odd = make_client(128, 40, 4), make_client(128, 40, 4)
    odd.x = torch.zeros(40 * 128 + 1)[1:].view(40, 128).copy_(odd.x)
    assert odd.x.data_ptr() % 16
    losses = [epoch(gpu.ops.local_epoch, client, 32) for client in (plain, odd)]
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(plain.state(), odd.state()))


@pytest.mark.parametrize("resident", range(7))
def test_slabs_in_global_memory(gpu, resident):
    features, dim = 12, 34
    slab = features * 68 * 4
    staged, own = (4 * 32 + 2 * 16) * 132, 32 * (features + 1) + 96 * features
    shared = resident * slab + 4 * (staged + own + 1024 + 5 * 64 + 3 * 32 + 48)
    gpu.device.shared_bytes = shared
    assert check(gpu, dim, 12, 6, 3, group=3) == 3
    assert gpu.device.shared_asked == shared
    assert gpu.shape(dim, 6, shared, 3) == [features, 3, resident, shared, False]


@pytest.mark.slow
@pytest.mark.parametrize("buffers", [1, 2, 3])
def test_fewer_chunks_at_once(gpu, buffers):
    """Where shared memory has no room for four, as on a T4."""
    dim, features = 400, 16
    own = 32 * (features + 1) + 96 * features
    staged = (buffers * 32 + 2 * 16) * 132
    gpu.device.multiprocessors = 25
    gpu.device.shared_bytes = 4 * (staged + own + 1024 + 5 * 64 + 3 * 32 + 48)
    assert check(gpu, dim, 40, 40, 4, group=25, seed=buffers) == 25
    assert gpu.device.shared_asked == gpu.device.shared_bytes


def test_a_block_has_a_whole_tile_of_features(gpu):
    """At D > 256 the last moments leave shared memory, not half of each product."""
    h100, a100, t4 = (227 << 10, 132), (163 << 10, 108), (64 << 10, 40)
    for dim, (shared, blocks), resident, fast in (
        (128, h100, 6, True),
        (512, h100, 4, True),
        (640, h100, 3, True),
        (768, h100, 2, True),
        (1024, h100, 2, True),
        (500, h100, 4, False),
        (512, a100, 2, True),
        (640, a100, 1, False),
        (512, t4, 0, False),
        (768, t4, 0, False),
        (1024, t4, 0, False),
    ):
        shape = gpu.shape(dim, blocks, shared)
        features = max(16, -(-dim // (4 * blocks)) * 4)
        assert shape[:3] == [features, -(-dim // features), resident]
        assert shape[3] <= shared
        assert shape[4] == fast


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
        (640, 20, 20, 4, 40),  # more columns than a tile has chunks
        (640, 40, 40, 4, 40),
    ],
)
def test_large_local_epochs(gpu, dim, rows, batch, classes, group):
    gpu.device.multiprocessors = max(8, group)
    check(gpu, dim, rows, batch, classes, group, seed=rows)


@pytest.mark.slow
def test_the_order_of_the_threads_does_not_change_a_bit(gpu):
    gpu.group(3)
    results = []
    for gpu.device.seed in range(4):
        mine = make_client(40, 33, 5).to(torch.float32)
        results.append([epoch(gpu.ops.local_epoch, mine, 11), *mine.state()])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result))


@pytest.mark.parametrize(("granted", "blocks", "refused"), [(100, 6, 0), (5, 3, 1)])
def test_more_clients_than_groups_and_a_share_of_a_gpu(gpu, granted, blocks, refused):
    """Fewer groups where the launch of all of them is refused, with the same bits."""
    gpu.group(3)
    starts = [make_client(24, rows, 4, i) for i, rows in enumerate((9, 0, 14, 1, 5))]
    for c in starts:
        c.text = starts[0].text
        c.x[:2] = 0
    clients = [c.to(torch.float32) for c in starts]
    gpu.device.seed, gpu.device.granted = 7, granted
    losses = whole_round(gpu.ops.local_round, clients, 4)
    assert (gpu.device.blocks, gpu.device.refused) == (blocks, refused)
    compare(clients, losses, starts, 4)
    gpu.device.granted = 100
    for start, mine, loss in zip(starts, clients, losses):
        alone = start.to(torch.float32)
        assert torch.equal(loss, epoch(gpu.ops.local_epoch, alone, 4))
        assert all(torch.equal(a, b) for a, b in zip(alone.state(), mine.state()))


def test_no_room_for_a_group(gpu):
    gpu.group(3)
    gpu.device.granted = 2
    client = make_client(24, 9, 4)
    with pytest.raises(RuntimeError, match=r"^local_round: CUDA: too many blocks"):
        epoch(gpu.ops.local_epoch, client, 4)
    gpu.device.shared_bytes = 1000
    with pytest.raises(RuntimeError, match=r"24 features take more shared memory"):
        epoch(gpu.ops.local_epoch, client, 4)


def test_non_contiguous_and_unaligned_training_inputs(gpu):
    plain, odd = make_client(33, 50, 4), make_client(33, 50, 4)
    for name in ("x", "y", "text", "perm"):
        setattr(odd, name, strided(getattr(odd, name)))
    for name in ("params", "exp_avg", "exp_avg_sq"):
        setattr(odd, name, [strided(t) for t in getattr(odd, name)])
    losses = [epoch(gpu.ops.local_epoch, client, 16) for client in (plain, odd)]
    assert torch.equal(*losses)
    assert all(torch.equal(a, b) for a, b in zip(plain.state(), odd.state()))


def test_perm_may_choose_and_repeat_rows(gpu):
    start = make_client(24, 30, 4)
    start.perm = torch.tensor([5, 5, 29, 0, 7, 5, 1])
    mine = start.to(torch.float32)
    losses = epoch(gpu.ops.local_epoch, mine, 4)
    compare([mine], [losses], [start], 4)


@pytest.mark.parametrize(("rows", "batch"), [(0, 8), (1, 8), (7, 1)])
def test_nothing_to_train_on_changes_nothing(gpu, rows, batch):
    start = make_client(16, rows, 3)
    mine = start.to(torch.float32)
    assert epoch(gpu.ops.local_epoch, mine, batch).shape == (0,)
    assert all(torch.equal(a, b) for a, b in zip(mine.state(), start.state()))


@pytest.mark.parametrize(
    ("client", "name", "at", "value"),
    [(0, "y", 3, 4), (1, "y", 8, -1), (1, "perm", 0, 9), (0, "perm", 8, -1)],
)
def test_a_wrong_index_is_named_and_nothing_is_trained(gpu, client, name, at, value):
    starts = [make_client(16, 9, 4, seed) for seed in range(2)]
    clients = [c.to(torch.float32) for c in starts]
    getattr(clients[client], name)[at] = value
    clients[1].perm[-1] = 100  # a later one
    top = 3 if name == "y" else 8
    wrong = rf"^{name}\[{client}\]: expected values in 0\.\.{top}, got {value} at {at}$"
    with pytest.raises(RuntimeError, match=wrong):
        whole_round(gpu.ops.local_round, clients, 4)
    for start, mine in zip(starts, clients):
        assert all(torch.equal(a, b) for a, b in zip(start.state(), mine.state()))


def test_a_tensor_that_is_given_twice_is_refused(gpu):
    client = make_client(16, 9, 4)
    client.params[2] = client.params[0]
    with pytest.raises(RuntimeError, match="expected its own memory"):
        epoch(gpu.ops.local_epoch, client, 4)


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


@pytest.mark.skipif(
    not capabilities()["ops"]["local_epoch"], reason="PyTorch's own Adam stands still"
)
def test_an_overflowing_square_gives_what_the_cpu_gives(gpu):
    """One formula for the second moment on both devices, also where it is infinite."""
    first = make_client(8, 9, 4)
    first.exp_avg_sq[0][0, 0] = float("inf")
    first.exp_avg_sq[1][2] = 3e38
    for client in (first, make_client(8, 9, 4)):
        cpu, ours = client.to(torch.float32), client.to(torch.float32)
        epoch(torch.ops.fedclip.local_epoch, cpu, 9)
        epoch(gpu.ops.local_epoch, ours, 9)
        for a, b in zip(ours.state(), cpu.state()):
            near = {"rtol": 1e-5, "atol": 1e-7, "equal_nan": True}
            torch.testing.assert_close(a, b, **near)


@pytest.mark.parametrize(
    "bits", [0x7FC00000, 0x7F800001, -1, 0x7F800000, 0x3F808000, 0x3F818000, 1]
)
def test_bf16_rounds_as_pytorch_does(gpu, bits):
    value = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    want = value.bfloat16().float()
    gpu.library.emulate_round_bf16(ctypes.c_void_p(value.data_ptr()))
    torch.testing.assert_close(value, want, rtol=0, atol=0, equal_nan=True)


def test_bf16_operands(gpu):
    start = make_client(40, 24, 5)
    mine, exact = start.to(torch.float32), start.to(torch.float64)
    epoch(gpu.ops.local_epoch, mine, 12, "bf16")
    epoch(REFERENCE.local_epoch, exact, 12, "bf16")
    plain = start.to(torch.float64)
    epoch(REFERENCE.local_epoch, plain, 12)
    for a, b, c in zip(mine.exp_avg, exact.exp_avg, plain.exp_avg):
        # a value next to a rounding limit may fall on its other side
        assert float((a - b).norm()) <= 2e-3 * float(b.norm())
        assert float((c - b).norm()) > 2 * float((a - b).norm())


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
    command = [sys.executable, "-m", "pytest", *options, __file__]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
