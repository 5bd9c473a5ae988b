"""FedTPG: the network, what travels, and classes that no client had."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedclip_plugin.algorithms import with_values
from fedclip_plugin.algorithms.fedtpg import FedTpg, PromptGenerator
from fedclip_plugin.clip.prompts import captions
from fedclip_plugin.clip.whole import open_whole_clip
from fedclip_plugin.config.inputs import DataConfig, ModelConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.data.folders import load_dataset
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.features.obtain import encode_dataset
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.engine import Run, federate
from fedclip_plugin.wire.message import state_bytes
from tests.clip.fake_encoder import write_images
from tests.clip.makers import tiny_clip
from tests.federation.toy import resumed

CLASSES = ("cat", "big dog", "horse")
USUAL = {"rounds": 3, "batch_size": 8, "lr": 1e-2, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    return write_images(root, ("d0", "d1", "d2"), CLASSES, 6)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("model"), "tpg-tiny")


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDCLIP_CACHE", str(tmp_path / "cache"))


def make(images: Path, weights: Path, **values: object) -> Federation:
    model = ModelConfig("tpg-tiny", str(weights), str(weights.parent), "fp32", "cpu")
    data = DataConfig(dataset="mine", root=str(images))
    config = RunConfig("fedtpg", model=model, data=data)
    config = with_values(config, {**USUAL, **values})
    dataset = load_dataset("mine", str(images))
    features, _ = encode_dataset(dataset, config)
    clip = open_whole_clip(config, dataset, features.classes, features.skipped)
    return build_federation(features, config, "d2", 0, clip)


def fedtpg(fed: Federation) -> FedTpg:
    assert isinstance(fed.algorithm, FedTpg)
    return fed.algorithm


def literal_prompt(generator: PromptGenerator, names: Tensor) -> list[list[float]]:
    """The paper's attention written out in loops, one head after the other."""
    state = {k: v.tolist() for k, v in generator.state_dict().items()}
    rows = names.tolist()

    def times(matrix: list[list[float]], x: list[float]) -> list[float]:
        return [sum(a * b for a, b in zip(row, x)) for row in matrix]

    keys = [times(state["key.weight"], row) for row in rows]
    values = [times(state["value.weight"], row) for row in rows]
    width = len(state["query"][0])
    size = width // generator.heads
    found = []
    for query in state["query"]:
        attended = []
        for head in range(generator.heads):
            part = slice(head * size, (head + 1) * size)
            scores = [
                sum(a * b for a, b in zip(query[part], key[part])) / math.sqrt(size)
                for key in keys
            ]
            share = [math.exp(s) for s in scores]
            share = [s / sum(share) for s in share]
            for i in range(*part.indices(width)):
                attended.append(sum(s * v[i] for s, v in zip(share, values)))
        mean = sum(attended) / width
        spread = sum((a - mean) ** 2 for a in attended) / width
        normed = [(a - mean) / math.sqrt(spread + 1e-5) for a in attended]
        normed = [
            n * w + b
            for n, w, b in zip(normed, state["norm.weight"], state["norm.bias"])
        ]
        hidden = [
            max(0.0, h + b)
            for h, b in zip(times(state["mlp.0.weight"], normed), state["mlp.0.bias"])
        ]
        last = times(state["mlp.2.weight"], hidden)
        found.append([a + b for a, b in zip(last, state["mlp.2.bias"])])
    return found


@pytest.mark.parametrize(("dim", "width", "heads"), [(6, 8, 4), (5, 6, 2)])
def test_the_network_is_the_papers(dim, width, heads):
    torch.manual_seed(1)
    generator = PromptGenerator(dim, width, 3).double()
    assert generator.heads == heads
    names = torch.randn(5, dim).double()
    want = torch.tensor(literal_prompt(generator, names)).double()
    torch.testing.assert_close(generator(names), want)
    assert torch.autograd.gradcheck(generator, (names.requires_grad_(),))


def test_the_order_of_the_classes_does_not_matter():
    generator = PromptGenerator(6, 8, 3).double()
    names = torch.randn(5, 6).double()
    torch.testing.assert_close(generator(names), generator(names.flip(0)))


def test_captions_are_those_of_words_under_the_prompt(images, weights, monkeypatch):
    """A prompt of the words' own embeddings gives the features of the written text."""
    fed = make(images, weights)
    clip, algorithm = fed.task.whole_clip, fedtpg(fed)
    words = clip.tokenize(["a big red thing"])[0, 1:5]
    embedded = clip.model.token_embedding(words)

    class Written(PromptGenerator):
        def forward(self, names: Tensor) -> Tensor:
            return embedded / algorithm._names(fed.task).spread

    written = Written(fed.task.dim, embedded.shape[1], 4)
    monkeypatch.setattr(algorithm, "_generator", lambda task: written)
    state = written.state_dict()
    tokens = clip.tokenize(captions(clip.classes, "a big red thing {}"))
    with torch.no_grad():
        want = clip.model.encode_text(tokens, normalize=True)
        found = algorithm.text(state, fed.task)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


def test_it_trains_sends_the_network_alone_and_leaves_the_model(images, weights):
    fed = make(images, weights)
    model = fed.task.whole_clip.model
    before = {k: v.clone() for k, v in model.state_dict().items()}
    *_, last = federate(fed)
    start = fed.first
    assert set(last.state) == set(PromptGenerator(16, 16, 4).state_dict())
    assert 0 <= last.result.bytes_up - 2 * state_bytes(start) < 1000
    assert all(
        not torch.equal(last.state[k], start[k]) for k in start if "bias" not in k
    )
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_one_step_is_that_of_the_cross_entropy(images, weights):
    fed = make(images, weights, batch_size=64, optimizer="sgd", lr=0.5)
    client, task = fed.clients[0], fed.task
    params = {k: v.clone().requires_grad_() for k, v in fed.first.items()}
    text = fedtpg(fed).text(params, task)
    scores = task.logit_scale * F.normalize(client.train.x, dim=1) @ text.t()
    loss = F.cross_entropy(scores, client.train.y)
    slopes = torch.autograd.grad(loss, list(params.values()))
    update = fed.algorithm.local_train(fed.first, client, task, 1)
    for (key, value), slope in zip(params.items(), slopes):
        want = (value - 0.5 * slope).detach()
        torch.testing.assert_close(update.state[key], want, rtol=1e-4, atol=1e-5)


def test_classes_that_no_client_had_are_served(images, weights):
    fed = make(images, weights)
    *_, last = federate(fed)
    clip = fed.task.whole_clip
    classes = ("cat", "tree", "house", "old car", "boat")
    tokens = clip.tokenize(captions(classes, clip.prompt))
    with torch.no_grad():
        text = clip.model.encode_text(tokens, normalize=True)
    other = replace(
        fed.task, text=text, clip=replace(clip, classes=classes, tokens=tokens)
    )
    scores = fed.algorithm.predict(last.state, fed.target.x, other)
    assert scores.shape == (len(fed.target), 5)
    assert bool(scores.isfinite().all())
    again = fed.algorithm.predict(last.state, fed.target.x, fed.task)
    assert again.shape[1] == 3


@pytest.mark.parametrize(
    "values", [{}, {"compress": "int8"}, {"participation": 0.5}], ids=str
)
def test_it_resumes_to_the_same_bits(values, images, weights, tmp_path):
    *_, whole = federate(make(images, weights, **values))
    after = resumed(lambda: make(images, weights, **values), tmp_path)
    assert all(torch.equal(after.state[k], whole.state[k]) for k in whole.state)


def test_a_spoilt_update_is_left_out(images, weights):
    fed = make(images, weights)
    run = Run(fed)
    opened = run.open_round()
    updates = fed.algorithm.local_round(fed.first, opened.cohort, fed.task, 1)
    spoilt = {k: v * math.nan for k, v in updates[0].state.items()}
    run.aggregate(opened, [replace(updates[0], state=spoilt), updates[1]], ["a", "b"])
    assert all(torch.equal(opened.state[k], v) for k, v in updates[1].state.items())


def test_a_prompt_that_is_too_long_is_refused(images, weights):
    fed = make(images, weights, length=64)
    run = Run(fed)
    opened = run.open_round()
    short = replace(fed.task.whole_clip, tokenize=lambda t: CUT[: len(t)])
    task = replace(fed.task, clip=short)
    with pytest.raises(ConfigError, match=r"--fedtpg-length 64.*8 tokens"):
        fed.algorithm.local_train(fed.first, opened.cohort[0], task, 1)


CUT = torch.ones(9, 8, dtype=torch.int64)
