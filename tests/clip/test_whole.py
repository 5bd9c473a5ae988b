"""Baselines that train CLIP itself, on a real (tiny) open_clip model and images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fedclip_plugin.algorithms import get_algorithm, with_values
from fedclip_plugin.algorithms.base import sample_order
from fedclip_plugin.algorithms.promptfl import KgCoOp
from fedclip_plugin.cli import main
from fedclip_plugin.clip.whole import WholeClip, open_whole_clip
from fedclip_plugin.config.inputs import DataConfig, ModelConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.data.folders import load_dataset
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.features.obtain import encode_dataset
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.engine import Run, federate, run_round
from fedclip_plugin.federation.evaluation import (
    predict_labels,
    predict_scores,
    score_clients,
    zero_shot_scores,
)
from fedclip_plugin.federation.metrics import accuracy
from tests.clip.fake_encoder import write_images
from tests.clip.makers import tiny_clip

DOMAINS, CLASSES = ("d1", "d2", "d3"), ("cat", "dog", "sea")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    return write_images(root, DOMAINS, CLASSES, 8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("model"), "whole-tiny")


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDCLIP_CACHE", str(tmp_path / "cache"))


def make(
    name: str, images: Path, weights: Path, data: DataConfig | None = None, **train
) -> Federation:
    model = ModelConfig("whole-tiny", str(weights), str(weights.parent), "fp32", "cpu")
    data = data or DataConfig()
    settings = {"rounds": 2, "batch_size": 8, "lr": 1e-3, "weight_decay": 0.0, **train}
    data = replace(data, dataset="mine", root=str(images))
    config = with_values(RunConfig(name, model=model, data=data), settings)
    dataset = load_dataset("mine", str(images))
    features, _ = encode_dataset(dataset, config)
    clip = open_whole_clip(config, dataset, features.classes, features.skipped)
    return build_federation(features, config, "d3", 0, clip)


@pytest.mark.parametrize("name", ["fedavg", "fedavg-lora", "promptfl"])
def test_many_clients_at_once_score_as_one_by_one(name, images, weights):
    data = DataConfig(partition="iid", clients=9)
    fed = make(name, images, weights, data)
    run = Run(fed)
    run_round(run)
    state = run.state
    found = score_clients(fed.algorithm, state, fed.clients, fed.task)
    for client in fed.clients:
        labels = predict_labels(fed.algorithm, state, client.test, fed.task)
        assert found[client.name]["test"] == accuracy(labels, client.test.y)


@pytest.mark.parametrize(
    "name", ["fedavg", "fedavg-lora", "fedprox", "promptfl", "kgcoop"]
)
def test_the_first_state_is_zero_shot(name, images, weights):
    fed = make(name, images, weights)
    state = fed.algorithm.init(fed.task)
    for part in (fed.target, fed.clients[0].train):
        ours = predict_scores(fed.algorithm, state, part, fed.task)
        zero_shot = zero_shot_scores(part, fed.task)
        torch.testing.assert_close(ours, zero_shot, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    "name", ["fedavg", "fedavg-lora", "fedprox", "promptfl", "kgcoop"]
)
def test_training_lowers_the_loss_and_repeats_bit_for_bit(name, images, weights):
    runs = [
        [
            s.result.loss
            for s in federate(make(name, images, weights, rounds=6))
            if s.result
        ]
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert runs[0][-1] < runs[0][0]


def test_pixels_follow_the_rows_of_the_features(images, weights):
    """Also where the clients' rows are shuffled over the domains."""
    data = DataConfig(partition="iid", clients=3)
    fed = make("fedavg", images, weights, data)
    clip = fed.task.clip
    assert isinstance(clip, WholeClip)
    assert len(clip.pixels) == 72
    for client in fed.clients:
        with torch.no_grad():
            encoded = clip.model.encode_image(clip.pixels[client.train.rows])
        torch.testing.assert_close(encoded, client.train.x, rtol=1e-4, atol=1e-4)


def test_fedavg_is_a_literal_loop_over_open_clip(images, weights):
    fed = make("fedavg", images, weights, rounds=1)
    start = fed.algorithm.init(fed.task)
    run = Run(fed)
    run_round(run)
    state = run.state
    t, clip, ends = fed.task.train, fed.task.clip, []
    for client in fed.clients:
        clip.model.load_state_dict(start, strict=False)
        clip.model.requires_grad_(True)
        adam = torch.optim.Adam(
            clip.model.parameters(), t.lr, (t.beta1, t.beta2), t.eps
        )
        for rows in sample_order(len(client.train), 0, 1, client.index, 0).split(8):
            batch = client.train[rows]
            if len(batch) < 2:
                continue
            images_, text, scale = clip.model(
                clip.pixels[batch.rows], clip.tokens[batch.y]
            )[:3]
            logits = scale * images_ @ text.t()
            truth = torch.arange(len(batch))
            loss = F.cross_entropy(logits, truth) + F.cross_entropy(logits.t(), truth)
            adam.zero_grad()
            (loss / 2).backward()
            adam.step()
        ends.append({k: v.detach().clone() for k, v in clip.model.named_parameters()})
    clip.model.requires_grad_(False)
    mean = {k: (ends[0][k] + ends[1][k]) / 2 for k in state}
    wrong = sum(float((state[k] - mean[k]).square().sum()) for k in state)
    moved = sum(float((mean[k] - start[k]).square().sum()) for k in state)
    assert wrong < 1e-4 * moved


def test_fedprox_stays_nearer_to_its_start(images, weights):
    def moved(mu: float) -> float:
        fed = make("fedprox", images, weights, mu=mu, local_epochs=6)
        start = fed.algorithm.init(fed.task)
        run = Run(fed)
        run_round(run)
        end = run.state
        return sum(float((end[k] - start[k]).square().sum()) for k in start)

    assert moved(100.0) < 0.9 * moved(0.0)


def test_lora_sends_its_factors_alone_and_leaves_the_model(images, weights):
    fed = make("fedavg-lora", images, weights, rounds=1)
    before = {k: v.clone() for k, v in fed.task.clip.model.state_dict().items()}
    *_, last = federate(fed)
    assert all("lora_" in key for key in last.state)
    whole = sum(v.numel() for v in before.values())
    assert sum(v.numel() for v in last.state.values()) < whole / 10
    assert any(float(v.abs().max()) > 0 for k, v in last.state.items() if "lora_B" in k)
    after = fed.task.clip.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_promptfl_sends_the_context_alone_and_leaves_the_model(images, weights):
    fed = make("promptfl", images, weights)
    before = {k: v.clone() for k, v in fed.task.clip.model.state_dict().items()}
    *_, last = federate(fed)
    assert set(last.state) == {"context"}
    assert last.state["context"].shape == (4, 16)  # "a picture of a"
    after = fed.task.clip.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_kgcoop_adds_the_papers_distance_to_the_loss(images, weights):
    fed = make("kgcoop", images, weights, batch_size=64, rounds=1)
    client, start = fed.clients[0], fed.first
    assert isinstance(fed.algorithm, KgCoOp)
    plain = get_algorithm("promptfl").local_train(start, client, fed.task, 1)
    held = fed.algorithm.local_train(start, client, fed.task, 1)
    # untrained, the learned captions are the written ones: nothing is added
    assert held.metrics["loss"] == pytest.approx(plain.metrics["loss"], rel=1e-5)
    text = 0.5 * fed.task.text
    expected = sum(
        float((learned - written).double().square().sum())
        for learned, written in zip(text, fed.task.text)
    )
    added = fed.algorithm.penalty(text, fed.task)
    assert float(added) == pytest.approx(8.0 * expected / len(text), rel=1e-5)


def test_kgcoop_stays_nearer_to_the_written_captions(images, weights):
    moved = {}
    for weight in (0.0, 1000.0):
        fed = make("kgcoop", images, weights, rounds=4, weight=weight)
        *_, last = federate(fed)
        moved[weight] = float((last.state["context"] - fed.first["context"]).norm())
    assert moved[1000.0] < 0.9 * moved[0.0]


def test_without_the_model_there_is_one_line(images, weights):
    fed = make("fedavg", images, weights)
    bare = replace(fed.task, clip=None)
    with pytest.raises(ConfigError, match="needs the images"):
        get_algorithm("fedavg").init(bare)


def run(argv: list[object]) -> int:
    return main([str(a) for a in argv])


def test_the_command_line(images, weights, tmp_path, capsys):
    model = ["--model", "whole-tiny", "--pretrained", weights]
    model += ["--model-config", weights.parent, "--dataset", "mine", "--root", images]
    common = ["run", "--target", "d3", "--rounds", 1, *model, "--out"]
    for name in ("fedavg", "promptfl"):
        assert run([*common, tmp_path / name, "--alg", name]) == 0
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["algorithm"] == name
        assert summary["zero_shot"]["target"] is not None
    capsys.readouterr()
    prompts = ["--prompt", "a {}", "--prompt", "the {}"]
    assert run([*common, tmp_path / "x", "--alg", "promptfl", *prompts]) == 2
    assert "one --prompt" in capsys.readouterr().err
    assert run([*common, tmp_path / "x", "--alg", "promptfl", "--prompt", "{}"]) == 2
    assert "has none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("alg", "why"),
    [
        ("fedavg", "trains CLIP itself"),
        ("promptfl", "trains through CLIP's text tower"),
        ("fedtpg", "trains through CLIP's text tower"),
    ],
)
def test_a_feature_directory_is_refused(tmp_path, capsys, alg, why):
    from tests.federation.toy import write_toy

    argv = ["run", "--alg", alg, "--features", write_toy(tmp_path / "f")]
    assert run([*argv, "--out", tmp_path / "x"]) == 2
    error = capsys.readouterr().err
    assert "not --features" in error
    assert f"--alg {alg} {why}" in error


@pytest.mark.parametrize("name", ["fedavg", "fedavg-lora", "promptfl"])
def test_updates_of_the_whole_clip_can_be_compressed(name, images, weights):
    plain, coded = (
        [*federate(make(name, images, weights, compress=codec))][-1]
        for codec in ("none", "int8")
    )
    assert coded.progress.quarantined == 0
    assert coded.result.bytes_up < plain.result.bytes_up
    start = make(name, images, weights)
    first = start.algorithm.init(start.task)
    moved, apart = (
        sum(float((a[k] - b[k]).double().square().sum()) for k in first) ** 0.5
        for a, b in ((plain.best, first), (plain.state, coded.state))
    )
    assert apart < 0.3 * moved
