"""The kernels' arithmetic: against float64, over threads, on every instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedclip_plugin import capabilities, ops
from fedclip_plugin.ops.kernels import ISAS, pure_python
from tests.algorithms.reference_loop import make_adapter, train_epoch
from tests.ops.inputs import ADAM, OPS, SCALE, epoch, make_client, whole_round

INNER = "OPS_TESTS_INNER"  # set where these tests run once more, on another ISA


def literal(client, batch, dtype):
    """The paper's loop, by autograd and torch.optim.Adam: losses and parameters."""
    lr, beta1, beta2, eps, decay = ADAM
    adapter = make_adapter(client.x.shape[1]).to(dtype)
    with torch.no_grad():
        for p, value in zip(adapter.parameters(), client.params):
            p.copy_(value)
    adam = torch.optim.Adam(
        adapter.parameters(), lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay
    )
    x, text = client.x.to(dtype), client.text.to(dtype)
    losses = train_epoch(adapter, adam, x, client.y, text, client.perm, batch, SCALE)
    return losses, [p.detach() for p in adapter.parameters()]


def distance(params, exact):
    return sum(float((p - q).square().sum()) for p, q in zip(params, exact)) ** 0.5


@pytest.mark.skipif(pure_python(), reason="the kernels sum in short stretches")
@pytest.mark.parametrize(
    ("dim", "batch", "classes"), [(512, 32, 7), (130, 33, 65), (64, 256, 5)]
)
def test_twenty_steps_lose_no_more_than_eager_float32(dim, batch, classes):
    client = make_client(dim, 20 * batch, classes)
    losses64, exact = literal(client, batch, torch.float64)
    _, eager = literal(client, batch, torch.float32)
    losses = epoch(OPS.local_epoch, client, batch)
    torch.testing.assert_close(losses.double(), torch.tensor(losses64).double(), **NEAR)
    ours = distance(client.params, exact)
    assert ours <= 1.5 * distance(eager, exact)


NEAR = {"rtol": 1e-4, "atol": 1e-4}


def test_gradients_lose_no_more_than_eager_float32():
    client = make_client(512, 64, 7)
    x, y, text = client.x, client.y, client.text

    def gradients(dtype):
        adapter = make_adapter(512).to(dtype)
        with torch.no_grad():
            for p, value in zip(adapter.parameters(), client.params):
                p.copy_(value)
        z = adapter(x.to(dtype)) * x.to(dtype)
        z = z / z.norm(dim=1, keepdim=True)
        logits, truth = SCALE * z @ text.to(dtype)[y].t(), torch.arange(64)
        loss = torch.nn.functional.cross_entropy
        (loss(logits, truth) + loss(logits.t(), truth)).div(2).backward()
        return [p.grad for p in adapter.parameters()]

    exact, eager = gradients(torch.float64), gradients(torch.float32)
    perm, zero = torch.arange(64), [torch.zeros_like(p) for p in client.params]
    ours = [torch.zeros_like(p) for p in client.params]  # beta1 = 0: the gradient
    still = (0.0, 0.0, 0.9, 1e-6, 0.0)
    OPS.local_epoch(x, y, text, perm, 64, client.params, ours, zero, 0, *still, SCALE)
    for a, b, c in zip(ours, eager, exact):
        assert float((a - c).norm()) <= 1.5 * float((b - c).norm())


@pytest.fixture
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def results():
    """Everything the operators compute, on the present number of threads."""
    torch.manual_seed(0)
    found = []
    for rows in (1, 40, 70, 300):
        client = make_client(72, rows, 5)
        z, h = OPS.adapter(client.x, *client.params)
        dz = torch.randn_like(z)
        found += [z, h]
        found += OPS.adapter_backward(dz, dz, client.x, h, z, client.params[2])
    for count in (1, 2, 3, 5):
        clients = [make_client(72, 40 + 13 * i, 5, i) for i in range(count)]
        for precision in ops.PRECISIONS:
            found += whole_round(OPS.local_round, clients, 16, precision)
            found += [t.clone() for c in clients for t in c.state()]
    xs = [torch.randn(70, 1001) for _ in range(11)]
    found.append(OPS.weighted_mean(xs, torch.rand(11)))
    qs = [(x * 30).to(torch.int8) for x in xs]
    found.append(
        OPS.weighted_mean_int8(qs, [torch.rand(70) for _ in qs], torch.rand(11))
    )
    return found


@pytest.mark.usefixtures("_threads")
@pytest.mark.skipif(
    pure_python(), reason="PyTorch's own products depend on the threads"
)
def test_any_number_of_threads_gives_the_same_bits():
    torch.set_num_threads(1)
    one = results()
    for threads in (2, 3, 4):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(one, results(), strict=True))


def others():
    found = capabilities()
    return [isa for isa in found["isa_available"] if isa != found["isa"]]


@pytest.mark.slow
@pytest.mark.skipif(pure_python() or INNER in os.environ, reason="already inside")
@pytest.mark.parametrize("isa", others() if INNER not in os.environ else [])
def test_every_instruction_set_passes_these_tests(isa):
    here = Path(__file__).resolve()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    env = {**os.environ, "FEDCLIP_ISA": isa, INNER: "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            *command,
            "-k",
            "not opcheck and not compile",
            *(str(here.parents[1] / "ops"), str(here)),
        ],
        capture_output=True,
        text=True,
        env=env,
        cwd=here.parents[2],
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@pytest.mark.skipif(pure_python(), reason="no instruction set is chosen")
def test_the_asked_instruction_set_is_in_use():
    found = capabilities()
    assert found["isa"] == os.environ.get("FEDCLIP_ISA", found["isa_available"][-1])
    assert found["isa"] in ISAS
    assert ops.SCHEMAS
