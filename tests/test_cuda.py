"""The CUDA kernels on a GPU: against float64, determinism, streams, devices, errors.

Runs where torch sees a GPU and the kernels are built; `make gpu-check` sees to both.
Memory is filled with NaN first, so what a kernel leaves unwritten shows.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fedclip_plugin import capabilities, ops

from .ops_inputs import (
    ADAM,
    SCALE,
    Client,
    epoch,
    make_client,
    make_params,
    whole_round,
)

OPS = torch.ops.fedclip
BUILT = capabilities()["cuda_compiled"]
on_gpu = pytest.mark.skipif(
    not (BUILT and torch.cuda.is_available()), reason="needs a GPU and the CUDA kernels"
)
several_gpus = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="needs two GPUs"
)


@pytest.mark.skipif(not BUILT, reason="the CUDA kernels are not built")
def test_every_operator_has_a_cuda_kernel_even_without_a_gpu():
    found = capabilities()["cuda_ops"]
    assert set(found) == set(ops.SCHEMAS)
    assert [name for name, there in found.items() if not there] == [
        "squared_distances"  # one pass of PyTorch's own does as well there
    ]


@pytest.fixture(autouse=True)
def _poisoned_memory():
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


@on_gpu
@pytest.mark.parametrize("dim", [1, 7, 33, 130, 512])
@pytest.mark.parametrize("rows", [0, 1, 5, 33, 300])
def test_adapter_and_its_backward(dim, rows):
    torch.manual_seed(dim * 1000 + rows)
    x, params = torch.randn(rows, dim).cuda(), [p.cuda() for p in make_params(dim)]
    z, h = OPS.adapter(x, *params)
    z64, h64 = ops.adapter_reference(*doubles(x, *params))
    close(z, z64)
    close(h, h64)
    dz, dh = torch.randn(rows, dim).cuda(), torch.randn(rows, dim).cuda()
    for extra in (None, dh):
        got = OPS.adapter_backward(dz, extra, x, h, z, params[2])
        extra64 = None if extra is None else extra.double()
        exact = dz.double(), extra64, x.double(), h64, z64, params[2].double()
        for a, b in zip(got, ops.adapter_backward_reference(*exact)):
            close(a, b, 5e-5)


@on_gpu
def test_adapter_takes_strided_and_unaligned_inputs():
    x, params = torch.randn(40, 33).cuda(), [p.cuda() for p in make_params(33)]
    want = OPS.adapter(x, *params)[0]
    shifted = torch.zeros(40 * 33 + 1).cuda()[1:].view(40, 33).copy_(x)
    odd = [p.t().contiguous().t() if p.dim() == 2 else p for p in params]
    close(OPS.adapter(shifted, *odd)[0], want.double())
    close(OPS.adapter(x.t().contiguous().t(), *params)[0], want.double())


@on_gpu
def test_adapter_under_autograd_autocast_and_compile():
    torch.manual_seed(0)
    x = torch.randn(9, 24).cuda()
    params = [p.cuda().requires_grad_() for p in make_params(24)]
    goal = torch.randn(9, 24).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        z, _ = ops.adapter(x, *params)
    assert z.dtype == torch.float32
    (z * goal).sum().backward()
    exact = [p.detach().double().requires_grad_() for p in params]
    z64, _ = ops.adapter(x.double(), *exact)
    (z64 * goal.double()).sum().backward()
    close(z.detach(), z64.detach())
    for p, q in zip(params, exact):
        close(p.grad, q.grad)
    compiled = torch.compile(ops.adapter, fullgraph=True, backend="aot_eager")
    close(compiled(x, *params)[0].detach(), z64.detach())


@on_gpu
def test_rows_of_zeros_give_zeros_and_a_nan_stays_in_its_row():
    x, params = torch.randn(40, 24).cuda(), [p.cuda() for p in make_params(24)]
    x[3], x[35] = 0, float("nan")
    z, _ = OPS.adapter(x, *params)
    assert (z[3] == 0).all()
    assert z[35].isnan().all()
    assert z[torch.arange(40).cuda() != 35].isfinite().all()


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
@pytest.mark.parametrize("bf16", [False, True])
def test_local_epoch(dim, rows, batch, classes, bf16):
    client = make_client(dim, rows, classes)
    client.step = 3
    ours, exact = move(client), move(client, "cpu", torch.float64)
    losses = epoch(OPS.local_epoch, ours, batch, bf16)
    want = epoch(ops.local_epoch_reference, exact, batch, bf16)
    assert losses.shape == want.shape
    loose = 500 if bf16 else 1  # a value at a rounding limit may fall on its other side
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
    epoch(ops.local_epoch_reference, exact, 32)
    for a, b in zip(ours.state(), exact.state()):
        assert float((a.cpu() - b).norm()) <= 2e-5 * float(b.norm())


@on_gpu
def test_twenty_steps_lose_no_more_than_eager_float32():
    client = make_client(512, 640, 7)
    exact = move(client, "cuda", torch.float64)
    eager, ours = move(client), move(client)
    epoch(ops.local_epoch_reference, exact, 32)
    epoch(ops.local_epoch_reference, eager, 32)
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
        want = epoch(ops.local_epoch_reference, exact, 8)
        torch.testing.assert_close(loss.double().cpu(), want, rtol=1e-5, atol=1e-5)
        for a, b in zip(mine.params, exact.params):
            assert float((a.cpu() - b).norm()) <= 2e-5 * float(b.norm())


def strided(tensor):
    wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 1)
    view = wide[..., 1::2]
    return view.copy_(tensor)


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


@on_gpu
@pytest.mark.parametrize("count", [1, 4, 8, 9, 100])
@pytest.mark.parametrize("shape", [(5,), (), (3, 7), (512, 512), (9001,), (0, 4)])
def test_weighted_mean(count, shape):
    torch.manual_seed(count)
    xs = [torch.randn(shape).cuda() for _ in range(count)]
    weights = torch.rand(count) + 0.1
    mean = OPS.weighted_mean(xs, weights)
    exact = ops.weighted_mean_reference([x.double() for x in xs], weights)
    torch.testing.assert_close(mean.double(), exact, rtol=0, atol=1e-6)
    assert torch.equal(mean, OPS.weighted_mean(xs, weights.cuda()))
    if len(shape) == 2:
        turned = [x.t().contiguous().t() for x in xs]
        assert torch.equal(mean, OPS.weighted_mean(turned, weights))
        shifted = [x.new_zeros(x.numel() + 1)[1:].view(shape).copy_(x) for x in xs]
        assert torch.equal(mean, OPS.weighted_mean(shifted, weights))


@on_gpu
@pytest.mark.parametrize("count", [1, 8, 9, 100])
@pytest.mark.parametrize("shape", [(5,), (3, 7), (512, 512), (2, 9001), (0, 4)])
def test_weighted_mean_int8(count, shape):
    torch.manual_seed(count)
    qs = [torch.randint(-128, 128, shape).char().cuda() for _ in range(count)]
    scales = [torch.rand(shape[0]).cuda() / 100 for _ in range(count)]
    weights = torch.rand(count, dtype=torch.float64) + 0.1
    mean = OPS.weighted_mean_int8(qs, scales, weights)
    want = ops.weighted_mean_int8_reference(
        [q.cpu() for q in qs], [s.cpu() for s in scales], weights
    )
    torch.testing.assert_close(mean.cpu(), want, rtol=0, atol=2e-6)


@on_gpu
def test_a_thousand_clients_lose_less_than_5e_7_of_the_rms():
    xs = [torch.randn(3000).cuda() for _ in range(1000)]
    weights = torch.rand(1000) + 0.5
    share = (weights.double() / weights.double().sum()).cuda()
    exact = sum(s * x.double() for s, x in zip(share, xs))
    error = (ops.weighted_mean(xs, weights).double() - exact).abs().max()
    assert float(error / exact.square().mean().sqrt()) < 5e-7


@on_gpu
def test_the_work_is_done_on_the_callers_stream():
    stream = torch.cuda.Stream()
    xs = [torch.zeros(2**22).cuda() for _ in range(4)]
    client, busy = move(make_client(64, 40, 4)), torch.randn(4096, 4096).cuda()
    twin = dataclasses.replace(client, params=[p.clone() for p in client.params])
    want = move(make_client(64, 40, 4))
    epoch(OPS.local_epoch, want, 8)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(50):
            busy = busy @ busy / 4096  # what follows must wait for
        for x in xs:
            x.fill_(2)
        mean = OPS.weighted_mean(xs, torch.ones(4))
        for p in twin.params:
            p.mul_(1)
        epoch(OPS.local_epoch, twin, 8)
    stream.synchronize()
    assert (mean == 2).all()
    assert all(torch.equal(a, b) for a, b in zip(twin.params, want.params))


@on_gpu
@several_gpus
def test_any_device_index():
    client = move(make_client(64, 40, 4), "cuda:1")
    want = move(make_client(64, 40, 4))
    epoch(OPS.local_epoch, client, 8)
    epoch(OPS.local_epoch, want, 8)
    assert torch.cuda.current_device() == 0
    for a, b in zip(client.state(), want.state()):
        assert torch.equal(a.cpu(), b.cpu())
    with pytest.raises(RuntimeError, match=r"^xs\[1\]: .*on another device"):
        OPS.weighted_mean([torch.ones(3).cuda(0), torch.ones(3).cuda(1)], torch.ones(2))


@on_gpu
@pytest.mark.parametrize("name", sorted(ops.SCHEMAS))
def test_opcheck(name):
    client = move(make_client(9, 12, 3))
    x, params = client.x, client.params
    z, h = ops.adapter_reference(x, *params)
    train = (client.params, client.exp_avg, client.exp_avg_sq)
    qs = [torch.randint(-9, 9, (4, 5)).char().cuda() for _ in range(3)]
    scales, weights = [torch.rand(4).cuda() for _ in range(3)], torch.rand(3).cuda()
    lists = ([x], [client.y], client.text, [client.perm], 5, *train, [0])
    single = (x, client.y, client.text, client.perm, 5, *train, 0)
    arguments = {
        "adapter": (x, *[p.clone().requires_grad_() for p in params]),
        "adapter_backward": (torch.randn_like(z), None, x, h, z, params[2]),
        "local_epoch": (*single, *ADAM, SCALE),
        "local_round": (*lists, *ADAM, SCALE, True),
        "weighted_mean": ([torch.randn(4, 5).cuda() for _ in range(3)], weights),
        "weighted_mean_int8": (qs, scales, weights),
    }
    torch.library.opcheck(getattr(OPS, name).default, arguments[name])


@on_gpu
@pytest.mark.parametrize(
    ("name", "at", "value", "message"),
    [
        ("y", 3, 3, r"^y\[0\]: expected values in 0\.\.2, got 3 at 3$"),
        ("y", 5, -1, r"^y\[0\]: expected values in 0\.\.2, got -1 at 5$"),
        ("perm", 11, 12, r"^perm\[0\]: expected values in 0\.\.11, got 12 at 11$"),
    ],
)
def test_a_wrong_index_is_named_and_nothing_is_trained(name, at, value, message):
    client = move(make_client(9, 12, 3))
    getattr(client, name)[at] = value
    before = [t.clone() for t in client.state()]
    with pytest.raises(RuntimeError, match=message):
        epoch(OPS.local_epoch, client, 4)
    assert all(torch.equal(a, b) for a, b in zip(before, client.state()))


@on_gpu
def test_the_wrong_argument_is_named(monkeypatch):
    client = move(make_client(9, 12, 3))
    client.params[2] = client.params[2][:, :8]
    with pytest.raises(RuntimeError, match=r"^params\[2\]: expected float32 \(9, 9\)"):
        epoch(OPS.local_epoch, client, 4)
    client = move(make_client(9, 12, 3))
    client.exp_avg[0] = client.exp_avg[0].cpu()
    with pytest.raises(RuntimeError, match=r"^exp_avg\[0\]: .*on another device"):
        epoch(OPS.local_epoch, client, 4)
    x, params = torch.randn(4, 9).cuda(), [p.cuda() for p in make_params(9)]
    params[0] = params[0].cpu()
    with pytest.raises(RuntimeError, match=r"^adapter: w1: .*on cuda:0, got float32"):
        OPS.adapter(x, *params)
    with pytest.raises(RuntimeError, match=r"^weights: expected float32 or"):
        OPS.weighted_mean([x], torch.ones(2))
    monkeypatch.setenv("FEDCLIP_CUDA_GROUP", "none")
    with pytest.raises(RuntimeError, match=r"^FEDCLIP_CUDA_GROUP=none: expected"):
        epoch(OPS.local_epoch, move(make_client(9, 12, 3)), 4)


@on_gpu
def test_other_types_run_the_reference():
    client = move(make_client(12, 20, 3), dtype=torch.float64)
    twin = move(make_client(12, 20, 3), dtype=torch.float64)
    losses = whole_round(OPS.local_round, [client], 8)[0]
    assert losses.dtype == torch.float64
    assert torch.equal(losses, epoch(ops.local_epoch_reference, twin, 8))
    assert all(torch.equal(a, b) for a, b in zip(client.state(), twin.state()))


@on_gpu
def test_capture_in_a_graph_is_refused():
    client = move(make_client(12, 20, 3))
    with (
        pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        epoch(OPS.local_epoch, client, 8)
