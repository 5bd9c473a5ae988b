"""FACMIC and FAA-CLIP: formulas, what travels, and who may see the held-out domain."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedclip_plugin.algorithms import with_values
from fedclip_plugin.algorithms.adapter import contrastive_loss
from fedclip_plugin.algorithms.aligned import BatchNormAdapter, unlabelled_batches
from fedclip_plugin.algorithms.base import sample_order
from fedclip_plugin.algorithms.faa_clip import adversarial_loss, domain_classifier
from fedclip_plugin.algorithms.facmic import local_mmd, ramp
from fedclip_plugin.cli import main
from fedclip_plugin.config.schema import DataConfig, PrivacyConfig, RunConfig
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.checkpoint import Checkpoint
from fedclip_plugin.federation.engine import Run, federate, run_round
from fedclip_plugin.federation.personalization import personalize
from fedclip_plugin.wire.update import State
from tests.federation.toy import checkpointed, toy_features

NAMES = ("facmic", "faa-clip")


def make(
    name: str, target: str | None = "photo", allow: bool = True, **values: object
) -> Federation:
    usual = {"rounds": 3, "batch_size": 8, "lr": 3e-3, "weight_decay": 0.0}
    config = RunConfig(name, data=DataConfig(dataset="toy", transductive=allow))
    config = with_values(config, {**usual, **values})
    return build_federation(toy_features(rows=50), config, target, seed=0)


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[k], other[k]) for k in one
    )


# -- FACMIC's formula ------------------------------------------------------------------


def literal_mmd(s: Tensor, t: Tensor, y: Tensor, chance: Tensor) -> float:
    """The paper's sum written out in loops, in float64."""
    rows = torch.cat([s, t]).double().tolist()
    squares = [
        [sum((a - b) ** 2 for a, b in zip(one, two)) for two in rows] for one in rows
    ]
    count = len(rows)
    width = sum(map(sum, squares)) / (count * count - count) / 4

    def kernel(i: int, j: int) -> float:
        return sum(math.exp(-squares[i][j] / (width * 2**k)) for k in range(5))

    said = chance.argmax(dim=1).tolist()
    both = set(y.tolist()) & set(said)
    total = 0.0
    for c in both:
        u = [float(label == c) for label in y.tolist()]
        v = chance[:, c].double().tolist()
        u, v = [a / sum(u) for a in u], [b / sum(v) for b in v]
        for i in range(len(s)):
            for j in range(len(s)):
                total += u[i] * u[j] * kernel(i, j)
            for j in range(len(t)):
                total -= 2 * u[i] * v[j] * kernel(i, len(s) + j)
        for i in range(len(t)):
            for j in range(len(t)):
                total += v[i] * v[j] * kernel(len(s) + i, len(s) + j)
    return total / len(both)


def domains(
    rows: tuple[int, int] = (9, 6), classes: int = 5
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    s, t = (
        F.normalize(torch.randn(n, 7, generator=generator).double(), dim=1)
        for n in rows
    )
    y = torch.randint(0, classes - 1, (rows[0],), generator=generator)
    scores = 3 * torch.randn(rows[1], classes, generator=generator).double()
    return s, t, y, scores.softmax(dim=1)


def test_the_local_mmd_is_the_papers_sum():
    s, t, y, chance = domains()
    assert float(local_mmd(s, t, y, chance)) == pytest.approx(
        literal_mmd(s, t, y, chance), rel=1e-12
    )


def test_the_local_mmd_has_the_right_gradient():
    """The kernel's width is a constant of the gradient, so both features share it."""
    s, t, y, chance = domains()
    rows = torch.cat([s, t]).requires_grad_()
    local_mmd(rows[: len(s)], rows[len(s) :], y, chance).backward()
    step = 1e-6
    with torch.no_grad():
        squares = torch.cdist(rows, rows).square()
        count = len(rows)
        width = squares.sum() / (count * count - count) / 4
    found = torch.zeros_like(rows)
    for i in range(count):
        for d in range(rows.shape[1]):
            ends = []
            for sign in (1, -1):
                moved = rows.detach().clone()
                moved[i, d] += sign * step
                ends.append(fixed_width(moved, len(s), y, chance, width))
            found[i, d] = (ends[0] - ends[1]) / (2 * step)
    torch.testing.assert_close(rows.grad, found, rtol=1e-5, atol=1e-8)


def fixed_width(
    rows: Tensor, own: int, y: Tensor, chance: Tensor, width: Tensor
) -> float:
    squares = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") ** 2
    kernel = sum((-squares / (width * 2**k)).exp() for k in range(5))
    labels, said = F.one_hot(y, chance.shape[1]).double(), chance.argmax(dim=1)
    both = [c for c in range(chance.shape[1]) if c in y and c in said]
    total = 0.0
    for c in both:
        signed = torch.cat(
            [labels[:, c] / labels[:, c].sum(), -chance[:, c] / chance[:, c].sum()]
        )
        total += float(signed @ kernel @ signed)
    return total / len(both)


def test_without_a_class_in_common_nothing_is_drawn_together():
    s, t, y, _ = domains()
    nowhere = torch.zeros(len(t), 5).double()
    nowhere[:, 4] = 1.0  # the labels are 0 to 3
    assert float(local_mmd(s, t, y, nowhere)) == 0.0


def test_equal_features_are_at_no_distance():
    s, _, y, _ = domains()
    sure = F.one_hot(y, 5).double()
    assert float(local_mmd(s, s, y, sure)) == pytest.approx(0.0, abs=1e-12)
    alike = s[:1].expand(9, -1)
    assert math.isfinite(float(local_mmd(alike, alike, y, sure)))


def test_the_ramp_rises_and_stays():
    assert ramp(0, 1000, 1.0) == 0.0
    assert ramp(500, 1000, 1.0) == pytest.approx(2 / (1 + math.exp(-0.5)) - 1)
    assert ramp(5000, 1000, 1.0) == ramp(1000, 1000, 1.0)
    assert ramp(0, 0, 1.0) == 1.0


# -- one step of each, written out -----------------------------------------------------


def plain_adapter(state: State, dim: int) -> nn.Sequential:
    """The published layers of PyTorch's own."""
    adapter = nn.Sequential(
        nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.LeakyReLU(),
        nn.Linear(dim, dim), nn.Softmax(dim=1),
    )  # fmt: skip
    adapter.load_state_dict(state, strict=False)
    return adapter


def gated(adapter: nn.Module, x: Tensor) -> Tensor:
    z = adapter(x) * x
    return z / z.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(
    "values",
    [{}, {"ramp": 0, "unlabelled": "plain"}, {"ramp": 3, "gamma": 4.0, "weight": 2.0}],
    ids=str,
)
def test_facmic_trains_as_written_out(values):
    fed = make("facmic", **values)
    task, client, p = fed.task, fed.clients[0], fed.task.params
    update = fed.algorithm.local_train(fed.first, client, task, 2)
    adapter = plain_adapter(fed.first, task.dim)
    t = task.train
    adam = torch.optim.Adam(adapter.parameters(), t.lr, (t.beta1, t.beta2), t.eps)
    others = unlabelled_batches(client, task, 2)
    rows = sample_order(len(client.train), 0, 2, client.index, 0)
    assert len(rows) == 30
    for i, batch in enumerate(rows.split(8)):
        x, y, other = client.train.x[batch], client.train.y[batch], next(others)
        z, zt = gated(adapter, x), gated(adapter, other)
        chance = (task.logit_scale * zt @ task.text.t()).softmax(dim=1).detach()
        if p.unlabelled == "plain":
            zt = other / other.norm(dim=1, keepdim=True)
        logits = task.logit_scale * z @ task.text[y].t()
        truth = torch.arange(len(y))
        loss = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.t(), truth)) / 2
        step = 4 + i  # four steps in the round before
        strength = 1.0
        if p.ramp:
            strength = 2 / (1 + math.exp(-p.gamma * min(step / p.ramp, 1))) - 1
        loss = loss + p.weight * strength * local_mmd(z, zt, y, chance)
        adam.zero_grad()
        loss.backward()
        adam.step()
    want = adapter.state_dict()
    assert update.state.keys() == want.keys() - {"1.num_batches_tracked"}
    for key, value in update.state.items():
        torch.testing.assert_close(value, want[key], rtol=1e-4, atol=1e-5)


def test_the_gradient_is_reversed_for_the_features_alone():
    torch.manual_seed(0)
    classifier = domain_classifier(6).double()
    own, other = (torch.randn(n, 6).double().requires_grad_() for n in (4, 3))
    loss = adversarial_loss(classifier, own, other)
    loss.backward()
    reversed_, learned = (
        (own.grad, other.grad),
        [p.grad for p in classifier.parameters()],
    )
    total = torch.zeros(()).double()
    for row, truth in [*((r, 0.0) for r in own), *((r, 1.0) for r in other)]:
        chance = torch.sigmoid(classifier(row)).squeeze()
        total = total - (chance if truth else 1 - chance).log()
    total = total / 7
    assert float(loss) == pytest.approx(total.item())
    plain = torch.autograd.grad(total, [own, other, *classifier.parameters()])
    for got, want in zip(reversed_, plain[:2]):
        torch.testing.assert_close(got, -want)
    for got, want in zip(learned, plain[2:]):
        torch.testing.assert_close(got, want)


def test_faa_clip_keeps_its_classifier_to_itself():
    fed = make("faa-clip")
    run = Run(fed)
    run_round(run)
    assert set(run.state) == set(BatchNormAdapter(16).state_dict())
    kept = run.now.kept["art"]
    assert set(kept) == {f"private.{k}" for k in domain_classifier(16).state_dict()}
    before = {key: value.clone() for key, value in kept.items()}
    run_round(run)
    assert all(not torch.equal(run.now.kept["art"][k], before[k]) for k in before)


@pytest.mark.parametrize("name", NAMES)
def test_without_weight_both_are_fedclips_loss_on_the_adapter(name):
    fed = make(name, weight=0.0)
    client, task = fed.clients[0], fed.task
    update = fed.algorithm.local_train(fed.first, client, task, 1)
    adapter = plain_adapter(fed.first, task.dim)
    t = task.train
    adam = torch.optim.Adam(adapter.parameters(), t.lr, (t.beta1, t.beta2), t.eps)
    others = unlabelled_batches(client, task, 1)
    for batch in sample_order(len(client.train), 0, 1, client.index, 0).split(8):
        z = gated(adapter, client.train.x[batch])
        loss = contrastive_loss(z, client.train.y[batch], task.text)
        gated(adapter, next(others))  # moves the running statistics
        adam.zero_grad()
        loss.backward()
        adam.step()
    want = adapter.state_dict()
    for key, value in update.state.items():
        torch.testing.assert_close(value, want[key], rtol=1e-4, atol=1e-5)


# -- batch normalisation ---------------------------------------------------------------


def test_prediction_is_by_running_statistics_that_are_averaged():
    fed = make("facmic")
    run = Run(fed)
    updates = fed.algorithm.local_round(fed.first, fed.clients, fed.task, 1)
    run_round(run)
    for key in ("1.running_mean", "1.running_var"):
        mean = sum(u.state[key] for u in updates) / len(updates)
        torch.testing.assert_close(run.state[key], mean)
    x = fed.target.x
    whole = fed.algorithm.predict(run.state, x, fed.task)
    alone = torch.cat([fed.algorithm.predict(run.state, r[None], fed.task) for r in x])
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-3)
    adapter = plain_adapter(run.state, 16).eval()
    scores = fed.task.logit_scale * gated(adapter, x) @ fed.task.text.t()
    torch.testing.assert_close(whole, scores.detach(), rtol=1e-4, atol=1e-3)


def test_a_variance_that_the_wire_made_negative_does_no_harm():
    fed = make("facmic")
    state = {**fed.first, "1.running_var": torch.full((16,), -1e-3)}
    scores = fed.algorithm.predict(state, fed.target.x, fed.task)
    assert bool(scores.isfinite().all())


# -- as every method -------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"compress": "int8"},
        {"participation": 0.5},
        {"optimizer_state": "keep"},
        {"compress": "int8", "compress_down": "int8", "local_epochs": 2},
    ],
    ids=str,
)
def test_it_resumes_to_the_same_bits(name, values, tmp_path):
    *_, whole = federate(make(name, **values))
    for standing in checkpointed(make(name, **values), Checkpoint(tmp_path, "id")):
        if standing.progress.round == 2:
            break
    *_, resumed = checkpointed(make(name, **values), Checkpoint(tmp_path, "id"))
    assert same(resumed.state, whole.state)
    assert all(bool(v.isfinite().all()) for v in whole.state.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_spoilt_update_is_left_out(name):
    fed = make(name)
    run = Run(fed)
    opened = run.open_round()
    updates = fed.algorithm.local_round(
        opened.sent.seen, opened.cohort, fed.task, opened.number
    )
    spoilt = {**updates[0].state, "1.bias": torch.full((16,), math.nan)}
    run.aggregate(opened, [replace(updates[0], state=spoilt), updates[1]], ["a", "b"])
    assert same(opened.state, updates[1].state)


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_personalized(name):
    fed = make(name)
    kept: dict[str, State] = {}
    found = personalize(fed, fed.first, "finetune", kept.__setitem__)
    assert found["new_clients"].keys() == {"target"}
    assert kept.keys() == {"art", "cartoon", "target"}


# -- who may see what ------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_held_out_domain_is_refused_without_leave(name):
    with pytest.raises(ConfigError, match=r"unlabelled.*\(photo\).*--transductive"):
        make(name, allow=False)


def test_clients_are_given_the_held_out_features():
    fed = make("facmic")
    assert all(torch.equal(c.unlabelled, fed.target.x) for c in fed.clients)
    assert all(c.unlabelled is None for c in make("fedclip").clients)


def test_without_a_held_out_domain_they_are_given_the_others_validation_features():
    fed = make("facmic", target=None, allow=False)
    assert len(fed.clients) == 3
    for client in fed.clients:
        rows = {tuple(row) for row in client.unlabelled.tolist()}
        want = [c.val.x for c in fed.clients if c is not client]
        assert rows == {tuple(row) for x in want for row in x.tolist()}
        assert len(client.unlabelled) == sum(map(len, want))
    *_, last = federate(fed)
    assert last.result.clients.keys() == {"art", "cartoon", "photo"}


def test_features_of_others_need_others():
    features = toy_features(rows=50)
    data = DataConfig(dataset="toy", partition="iid", clients=1)
    with pytest.raises(ConfigError, match="one client alone"):
        build_federation(features, RunConfig("facmic", data=data), None, seed=0)


def test_privacy_of_clients_is_not_promised_where_their_features_go_round():
    privacy = PrivacyConfig(dp_noise_multiplier=1.0, dp_clip=0.1)
    config = RunConfig("facmic", data=DataConfig(dataset="toy"), privacy=privacy)
    config = with_values(config, {"weighting": "uniform"})
    with pytest.raises(ConfigError, match="each other's features"):
        build_federation(toy_features(), config, None, seed=0)


def test_a_client_without_features_of_others_says_so():
    fed = make("facmic")
    client = replace(fed.clients[0], unlabelled=None)
    with pytest.raises(ConfigError, match="client art has no features of others"):
        fed.algorithm.local_train(fed.first, client, fed.task, 1)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_few_rows_without_labels_are_borne(rows):
    fed = make("facmic")
    client = replace(fed.clients[0], unlabelled=fed.target.x[:rows])
    update = fed.algorithm.local_train(fed.first, client, fed.task, 1)
    assert all(bool(v.isfinite().all()) for v in update.state.values())


def test_every_row_without_labels_is_seen_once_a_pass():
    fed = make("facmic")
    client = replace(fed.clients[0], unlabelled=torch.arange(24.0)[:, None])
    batches = unlabelled_batches(client, fed.task, 1)
    passes = [torch.cat([next(batches) for _ in range(3)]) for _ in range(2)]
    for one in passes:
        assert sorted(one.flatten().tolist()) == list(range(24))
    assert not torch.equal(*passes)


def run(*argv: object) -> int:
    return main(["run", "--quiet", *map(str, argv)])


def test_the_command_refuses_and_marks(toy, tmp_path, capsys):
    common = ("--features", toy, "--rounds", 1, "--batch-size", 8)
    facmic = (*common, "--alg", "facmic", "--out", tmp_path / "facmic")
    assert run(*facmic, "--target", "photo") == 2
    assert "--transductive" in capsys.readouterr().err
    assert not (tmp_path / "facmic").exists()
    assert run(*facmic, "--target", "photo", "--transductive") == 0
    summary = json.loads((tmp_path / "facmic" / "summary.json").read_text())
    assert summary["transductive"] is True
    assert any("--transductive" in note for note in summary["notes"])
    assert "FACMIC (transductive)" in page(tmp_path / "facmic")
    fedclip = (*common, "--alg", "fedclip", "--out", tmp_path / "fedclip")
    assert run(*fedclip, "--target", "photo", "--transductive") == 0
    summary = json.loads((tmp_path / "fedclip" / "summary.json").read_text())
    assert summary["transductive"] is False
    assert any("--transductive" in n and "no effect" in n for n in summary["notes"])
    capsys.readouterr()
    both = [str(tmp_path / name) for name in ("facmic", "fedclip")]
    for style in ("markdown", "latex"):
        assert main(["report", *both, "--format", style]) == 0
        assert "FACMIC (transductive" in capsys.readouterr().out
    assert main(["report", *both]) == 0
    assert "FACMIC (transductive" in capsys.readouterr().out
    assert main(["report", *both, "--format", "csv"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.endswith(",transductive")
    assert {row.rsplit(",", 1)[1] for row in rows if ",facmic," in row} == {"1"}
    assert {row.rsplit(",", 1)[1] for row in rows if ",fedclip," in row} == {"0"}


def test_without_a_held_out_domain_the_run_says_what_was_shared(toy, tmp_path):
    out = tmp_path / "out"
    assert run("--features", toy, "--rounds", 1, "--alg", "faa-clip", "--target",
               "none", "--out", out) == 0  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    assert summary["transductive"] is False
    assert any("validation features" in note for note in summary["notes"])


def page(directory: Path) -> str:
    return (directory / "report.html").read_text()
