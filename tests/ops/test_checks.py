"""Bad input raises a message that names the argument; opcheck on every operator."""

from __future__ import annotations

import pytest
import torch

from fedclip_plugin import ops
from fedclip_plugin.ops import checks
from fedclip_plugin.ops.kernels import pure_python
from tests.ops.inputs import (
    ADAM,
    OPS,
    REFERENCE,
    SCALE,
    checked_epoch,
    epoch,
    make_client,
    make_params,
)

compiled = pytest.mark.skipif(pure_python(), reason="messages of the compiled kernels")


def samples():
    """Arguments of every operator, as `opcheck` wants them."""
    client = make_client(9, 12, 3)
    x, params = client.x, client.params
    z, h = ops.adapter_reference(x, *params)
    train = (client.params, client.exp_avg, client.exp_avg_sq)
    qs = [torch.randint(-9, 9, (4, 5), dtype=torch.int8) for _ in range(3)]
    scales, weights = [torch.rand(4) for _ in range(3)], torch.rand(3)
    one = ([x], [client.y], client.text, [client.perm], 5, *train, [0])
    return {
        "adapter": (x, *[p.clone().requires_grad_() for p in params]),
        "adapter_backward": (torch.randn_like(z), None, x, h, z, params[2]),
        "fresh_round": (
            *([x], [client.y], client.text, [client.perm[None]], 5),
            *(client.params, torch.empty(1, 180), *ADAM, SCALE),
        ),
        "local_epoch": (
            x,
            client.y,
            client.text,
            client.perm,
            5,
            *train,
            0,
            *ADAM,
            SCALE,
        ),
        "local_round": (*one, *ADAM, SCALE),
        "squared_norms_int8": (qs, scales),
        "weighted_mean": ([torch.randn(4, 5) for _ in range(3)], weights),
        "weighted_mean_int8": (qs, scales, weights),
        "squared_distances": ([torch.randn(4, 5) for _ in range(3)], torch.randn(4, 5)),
    }


def test_every_operator_has_a_sample():
    assert set(samples()) == set(ops.SCHEMAS)


@pytest.mark.parametrize("name", sorted(ops.SCHEMAS))
def test_opcheck(name):
    torch.library.opcheck(getattr(OPS, name).default, samples()[name])


@pytest.mark.parametrize("name", ["local_epoch", "local_round"])
def test_opcheck_in_bfloat16(name):
    torch.library.opcheck(getattr(OPS, name).default, (*samples()[name], "bf16"))


def test_an_unknown_precision_is_named():
    client = make_client(9, 12, 3)
    with pytest.raises(ValueError, match=r"^precision: expected one of fp32, bf16"):
        checked_epoch(client, 4, "fp16")
    with pytest.raises(ValueError, match=r"^precision: .*got 'tf32'"):
        ops.local_round(
            [], client.text, ops.Hyperparameters(4, *ADAM, SCALE, precision="tf32")
        )
    if not pure_python():
        with pytest.raises(RuntimeError, match=r"^precision: .*bf16, got tf32$"):
            epoch(OPS.local_epoch, client, 4, "tf32")


def spoil_x(c):
    c.x = torch.randn(12)


def spoil_text(c):
    c.text = torch.randn(3, 8)


def spoil_y_length(c):
    c.y = c.y[:5]


def spoil_y_value(c):
    c.y[3] = 3


def spoil_y_negative(c):
    c.y[3] = -1


def spoil_y_type(c):
    c.y = c.y.int()


def spoil_perm(c):
    c.perm[11] = 12


def spoil_perm_shape(c):
    c.perm = c.perm.view(3, 4)


def spoil_params(c):
    c.params[2] = torch.randn(9, 8)


def spoil_params_count(c):
    c.params = c.params[:3]


def spoil_params_type(c):
    c.params[1] = c.params[1].double()


def spoil_exp_avg(c):
    c.exp_avg[3] = torch.zeros(8)


def spoil_exp_avg_sq(c):
    c.exp_avg_sq[0] = torch.zeros(9)


SPOILS = {
    "x": [spoil_x],
    "text": [spoil_text],
    "y": [spoil_y_length, spoil_y_value, spoil_y_negative, spoil_y_type],
    "perm": [spoil_perm, spoil_perm_shape],
    "params": [spoil_params, spoil_params_count, spoil_params_type],
    "exp_avg": [spoil_exp_avg],
    "exp_avg_sq": [spoil_exp_avg_sq],
}
CASES = [(name, spoil) for name, spoils in SPOILS.items() for spoil in spoils]


@compiled
@pytest.mark.parametrize(("name", "spoil"), CASES, ids=[s.__name__ for _, s in CASES])
def test_training_names_the_wrong_argument(name, spoil):
    client = make_client(9, 12, 3)
    spoil(client)
    before = [t.clone() for t in client.state()]
    with pytest.raises(RuntimeError, match=rf"^{name}\b.*expected .*got "):
        epoch(OPS.local_epoch, client, 4)
    with pytest.raises(ValueError, match=rf"^(client \d+: )?{name}|w[12]|b[12]|text"):
        checked_epoch(client, 4)
    assert all(torch.equal(a, b) for a, b in zip(before, client.state()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_given_twice_is_named(dtype):
    clients = [make_client(9, 12, 3, seed).to(dtype) for seed in range(2)]
    text, hyper = clients[0].text, ops.Hyperparameters(4, *ADAM, SCALE)
    clients[1].exp_avg[2] = clients[0].params[0]
    before = [t.clone() for c in clients for t in c.state()]
    message = r"^client 1: exp_avg\[2\]: .* got client 0: params\[0\]'s$"
    with pytest.raises(ValueError, match=message):
        ops.local_round([c.local() for c in clients], text, hyper)
    after = [t for c in clients for t in c.state()]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    clients[0].params[2] = clients[0].params[0]
    with pytest.raises(ValueError, match=r"^client 0: params\[2\]: expected its own"):
        checked_epoch(clients[0], 4)
    if dtype is torch.float32 and not pure_python():
        with pytest.raises(RuntimeError, match=r"^params\[\d\]: expected its own mem"):
            epoch(OPS.local_epoch, clients[0], 4)


def test_states_without_elements_may_share_their_address():
    checks.check_distinct([torch.empty(0) for _ in range(12)])
    client = make_client(8, 9, 3)
    client.x, client.text = client.x[:, :0], client.text[:, :0]
    client.params = [torch.empty(0, 0), torch.empty(0)] * 2
    client.exp_avg = client.exp_avg_sq = client.params
    for op in (OPS.local_epoch, REFERENCE.local_epoch):
        assert epoch(op, client, 4).shape == (2,)


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


def test_indices_are_left_to_the_cuda_kernel_only_where_it_answers(monkeypatch):
    monkeypatch.setattr(checks, "serves", lambda device: True)
    wrong, x = torch.tensor([3]).as_subclass(OnGpu), torch.randn(1, 4)
    checks.check_index("y", wrong, x, 3)
    with pytest.raises(ValueError, match=r"^y: expected values in 0\.\.2, got 3"):
        checks.check_index("y", wrong, x.double(), 3)  # the reference answers this
    monkeypatch.setattr(checks, "serves", lambda device: False)  # an older GPU
    with pytest.raises(ValueError, match=r"^y: expected values in 0\.\.2, got 3"):
        checks.check_index("y", wrong, x, 3)


@compiled
def test_training_checks_sizes_and_steps():
    client = make_client(9, 12, 3)
    with pytest.raises(RuntimeError, match=r"batch_size: expected at least 1, got 0"):
        epoch(OPS.local_epoch, client, 0)
    client.step = -1
    with pytest.raises(RuntimeError, match=r"step\[0\]: expected at least 0, got -1"):
        epoch(OPS.local_epoch, client, 4)


@compiled
@pytest.mark.parametrize("which", range(5))
def test_adapter_names_the_wrong_argument(which):
    arguments = [torch.randn(4, 9), *make_params(9)]
    name = ("x", "w1", "b1", "w2", "b2")[which]
    arguments[which] = torch.randn(8)
    with pytest.raises(RuntimeError, match=rf"adapter: {name}: expected .*got float32"):
        OPS.adapter(*arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("which", range(5))
def test_adapter_without_gradients_names_the_wrong_argument(which, dtype):
    odd, integers = torch.randn(8, dtype=dtype), torch.zeros(9, 9, dtype=torch.int64)
    for wrong in (odd, integers, torch.randn(9, 9, dtype=dtype, device="meta")):
        arguments = [t.to(dtype) for t in (torch.randn(4, 9), *make_params(9))]
        arguments[which] = wrong
        # an x of another dtype leaves the parameters wrong
        name = ("[xw]1?", "w1", "b1", "w2", "b2")[which]
        with torch.no_grad(), pytest.raises(ValueError, match=f"^{name}: expected"):
            ops.adapter(*arguments)


@compiled
@pytest.mark.parametrize("name", ["dz", "dh", "x", "h", "z", "w2"])
def test_adapter_backward_names_the_wrong_argument(name):
    arguments = dict.fromkeys(("dz", "dh", "x", "h", "z"), torch.randn(4, 9))
    arguments["w2"] = torch.randn(9, 9)
    arguments[name] = torch.randn(4)
    with pytest.raises(RuntimeError, match=rf"adapter_backward: {name}: expected"):
        OPS.adapter_backward(*arguments.values())


@compiled
@pytest.mark.parametrize(
    ("name", "xs", "weights"),
    [
        ("xs: expected at least one", [], torch.ones(0)),
        (r"xs\[1\]", [torch.ones(3), torch.ones(4)], torch.ones(2)),
        (r"xs\[1\]", [torch.ones(3), torch.ones(3).double()], torch.ones(2)),
        ("weights", [torch.ones(3)], torch.ones(2)),
        ("weights", [torch.ones(3)], torch.ones(1, dtype=torch.int64)),
    ],
)
def test_weighted_mean_names_the_wrong_argument(name, xs, weights):
    with pytest.raises(RuntimeError, match=f"^{name}"):
        OPS.weighted_mean(xs, weights)


@compiled
def test_weighted_mean_int8_names_the_wrong_argument():
    q, scale, one = torch.ones(3, 4, dtype=torch.int8), torch.ones(3), torch.ones(1)
    with pytest.raises(RuntimeError, match=r"^qs\[0\]: expected the type"):
        OPS.weighted_mean_int8([q.int()], [scale], one)
    with pytest.raises(RuntimeError, match=r"^scales\[0\]: expected float32 \(1,\)"):
        OPS.weighted_mean_int8([q[0, 0]], [scale], one)
    with pytest.raises(RuntimeError, match=r"^scales\[0\]: expected float32 \(3,\)"):
        OPS.weighted_mean_int8([q], [torch.ones(2)], one)
    with pytest.raises(RuntimeError, match=r"^scales: expected 1 entries, got 2"):
        OPS.weighted_mean_int8([q], [scale, scale], one)
    with pytest.raises(RuntimeError, match=r"^scales\[1\]: expected float32 \(1,\)"):
        OPS.weighted_mean_int8([q, q], [one, scale], torch.ones(2))
