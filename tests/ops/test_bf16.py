"""Local training on bfloat16 products: the rounding, and what it must not touch."""

from __future__ import annotations

import pytest
import torch

from tests.ops.inputs import (
    OPS,
    REFERENCE,
    SCALE,
    checked_epoch,
    epoch,
    make_client,
    whole_round,
)

STILL = (0.0, 0.0, 0.9, 1e-6, 0.0)  # lr 0, beta1 0: exp_avg becomes the gradient
CASES = [  # dim, rows, classes; the odd ones leave pairs half filled
    (2, 40, 3),
    (7, 10, 2),
    (33, 70, 5),
    (130, 33, 3),
    (64, 65, 2000),
    (40, 300, 300),
    (512, 32, 7),
    (512, 64, 7),
]


def gradients(op, client, precision):
    """Of the loss of one batch that holds all rows."""
    grads = [torch.zeros_like(p) for p in client.params]
    square = [torch.zeros_like(p) for p in client.params]
    rows = len(client.x)
    data = (client.x, client.y, client.text, torch.arange(rows), rows)
    op(*data, client.params, grads, square, 0, *STILL, SCALE, precision)
    return grads


def errors(got, exact):
    return [float((a - b).norm() / b.norm()) for a, b in zip(got, exact)]


@pytest.mark.parametrize(("dim", "rows", "classes"), CASES)
def test_gradients_are_those_of_rounded_factors(dim, rows, classes):
    """Against float64 with the same rounding; without it they are far off.

    A factor at the midpoint of two bfloat16 numbers may fall to the other side.
    """
    client = make_client(dim, rows, classes)
    double = client.to(torch.float64)
    exact = gradients(REFERENCE.local_epoch, double, "bf16")
    ours = errors(gradients(OPS.local_epoch, client, "bf16"), exact)
    plain = errors(gradients(OPS.local_epoch, client, "fp32"), exact)
    assert max(ours) < 4e-4
    assert all(a < b / 4 for a, b in zip(ours, plain))


def test_a_factor_halfway_goes_to_the_even_neighbour():
    client = make_client(96, 64, 4)
    client.x = 1 + (2 * torch.randint(0, 64, client.x.shape) + 1) / 256
    exact = gradients(REFERENCE.local_epoch, client.to(torch.float64), "bf16")
    assert max(errors(gradients(OPS.local_epoch, client, "bf16"), exact)) < 4e-4


@pytest.mark.parametrize(
    ("dim", "rows", "batch", "classes"),
    [
        (1, 5, 2, 2),
        (7, 10, 3, 2),
        (130, 100, 33, 3),
        (96, 70, 200, 4),
        (512, 96, 32, 7),
    ],
)
def test_an_epoch_follows_the_reference(dim, rows, batch, classes):
    client = make_client(dim, rows, classes)
    client.step = 3
    ours, exact = client.to(torch.float32), client.to(torch.float64)
    losses = epoch(OPS.local_epoch, ours, batch, "bf16")
    want = epoch(REFERENCE.local_epoch, exact, batch, "bf16")
    torch.testing.assert_close(losses.double(), want, rtol=1e-4, atol=1e-4)
    for a, b, start in zip(ours.params, exact.params, client.params):
        assert float((a - b).norm()) <= 0.01 * float((b - start).norm())
        assert not torch.equal(a, a.bfloat16().float())  # the master copy is float32


def test_the_wrappers_take_the_precision():
    raw, fp32 = make_client(24, 40, 4), make_client(24, 40, 4)
    wrapped, default = raw.to(torch.float32), raw.to(torch.float32)
    assert torch.equal(
        checked_epoch(wrapped, 16, "bf16"),
        epoch(OPS.local_epoch, raw, 16, "bf16"),
    )
    assert all(torch.equal(a, b) for a, b in zip(wrapped.state(), raw.state()))
    checked_epoch(default, 16)
    checked_epoch(fp32, 16, "fp32")
    assert all(torch.equal(a, b) for a, b in zip(default.state(), fp32.state()))
    moved = (fp32.params[0] - make_client(24, 40, 4).params[0]).norm()
    assert float((fp32.params[0] - raw.params[0]).norm()) > 1e-4 * float(moved)


def test_a_round_trains_each_client_alone():
    clients = [
        make_client(24, rows, 4, seed) for seed, rows in enumerate((0, 9, 1, 33))
    ]
    for c in clients:
        c.text = clients[0].text
    ours = [c.to(torch.float32) for c in clients]
    losses = whole_round(OPS.local_round, ours, 8, "bf16")
    for c, mine, loss in zip(clients, ours, losses):
        assert torch.equal(epoch(OPS.local_epoch, c, 8, "bf16"), loss)
        assert all(torch.equal(a, b) for a, b in zip(c.state(), mine.state()))


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, -1, 0x7F800000])
def test_nan_and_infinity_are_not_rounded_away(bits):
    client = make_client(24, 32, 4)
    client.x[3, 5] = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    losses = epoch(OPS.local_epoch, client, 32, "bf16")
    assert losses.isnan().all()
    assert client.params[0].isnan().all()


def test_numbers_near_zero_do_no_harm():
    client = make_client(24, 32, 4)
    client.x[:, ::2] = 1e-40  # subnormal: the processor may take it for zero
    exact = client.to(torch.float64)
    losses = epoch(OPS.local_epoch, client, 16, "bf16")
    want = epoch(REFERENCE.local_epoch, exact, 16, "bf16")
    torch.testing.assert_close(losses.double(), want, rtol=1e-4, atol=1e-4)
