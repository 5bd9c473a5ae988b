"""FedCLIP against the literal loop of the paper, and its edge cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedclip_plugin import ops
from fedclip_plugin.algorithms import Client, FedClip, Samples, Task, get_algorithm
from fedclip_plugin.algorithms.adapter import (
    KEYS,
    AttentionAdapter,
    apply_adapter,
    contrastive_loss,
    initial_state,
)
from fedclip_plugin.algorithms.base import sample_order
from fedclip_plugin.config.schema import TrainConfig
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.ops.training import contrastive_loss_and_grad
from tests.algorithms import reference_loop


def make_client(rows: int, dim: int, classes: int, index: int = 0) -> Client:
    generator = torch.Generator().manual_seed(100 + index)
    x = torch.randn(rows, dim, generator=generator)
    y = torch.randint(0, max(classes, 1), (rows,), generator=generator)
    part = Samples(x, y)
    return Client(f"client-{index}", index, part, part, part)


def make_task(dim: int, classes: int, **train: float) -> Task:
    generator = torch.Generator().manual_seed(7)
    text = F.normalize(torch.randn(classes, dim, generator=generator), dim=1)
    return Task(text, 100.0, TrainConfig(**train), seed=3, params=FedClip.Params())  # type: ignore[arg-type]


def literal_history(
    clients: list[Client], task: Task, rounds: int, dtype: torch.dtype
) -> list[nn.Sequential]:
    server = reference_loop.make_adapter(task.dim)
    server.load_state_dict(initial_state(task.dim, task.seed))
    return reference_loop.federate(
        server.to(dtype),
        [(c.train.x.to(dtype), c.train.y) for c in clients],
        task.text.to(dtype),
        lambda r, i, e: sample_order(
            len(clients[i].train), task.seed, r, clients[i].index, e
        ),
        rounds,
        task.train.local_epochs,
        task.train.batch_size,
        task.logit_scale,
        lr=task.train.lr,
    )


def update_error(
    state: dict[str, torch.Tensor], model: nn.Module, start: dict
) -> float:
    """Relative L2 error of the accumulated update against a float64 model."""
    truth = model.state_dict()
    wrong = sum(float((state[k].double() - truth[k]).square().sum()) for k in KEYS)
    moved = sum(float((truth[k] - start[k].double()).square().sum()) for k in KEYS)
    return (wrong / moved) ** 0.5


@pytest.mark.parametrize(
    ("dim", "classes", "rows", "epochs"),
    [(16, 5, (70, 33, 64), 1), (33, 3, (40, 65, 2), 2), (24, 50, (50, 32, 31), 1)],
)
def test_rounds_equal_the_literal_loop(dim, classes, rows, epochs):
    clients = [make_client(n, dim, classes, i) for i, n in enumerate(rows)]
    task = make_task(dim, classes, local_epochs=epochs, lr=1e-3)
    exact = literal_history(clients, task, 4, torch.float64)
    eager = literal_history(clients, task, 4, torch.float32)
    fedclip = FedClip()
    state = start = fedclip.init(task)
    for number in range(1, 5):
        updates = fedclip.local_round(state, clients, task, number)
        state = fedclip.aggregate(updates, state, task)
    ours = update_error(state, exact[-1], start)
    theirs = update_error(dict(eager[-1].state_dict()), exact[-1], start)
    assert ours <= max(1.5 * theirs, 2e-6)


def test_losses_are_those_of_the_literal_loop():
    client, task = make_client(75, 16, 5), make_task(16, 5)
    model = reference_loop.make_adapter(16).double()
    model.load_state_dict(initial_state(16, task.seed))
    optimizer = torch.optim.Adam(
        model.parameters(), lr=5e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2
    )
    losses = reference_loop.train_epoch(
        model,
        optimizer,
        client.train.x.double(),
        client.train.y,
        task.text.double(),
        sample_order(75, task.seed, 1, client.index, 0),
        32,
        100.0,
    )
    update = FedClip().local_train(FedClip().init(task), client, task, 1)
    assert update.metrics["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert len(losses) == 3


def test_local_round_is_local_train_client_by_client():
    clients = [make_client(40 + i, 16, 5, i) for i in range(3)]
    task = make_task(16, 5)
    fedclip, state = FedClip(), FedClip().init(task)
    together = fedclip.local_round(state, clients, task, 2)
    for client, update in zip(clients, together):
        alone = fedclip.local_train(state, client, task, 2)
        assert all(torch.equal(alone.state[k], update.state[k]) for k in KEYS)


def test_training_in_bfloat16_is_near_but_not_the_same():
    client, task = make_client(40, 16, 5), make_task(16, 5, lr=1e-3)
    rounded = replace(task, train=replace(task.train, precision="bf16"))
    state = FedClip().init(task)
    exact = FedClip().local_train(state, client, task, 1).state
    near = FedClip().local_train(state, client, rounded, 1).state
    for k in KEYS:
        share = (near[k] - exact[k]).norm() / (exact[k] - state[k]).norm()
        assert 1e-4 < share < 0.3


def test_state_that_was_sent_is_not_touched():
    client, task = make_client(40, 16, 5), make_task(16, 5)
    state = FedClip().init(task)
    before = {k: v.clone() for k, v in state.items()}
    FedClip().local_train(state, client, task, 1)
    assert all(torch.equal(before[k], state[k]) for k in KEYS)


@pytest.mark.parametrize("rows", [0, 1])
def test_client_without_a_batch_of_two_learns_nothing(rows):
    client, task = make_client(rows, 16, 5), make_task(16, 5)
    state = FedClip().init(task)
    update = FedClip().local_train(state, client, task, 1)
    assert update.num_examples == rows
    assert "loss" not in update.metrics
    assert all(torch.equal(update.state[k], state[k]) for k in KEYS)


def test_client_with_one_class_has_finite_loss_of_log_batch():
    client = make_client(32, 16, 1)
    update = FedClip().local_train(
        FedClip().init(make_task(16, 5)), client, make_task(16, 5), 1
    )
    # every row's text is the same, so the image-to-text half is log 32 exactly
    assert update.metrics["loss"] > np.log(32) / 2
    assert all(torch.isfinite(v).all() for v in update.state.values())


def test_zero_feature_row_gives_zero_not_nan():
    z = apply_adapter(initial_state(8, 0), torch.zeros(2, 8))
    assert torch.equal(z, torch.zeros(2, 8))


def test_gate_sums_to_one_and_forward_is_the_normalised_product():
    adapter, x = AttentionAdapter(16), torch.randn(5, 16)
    gate = adapter.gate(x)
    assert torch.allclose(gate.sum(dim=1), torch.ones(5), atol=1e-6)
    assert torch.allclose(adapter(x), F.normalize(gate * x, dim=1), atol=1e-6)


def test_adapter_trains_by_autograd_as_the_literal_one():
    torch.manual_seed(0)
    adapter, literal = AttentionAdapter(12), reference_loop.make_adapter(12)
    literal.load_state_dict(adapter.state_dict())
    x, y = torch.randn(9, 12), torch.randint(0, 4, (9,))
    text = F.normalize(torch.randn(4, 12), dim=1)
    contrastive_loss(adapter(x), y, text).backward()
    reference_loop.batch_loss(literal, x, text[y], 100.0).backward()
    for ours, theirs in zip(adapter.parameters(), literal.parameters()):
        assert float((ours.grad - theirs.grad).norm() / theirs.grad.norm()) < 1e-5


@pytest.mark.parametrize("classes", [1, 2, 7, 100])
def test_closed_form_loss_gradient_equals_autograd(classes):
    torch.manual_seed(classes)
    z = F.normalize(torch.randn(13, 6, dtype=torch.float64), dim=1).requires_grad_()
    y = torch.randint(0, classes, (13,))
    text = F.normalize(torch.randn(classes, 6, dtype=torch.float64), dim=1)
    expected = contrastive_loss(z, y, text, 50.0)
    (grad,) = torch.autograd.grad(expected, z)
    loss, dz = contrastive_loss_and_grad(z.detach(), y, text, 50.0)
    assert torch.allclose(loss, expected, rtol=1e-12)
    assert torch.allclose(dz, grad, rtol=1e-9, atol=1e-12)


def test_authors_checkpoint_loads():
    authors = reference_loop.make_adapter(16).state_dict()
    AttentionAdapter(16).load_state_dict(authors)
    assert tuple(authors) == KEYS


def test_initial_state_depends_on_the_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second, other = (initial_state(8, s) for s in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[k], second[k]) for k in KEYS)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_sample_order_differs_by_seed_round_client_and_epoch():
    orders = [
        tuple(sample_order(50, *key).tolist())
        for key in [
            (0, 1, 0, 0),
            (1, 1, 0, 0),
            (0, 2, 0, 0),
            (0, 1, 1, 0),
            (0, 1, 0, 1),
        ]
    ]
    assert len(set(orders)) == 5
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert tuple(sample_order(50, 0, 1, 0, 0).tolist()) == orders[0]


def test_unknown_algorithm_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean fedclip"):
        get_algorithm("fedklip")
    assert get_algorithm("FedCLIP").name == "fedclip"


def test_x_that_requires_grad_is_refused():
    adapter = AttentionAdapter(4)
    with pytest.raises(ValueError, match="x: frozen"):
        adapter(torch.randn(2, 4, requires_grad=True))


def test_local_epochs_continue_the_same_optimizer():
    client = make_client(64, 16, 5)
    task = make_task(16, 5, local_epochs=2)
    both = FedClip().local_train(FedClip().init(task), client, task, 1)
    single = replace(task, train=replace(task.train, local_epochs=1))
    once = FedClip().local_train(FedClip().init(task), client, single, 1)
    again = FedClip().local_train(once.state, client, single, 1)  # a fresh Adam
    assert not torch.allclose(
        both.state["0.weight"], again.state["0.weight"], atol=1e-9
    )


def test_ops_are_registered_for_every_schema():
    from fedclip_plugin.ops import SCHEMAS

    for name in SCHEMAS:
        assert hasattr(torch.ops.fedclip, name)
    assert callable(ops.adapter_reference)
