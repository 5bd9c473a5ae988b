"""The CUDA adapter and means on a GPU, against float64.

Runs where torch sees a GPU and the kernels are built; `make gpu-check` sees to both.
"""

from __future__ import annotations

import pytest
import torch

from fedclip_plugin import capabilities, ops
from tests.csrc.on_gpu import BUILT, OPS, close, doubles, on_gpu
from tests.ops.inputs import make_params


@pytest.mark.skipif(not BUILT, reason="the CUDA kernels are not built")
def test_every_operator_has_a_cuda_kernel_even_without_a_gpu():
    found = capabilities()["cuda_ops"]
    assert set(found) == set(ops.SCHEMAS)
    assert [name for name, there in found.items() if not there] == [
        "fresh_round"  # by local_round's
    ]


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
@pytest.mark.parametrize("count", [1, 100])
@pytest.mark.parametrize("shape", [(5,), (3, 7), (512, 512), (0, 4)])
def test_squared_distances_and_norms(count, shape):
    torch.manual_seed(count)
    xs = [torch.randn(shape).cuda() for _ in range(count)]
    found = OPS.squared_distances(xs, xs[-1])
    want = ops.squared_distances_reference(doubles(*xs), xs[-1].double())
    torch.testing.assert_close(found, want, rtol=1e-6, atol=0)
    assert torch.equal(found, OPS.squared_distances(xs, xs[-1]))
    qs = [torch.randint(-128, 128, shape).char().cuda() for _ in range(count)]
    scales = [torch.rand(shape[0]).cuda() / 100 for _ in range(count)]
    norms = ops.squared_norms_int8_reference(qs, scales)
    found = OPS.squared_norms_int8(qs, scales)
    torch.testing.assert_close(found, norms, rtol=1e-12, atol=0)


@on_gpu
def test_a_thousand_clients_lose_less_than_5e_7_of_the_rms():
    xs = [torch.randn(3000).cuda() for _ in range(1000)]
    weights = torch.rand(1000) + 0.5
    share = (weights.double() / weights.double().sum()).cuda()
    exact = sum(s * x.double() for s, x in zip(share, xs))
    error = (ops.weighted_mean(xs, weights).double() - exact).abs().max()
    assert float(error / exact.square().mean().sqrt()) < 5e-7
