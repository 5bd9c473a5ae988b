"""Local training by the CUDA kernels without a GPU; see cuda_emulation/__init__.py.

Memory that nobody wrote is NaN: torch fills what it allocates.
"""

from __future__ import annotations

import shutil

import pytest
import torch

from fedclip_plugin import capabilities
from tests.csrc.on_gpu import strided
from tests.ops.inputs import REFERENCE, epoch, make_client, whole_round

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


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
