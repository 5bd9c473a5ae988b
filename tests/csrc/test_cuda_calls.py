"""Calls of the CUDA operators: streams, devices, opcheck, errors.

Runs where torch sees a GPU and the kernels are built; `make gpu-check` sees to both.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fedclip_plugin import ops
from tests.csrc.on_gpu import OPS, move, on_gpu, several_gpus
from tests.ops.inputs import (
    ADAM,
    REFERENCE,
    SCALE,
    epoch,
    make_client,
    make_params,
    whole_round,
)


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
        "fresh_round": (
            *([x], [client.y], client.text, [client.perm[None]], 5),
            *(client.params, torch.empty(1, 180).cuda(), *ADAM, SCALE),
        ),
        "local_epoch": (*single, *ADAM, SCALE),
        "local_round": (*lists, *ADAM, SCALE, "bf16"),
        "squared_distances": (
            [torch.randn(4, 5).cuda() for _ in range(3)],
            torch.randn(4, 5).cuda(),
        ),
        "squared_norms_int8": (qs, scales),
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
    assert torch.equal(losses, epoch(REFERENCE.local_epoch, twin, 8))
    assert all(torch.equal(a, b) for a, b in zip(client.state(), twin.state()))


@on_gpu
def test_capture_in_a_graph_is_refused():
    client = move(make_client(12, 20, 3))
    with (
        pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        epoch(OPS.local_epoch, client, 8)
