"""The operators against their float64 references, in every shape that is special."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from fedclip_plugin import capabilities, ops
from fedclip_plugin.algorithms.adapter import AttentionAdapter
from fedclip_plugin.ops.kernels import pure_python
from tests.ops.inputs import (
    ADAM,
    OPS,
    REFERENCE,
    SCALE,
    epoch,
    make_client,
    make_params,
    same,
    whole_round,
)

HYPER = ops.Hyperparameters(4, *ADAM, SCALE)
DIMS = (1, 2, 7, 16, 33, 130)
ROWS = (0, 1, 2, 5, 16, 17, 33, 64, 130)


def close(got, want, tolerance=2e-5):
    """The largest difference is small, relative to the largest value."""
    assert got.shape == want.shape
    if got.numel():
        scale = max(0.1, float(want.abs().max()))
        assert float((got.double() - want.double()).abs().max()) <= tolerance * scale


def test_the_kernels_are_compiled_unless_pure_python_was_asked_for():
    found = capabilities()["ops"]
    assert set(found) == set(ops.SCHEMAS)
    left_out = {name for name, there in found.items() if not there}
    if pure_python():
        assert left_out == set(ops.SCHEMAS)
    elif capabilities()["isa"] == "generic" and "FEDCLIP_ISA" not in os.environ:
        assert left_out == set(capabilities()["slower"]) == PRODUCTS
    else:
        assert not left_out
        assert not capabilities()["slower"]


# Slower than PyTorch's without AVX2.
PRODUCTS = {"adapter", "adapter_backward", "fresh_round", "local_epoch", "local_round"}


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("rows", ROWS)
def test_adapter_and_its_backward(dim, rows):
    torch.manual_seed(dim * 1000 + rows)
    x, params = torch.randn(rows, dim), make_params(dim)
    doubles = [p.double() for p in params]
    z, h = OPS.adapter(x, *params)
    z64, h64 = ops.adapter_reference(x.double(), *doubles)
    close(z, z64)
    close(h, h64)
    dz, dh = torch.randn(rows, dim), torch.randn(rows, dim)
    for extra in (None, dh):
        got = OPS.adapter_backward(dz, extra, x, h, z, params[2])
        want = ops.adapter_backward_reference(
            dz.double(),
            None if extra is None else extra.double(),
            x.double(),
            h64,
            z64,
            doubles[2],
        )
        for a, b in zip(got, want):
            close(a, b, 5e-5)


def test_many_rows_are_cut_into_blocks():
    torch.manual_seed(0)
    x, params = torch.randn(1000, 40), make_params(40)
    doubles = [p.double() for p in params]
    z, h = OPS.adapter(x, *params)
    z64, h64 = ops.adapter_reference(x.double(), *doubles)
    close(z, z64)
    close(h, h64)
    dz = torch.randn_like(z)
    got = OPS.adapter_backward(dz, None, x, h, z, params[2])
    want = ops.adapter_backward_reference(
        dz.double(), None, x.double(), h64, z64, doubles[2]
    )
    for a, b in zip(got, want):
        close(a, b)


def test_adapter_gradients_are_those_of_autograd():
    torch.manual_seed(0)
    dim = 12
    x = torch.randn(9, dim, dtype=torch.float64)
    adapter = nn.Sequential(
        nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim), nn.Softmax(dim=1)
    ).double()
    z = adapter(x) * x
    z = z / z.norm(dim=1, keepdim=True)
    goal = torch.randn(9, dim, dtype=torch.float64)
    (z * goal).sum().backward()
    params = [p.detach().float().requires_grad_() for p in adapter.parameters()]
    ours, h = ops.adapter(x.float(), *params)
    close(ours.detach(), z.detach())
    (ours * goal.float()).sum().backward()
    for p, q in zip(params, adapter.parameters()):
        close(p.grad, q.grad)
    grads = torch.autograd.grad(ops.adapter(x.float(), *params)[1].sum(), params[:2])
    assert all(g.abs().sum() > 0 for g in grads)  # h is differentiable too
    assert h.shape == x.shape


def test_gradcheck_in_float64():
    torch.manual_seed(0)
    x = torch.randn(3, 5, dtype=torch.float64)
    params = [p.double().requires_grad_() for p in make_params(5)]
    assert torch.autograd.gradcheck(lambda *p: ops.adapter(x, *p), params)


def test_rows_of_zeros_give_zeros_and_a_nan_stays_in_its_row():
    torch.manual_seed(0)
    x, params = torch.randn(40, 24), make_params(24)
    x[3], x[35] = 0, float("nan")
    z, _ = OPS.adapter(x, *params)
    assert torch.equal(z[3], torch.zeros(24))
    assert z[35].isnan().all()
    assert z[torch.arange(40) != 35].isfinite().all()


def test_extreme_scores_do_not_overflow():
    params = make_params(20)
    params[2] *= 1e4
    z, _ = OPS.adapter(torch.randn(33, 20) * 50, *params)
    assert z.isfinite().all()
    norm = z.norm(dim=1)
    close(norm, torch.ones_like(norm))


@pytest.mark.parametrize(
    ("dim", "rows", "batch", "classes"),
    [
        (7, 10, 3, 2),  # a trailing batch of 1 is skipped
        (33, 70, 32, 5),  # a tail of 6
        (130, 100, 33, 3),  # batches of more than one chunk
        (64, 200, 64, 50),
        (64, 65, 32, 2000),  # far more classes than rows
        (64, 40, 32, 1),  # one class
        (16, 100, 31, 7),
        (96, 70, 200, 4),  # one batch, larger than the data
        (512, 64, 32, 7),
        (600, 24, 12, 5),  # wider than what Adam takes at once
        (40, 300, 256, 300),
        (33, 4, 2, 3),
    ],
)
def test_local_epoch(dim, rows, batch, classes):
    client = make_client(dim, rows, classes)
    client.step = 3
    ours, exact = client.to(torch.float32), client.to(torch.float64)
    losses = epoch(OPS.local_epoch, ours, batch)
    want = epoch(REFERENCE.local_epoch, exact, batch)
    assert losses.shape == want.shape == (rows // batch + (rows % batch > 1),)
    torch.testing.assert_close(losses.double(), want, rtol=1e-5, atol=1e-5)
    for a, b, start in zip(ours.state(), exact.state(), client.state()):
        assert not torch.equal(a, start)
        assert float((a - b).norm()) <= 2e-5 * float(b.norm())


@pytest.mark.parametrize(("rows", "batch"), [(0, 8), (1, 8), (7, 1)])
def test_nothing_to_train_on_changes_nothing(rows, batch):
    client = make_client(16, rows, 3)
    ours = client.to(torch.float32)
    assert epoch(OPS.local_epoch, ours, batch).shape == (0,)
    assert all(torch.equal(a, b) for a, b in zip(ours.state(), client.state()))


def test_perm_may_choose_and_repeat_rows():
    client = make_client(24, 30, 4)
    client.perm = torch.tensor([5, 5, 29, 0, 7, 5, 1])
    ours, exact = client.to(torch.float32), client.to(torch.float64)
    epoch(OPS.local_epoch, ours, 4)
    epoch(REFERENCE.local_epoch, exact, 4)
    for a, b in zip(ours.params, exact.params):
        close(a, b)


def test_zero_rows_and_empty_clients_in_a_round():
    clients = [
        make_client(24, rows, 4, seed) for seed, rows in enumerate((0, 9, 1, 33))
    ]
    for c in clients:
        c.text = clients[0].text
        c.x[:2] = 0
    ours = [c.to(torch.float32) for c in clients]
    losses = whole_round(OPS.local_round, ours, 8)
    assert [len(v) for v in losses] == [0, 1, 0, 4]
    for c, mine, loss in zip(clients, ours, losses):
        alone = c.to(torch.float32)
        assert torch.equal(epoch(OPS.local_epoch, alone, 8), loss)
        assert all(torch.equal(a, b) for a, b in zip(alone.state(), mine.state()))
        assert all(t.isfinite().all() for t in mine.state())


def test_a_round_of_no_clients():
    assert ops.local_round([], torch.randn(3, 8), HYPER) == []


def test_the_wrapper_of_a_round_splits_the_losses():
    clients = [make_client(8, rows, 3) for rows in (9, 0, 4)]
    twins = [c.to(torch.float32) for c in clients]
    text = clients[0].text
    losses = ops.local_round([c.local() for c in clients], text, HYPER)
    assert [v.shape for v in losses] == [(2,), (0,), (1,)]
    for client, twin, loss in zip(clients, twins, losses):
        twin.text = text
        assert torch.equal(epoch(OPS.local_epoch, twin, 4), loss)
        assert all(torch.equal(a, b) for a, b in zip(client.state(), twin.state()))


@pytest.mark.parametrize("precision", ops.PRECISIONS)
def test_the_references_of_a_round_take_what_the_operators_take(precision):
    hyper = HYPER._replace(precision=precision)
    clients = [make_client(8, rows, 3).to(torch.float64) for rows in (9, 0, 4)]
    twins = [c.to(torch.float64) for c in clients]
    text = clients[0].text
    losses = ops.local_round([c.local() for c in clients], text, hyper)
    want = ops.local_round_reference([c.local() for c in twins], text, hyper)
    assert all(torch.equal(a, b) for a, b in zip(losses, want, strict=True))
    for client, twin in zip(clients, twins):
        assert all(torch.equal(a, b) for a, b in zip(client.state(), twin.state()))


def strided(tensor):
    """The same values at an unaligned address with gaps between the elements."""
    wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1, dtype=tensor.dtype)
    view = wide[..., 1::2]
    view.copy_(tensor)
    assert tensor.dim() == 0 or not view.is_contiguous() or tensor.numel() < 2
    return view


def test_non_contiguous_and_unaligned_inputs():
    client = make_client(33, 50, 4)
    plain, odd = client.to(torch.float32), client.to(torch.float32)
    for name in ("x", "y", "text", "perm"):
        setattr(odd, name, strided(getattr(odd, name)))
    for name in ("params", "exp_avg", "exp_avg_sq"):
        setattr(odd, name, [strided(t) for t in getattr(odd, name)])
    assert same(epoch(OPS.local_epoch, plain, 16), epoch(OPS.local_epoch, odd, 16))
    assert all(same(a, b) for a, b in zip(plain.state(), odd.state()))
    got = OPS.adapter(odd.x.t().contiguous().t(), *odd.params)
    want = OPS.adapter(plain.x, *plain.params)
    assert all(same(a, b) for a, b in zip(got, want))
    shifted = torch.zeros(50 * 33 + 1)[1:].view(50, 33).copy_(plain.x)
    assert same(OPS.adapter(shifted, *plain.params)[0], want[0])


def test_an_expanded_row_as_gradient():
    x, params = torch.randn(6, 20), make_params(20)
    z, h = OPS.adapter(x, *params)
    dz = torch.randn(20)
    wide = OPS.adapter_backward(dz.expand(6, 20), None, x, h, z, params[2])
    full = OPS.adapter_backward(dz.repeat(6, 1), None, x, h, z, params[2])
    assert all(same(a, b) for a, b in zip(wide, full))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_run_the_reference(dtype):
    client = make_client(12, 20, 3).to(dtype)
    twin = client.to(dtype)
    got = OPS.adapter(client.x, *client.params)
    want = ops.adapter_reference(client.x, *client.params)
    assert all(torch.equal(a, b) for a, b in zip(got, want))
    losses = whole_round(OPS.local_round, [client], 8)[0]
    assert losses.dtype == dtype
    assert torch.equal(losses, epoch(REFERENCE.local_epoch, twin, 8))
    assert all(torch.equal(a, b) for a, b in zip(client.state(), twin.state()))
    xs, weights = [client.x, client.x * 2], torch.tensor([1.0, 3.0])
    mean = OPS.weighted_mean(xs, weights)
    assert torch.equal(mean, ops.weighted_mean_reference(xs, weights))


@pytest.mark.skipif(pure_python(), reason="the references run eagerly under compile")
def test_torch_compile_of_a_module_that_uses_the_adapter():
    torch.manual_seed(0)
    module = AttentionAdapter(16)
    x = torch.randn(6, 16)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    close(compiled(x).detach(), module(x).detach())
    goal = torch.randn(6, 16)
    (compiled(x) * goal).sum().backward()
    got = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    (module(x) * goal).sum().backward()
    for a, p in zip(got, module.parameters()):
        close(a, p.grad)
