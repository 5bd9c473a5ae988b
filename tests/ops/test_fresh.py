"""`fresh_round` gives the bits of `local_round` on copies of the start."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from fedclip_plugin import ops
from fedclip_plugin.ops.kernels import pure_python
from tests.ops.inputs import ADAM, SCALE, Client, make_client, make_params

compiled = pytest.mark.skipif(pure_python(), reason="messages of the compiled kernels")


def make_round(dim: int, rows: tuple[int, ...], epochs: int) -> list[Client]:
    """Clients of one start and one text; their `perm` is (epochs, rows)."""
    clients = [make_client(dim, n, 5, i) for i, n in enumerate(rows)]
    first = clients[0]
    return [
        dataclasses.replace(
            c,
            text=first.text,
            params=[p.clone() for p in first.params],
            perm=torch.stack([torch.randperm(len(c.x)) for _ in range(epochs)]),
        )
        for c in clients
    ]


def one_by_one(
    clients: list[Client], hyper: ops.Hyperparameters
) -> tuple[list[list[torch.Tensor]], list[torch.Tensor]]:
    """A call of `local_epoch` for each client and epoch."""
    losses = []
    for c in clients:
        past: list[torch.Tensor] = []
        for order in c.perm:
            own = dataclasses.replace(c, perm=order, step=sum(map(len, past)))
            past.append(ops.local_epoch(own.local(), c.text, hyper))
        losses.append(torch.cat(past))
    return [c.params for c in clients], losses


@pytest.mark.parametrize("precision", ops.PRECISIONS)
@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize(
    ("dim", "rows", "batch"),
    [
        (33, (9, 0, 1, 70, 3), 8),  # a trailing batch of 1, and clients without a step
        (64, (12, 12, 12), 32),  # a step an epoch
        (600, (5, 40), 32),  # wider than a run of Adam
    ],
)
def test_the_bits_are_those_of_training_from_copies(
    dim: int, rows: tuple[int, ...], batch: int, epochs: int, precision: str
) -> None:
    clients = make_round(dim, rows, epochs)
    start = [p.clone() for p in clients[0].params]
    before = [p.clone() for p in start]
    hyper = ops.Hyperparameters(batch, *ADAM, SCALE, precision)
    batches = [ops.FreshClient(c.x, c.y, c.perm) for c in clients]
    params, losses = ops.fresh_round(batches, clients[0].text, start, hyper)
    want, want_losses = one_by_one(clients, hyper)
    assert all(torch.equal(a, b) for a, b in zip(start, before))
    assert all(torch.equal(a, b) for a, b in zip(losses, want_losses, strict=True))
    for mine, theirs in zip(params, want, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert not torch.equal(params[-1][0], start[0])


def test_any_number_of_threads_gives_the_same_bits_also_after_a_longer_client() -> None:
    clients = make_round(72, (40, 12, 12, 90, 12), 1)
    hyper = ops.Hyperparameters(16, *ADAM, SCALE)
    batches = [ops.FreshClient(c.x, c.y, c.perm) for c in clients]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4, 8):
            torch.set_num_threads(threads)
            start = clients[0].params
            params, losses = ops.fresh_round(batches, clients[0].text, start, hyper)
            found.append([*losses, *(t for own in params for t in own)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:] if not pure_python() else []:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_what_other_calls_left_in_the_buffers_is_not_seen() -> None:
    hyper = ops.Hyperparameters(16, *ADAM, SCALE)

    def train(dim: int, rows: tuple[int, ...], factor: float) -> list[torch.Tensor]:
        clients = make_round(dim, rows, 1)
        batches = [ops.FreshClient(c.x * factor, c.y, c.perm) for c in clients]
        first = clients[0]
        params, losses = ops.fresh_round(batches, first.text, first.params, hyper)
        return [*losses, *(t for own in params for t in own)]

    torch.manual_seed(0)
    before = train(40, (9, 21), 1.0)
    assert train(136, (48, 40), math.nan)[0].isnan().all()
    torch.manual_seed(0)
    after = train(40, (9, 21), 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_other_types_run_the_reference() -> None:
    (client,) = make_round(12, (20,), 2)
    twin = client.to(torch.float64)
    hyper = ops.Hyperparameters(8, *ADAM, SCALE)
    batches = [ops.FreshClient(twin.x, twin.y, twin.perm)]
    ((mine,), (loss,)) = ops.fresh_round(batches, twin.text, twin.params, hyper)
    want, want_losses = one_by_one([twin], hyper)
    assert loss.dtype == torch.float64
    assert torch.equal(loss, want_losses[0])
    assert all(torch.equal(a, b) for a, b in zip(mine, want[0], strict=True))


def test_nobody_trains_nobody() -> None:
    hyper = ops.Hyperparameters(8, *ADAM, SCALE)
    assert ops.fresh_round([], torch.randn(3, 8), make_params(8), hyper) == ([], [])


def test_the_wrong_argument_is_named() -> None:
    (client,) = make_round(9, (12,), 1)
    hyper = ops.Hyperparameters(4, *ADAM, SCALE)
    text, start = client.text, client.params

    def train(**other: torch.Tensor) -> object:
        own = ops.FreshClient(client.x, client.y, client.perm)._replace(**other)
        return ops.fresh_round([own], text, start, hyper)

    with pytest.raises(ValueError, match=r"^perm: expected \(epochs, rows\), got"):
        train(perm=client.perm[0])
    with pytest.raises(ValueError, match=r"^perm: expected values in 0\.\.11, got 0"):
        train(perm=client.perm + 1 - (client.perm == 0).long())
    with pytest.raises(ValueError, match=r"^y: expected shape \(12,\), got \(11,\)"):
        train(y=client.y[1:])
    start = [*start[:3], start[3][1:]]
    with pytest.raises(ValueError, match=r"^start: b2: expected shape \(9,\)"):
        train()


@compiled
def test_the_kernel_names_it_too() -> None:
    (client,) = make_round(9, (12,), 1)
    data = ([client.x], [client.y], client.text, [client.perm])
    fresh, params = torch.ops.fedclip.fresh_round, torch.empty(1, 180)
    with pytest.raises(RuntimeError, match=r"^start: expected 4 entries, got 3$"):
        fresh(*data, 4, client.params[:3], params, *ADAM, SCALE)
    odd = [client.params[0][:, :8], *client.params[1:]]
    with pytest.raises(RuntimeError, match=r"^start\[0\]: expected float32 \(9, 9\)"):
        fresh(*data, 4, odd, params, *ADAM, SCALE)
    with pytest.raises(RuntimeError, match=r"^params: expected float32 \(1, 180\)"):
        fresh(*data, 4, client.params, params[0], *ADAM, SCALE)
    data[3][0] = client.perm[0]
    with pytest.raises(RuntimeError, match=r"^perm\[0\]: expected int64 \(any, any\)"):
        fresh(*data, 4, client.params, params, *ADAM, SCALE)


@compiled
def test_results_go_where_they_are_wanted_in_any_order_of_memory() -> None:
    clients = make_round(33, (9, 0, 12), 1)
    data = [list(v) for v in zip(*((c.x, c.y, c.perm) for c in clients))]
    x, y, perm = data
    found = []
    for params in (torch.empty(3, 2244), torch.empty(2244, 3).t()):
        torch.ops.fedclip.fresh_round(
            x, y, clients[0].text, perm, 8, clients[0].params, params, *ADAM, SCALE
        )
        found.append(params.clone())
    assert torch.equal(*found)
