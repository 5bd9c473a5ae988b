"""Base to novel: what is trained, what is scored, and who cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fedclip_plugin import api
from fedclip_plugin.algorithms import ALGORITHMS, get_algorithm
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.features.choice import halved, of_classes
from fedclip_plugin.features.feature_set import FeatureSet
from fedclip_plugin.federation.build import build_federation
from fedclip_plugin.federation.unseen import cannot
from fedclip_plugin.federation.unseen import of_classes as with_classes
from fedclip_plugin.settings.sources import configure
from fedclip_plugin.stats import harmonic_mean
from tests.federation.toy import toy_features

CLASSES = 4


def run(toy: Path, **options: Any) -> dict[str, Any]:
    return api.run(features=str(toy), rounds=2, **{"classes": "base", **options})


def literal(features: FeatureSet, domains: tuple[str, ...], names: set[str]) -> float:
    """Zero-shot accuracy on all rows of some classes, row after row."""
    text = F.normalize(features.text.double(), dim=1)
    kept = [i for i, name in enumerate(features.classes) if name in names]
    hits = []
    for domain in domains:
        for x, y in zip(features.image[domain].double(), features.label[domain]):
            if int(y) in kept:
                scores = [float(F.normalize(x, dim=0) @ text[i]) for i in kept]
                hits.append(kept[scores.index(max(scores))] == int(y))
    return sum(hits) / len(hits)


def test_zero_shot_columns_are_those_of_a_literal_loop(toy: Path) -> None:
    summary = run(toy, target="photo")
    found = summary["base_to_novel"]["zero_shot"]
    features = toy_features()
    novel = {"class2", "class3"}
    expected = literal(features, ("art", "cartoon"), novel)
    assert found["novel"] == pytest.approx(expected)
    expected = literal(features, ("photo",), novel)
    assert found["target_novel"] == pytest.approx(expected)
    expected = literal(features, ("photo",), {"class0", "class1"})
    assert found["target_base"] == pytest.approx(expected)
    assert found["target_base"] == pytest.approx(summary["zero_shot"]["target"])
    clients = summary["result"]["clients"].values()
    result = summary["base_to_novel"]["result"]
    assert result["base"] == pytest.approx(sum(clients) / len(clients))
    three = [result[key] for key in ("local", "base", "novel")]
    assert result["harmonic"] == pytest.approx(harmonic_mean(three))


def test_local_is_among_the_classes_of_a_client(toy: Path) -> None:
    options = {"partition": "classes", "classes_per_client": 1, "clients": 2}
    summary = run(toy, target="none", **options)
    result = summary["base_to_novel"]["result"]
    assert result["local"] == 1.0  # one class to choose from
    assert result["base"] <= result["local"]
    assert "target_base" not in result


def test_what_is_trained_knows_nothing_of_novel_classes(toy: Path) -> None:
    features = toy_features()
    base = halved(features, DataConfig(classes=("base",)))
    assert base.classes == ("class0", "class1")
    assert base.unseen is not None
    assert base.unseen.classes == ("class2", "class3")
    for domain in features.domains:
        own = features.label[domain] < 2
        assert torch.equal(base.image[domain], features.image[domain][own])
        assert torch.equal(base.label[domain], features.label[domain][own])
    assert torch.equal(base.text, features.text[:2])
    assert len({features.key, base.key, base.unseen.key}) == 3
    assert of_classes(features, features.classes) is features


def test_closed_vocabularies_say_so(toy: Path) -> None:
    summary = run(toy, alg="linear", target="photo")
    result = summary["base_to_novel"]["result"]
    assert result["novel"] is None
    assert result["harmonic"] is None
    assert result["base"] is not None
    assert any("predicts only the classes" in note for note in summary["notes"])


@pytest.mark.parametrize("name", ALGORITHMS.names())
def test_an_open_vocabulary_predicts_other_classes(name: str) -> None:
    algorithm = get_algorithm(name)
    if not algorithm.open_vocabulary or algorithm.needs_clip:
        assert algorithm.needs_clip or cannot(algorithm)
        return
    features = toy_features(classes=3)
    config = configure({"alg": name, "rounds": 1, "target": "none"})
    fed = build_federation(features, config, None, 0)
    other = toy_features(classes=5, seed=1)
    task = with_classes(fed.task, other)
    x = other.image["art"]
    scores = fed.algorithm.predict(fed.first, x, task)
    assert scores.shape == (len(x), 5)
    swapped = with_classes(fed.task, of_classes(other, other.classes[:2]))
    two = fed.algorithm.predict(fed.first, x, swapped)
    torch.testing.assert_close(two, scores[:, :2])


def test_a_choice_of_classes_alone_is_no_base_to_novel(toy: Path) -> None:
    summary = run(toy, classes=["class1", "class3"], target="photo")
    assert "base_to_novel" not in summary
    assert summary["settings"]["classes"] == "class1 class3"


def test_harmonic_means() -> None:
    assert harmonic_mean([]) is None
    assert harmonic_mean([0.5, None]) is None
    assert harmonic_mean([0.0, 0.5]) == 0.0
    assert harmonic_mean([0.5, 1.0]) == pytest.approx(2 / 3)
