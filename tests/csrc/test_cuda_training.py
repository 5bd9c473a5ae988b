"""Local training by the CUDA kernels on a GPU: float64, determinism, group sizes.

Runs where torch sees a GPU and the kernels are built; `make gpu-check` sees to both.
"""

from __future__ import annotations

import pytest
import torch

from fedclip_plugin import ops
from tests.csrc.on_gpu import OPS, move, on_gpu, strided
from tests.ops.inputs import REFERENCE, epoch, make_client, whole_round

SHAPES = [
    (1, 6, 3, 2),
    (7, 10, 3, 2),  # a trailing batch of 1 is skipped
    (33, 70, 32, 5),
    (130, 100, 33, 3),
    (64, 65, 32, 2000),  # far more classes than rows
    (64, 40, 32, 1),  # one class
    (512, 96, 32, 7),
    (384, 64, 32, 65),
    (640, 64, 32, 7),
    (768, 64, 32, 7),
    (1024, 64, 32, 7),
    (1500, 40, 20, 3),  # weights that do not fit on the chip
    (512, 300, 256, 300),
    (40, 3000, 2048, 345),
]


@on_gpu
@pytest.mark.parametrize(("dim", "rows", "batch", "classes"), SHAPES)
@pytest.mark.parametrize("precision", ops.PRECISIONS)
def test_local_epoch(dim, rows, batch, classes, precision):
    client = make_client(dim, rows, classes)
    client.step = 3
    ours, exact = move(client), move(client, "cpu", torch.float64)
    losses = epoch(OPS.local_epoch, ours, batch, precision)
    want = epoch(REFERENCE.local_epoch, exact, batch, precision)
    assert losses.shape == want.shape
    loose = (
        500 if precision == "bf16" else 1
    )  # a value at a rounding limit may fall on its other side
    near = {"rtol": loose * 1e-5, "atol": loose * 1e-5}
    torch.testing.assert_close(losses.double().cpu(), want, **near)
    for a, b in zip(ours.state(), exact.state()):
        error = float((a.cpu() - b).norm())
        assert error <= loose * 2e-5 * float(b.norm()) + 1e-7


@on_gpu
@pytest.mark.parametrize("group", [1, 2, 7, 32, 100])
def test_any_size_of_a_group_is_right(group, monkeypatch):
    monkeypatch.setenv("FEDCLIP_CUDA_GROUP", str(group))
    client = make_client(200, 64, 7)
    ours, exact = move(client), move(client, "cpu", torch.float64)
    epoch(OPS.local_epoch, ours, 32)
    epoch(REFERENCE.local_epoch, exact, 32)
    for a, b in zip(ours.state(), exact.state()):
        assert float((a.cpu() - b).norm()) <= 2e-5 * float(b.norm())


@on_gpu
def test_twenty_steps_lose_no_more_than_eager_float32():
    client = make_client(512, 640, 7)
    exact = move(client, "cuda", torch.float64)
    eager, ours = move(client), move(client)
    epoch(REFERENCE.local_epoch, exact, 32)
    epoch(REFERENCE.local_epoch, eager, 32)
    epoch(OPS.local_epoch, ours, 32)

    def distance(params):
        pairs = zip(params, exact.params)
        return sum(float((p - q).square().sum()) for p, q in pairs) ** 0.5

    assert distance(ours.params) <= 1.5 * distance(eager.params)


@on_gpu
@pytest.mark.parametrize("dim", [24, 512])
def test_a_round_gives_the_bits_of_each_client_alone(dim):
    sizes = (0, 9, 1, 33, 70, 20, 8, 64, 65)
    clients = [make_client(dim, rows, 4, seed) for seed, rows in enumerate(sizes)]
    for c in clients:
        c.text = clients[0].text
        c.x[:2] = 0
    ours = [move(c) for c in clients]
    losses = whole_round(OPS.local_round, ours, 8)
    for repeat in range(3):
        again = [move(c) for c in clients]
        repeated = whole_round(OPS.local_round, again, 8)
        assert all(torch.equal(a, b) for a, b in zip(losses, repeated)), repeat
        for a, b in zip(ours, again):
            assert all(torch.equal(s, t) for s, t in zip(a.state(), b.state()))
    for c, mine, loss in zip(clients, ours, losses):
        alone = move(c)
        assert torch.equal(epoch(OPS.local_epoch, alone, 8), loss)
        assert all(torch.equal(a, b) for a, b in zip(alone.state(), mine.state()))


@on_gpu
def test_a_hundred_clients_at_once():
    clients = [make_client(96, 20 + seed % 7, 5, seed) for seed in range(100)]
    for c in clients:
        c.text = clients[0].text
    ours = [move(c) for c in clients]
    losses = whole_round(OPS.local_round, ours, 8)
    for c, mine, loss in zip(clients, ours, losses):
        exact = move(c, "cpu", torch.float64)
        want = epoch(REFERENCE.local_epoch, exact, 8)
        torch.testing.assert_close(loss.double().cpu(), want, rtol=1e-5, atol=1e-5)
        for a, b in zip(mine.params, exact.params):
            assert float((a.cpu() - b).norm()) <= 2e-5 * float(b.norm())


@on_gpu
def test_non_contiguous_and_unaligned_training_inputs():
    plain = move(make_client(33, 50, 4))
    odd = move(make_client(33, 50, 4))
    for name in ("x", "y", "text", "perm"):
        setattr(odd, name, strided(getattr(odd, name)))
    for name in ("params", "exp_avg", "exp_avg_sq"):
        setattr(odd, name, [strided(t) for t in getattr(odd, name)])
    assert torch.equal(
        epoch(OPS.local_epoch, plain, 16), epoch(OPS.local_epoch, odd, 16)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.state(), odd.state()))
