"""Features that tell nothing are refused, or noted with their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedclip_plugin.cli import main
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import FeaturesError
from fedclip_plugin.features import directions
from fedclip_plugin.features.feature_set import (
    FeatureSet,
    load_features,
    save_features,
)
from fedclip_plugin.federation.build import build_federation
from fedclip_plugin.federation.doubts import doubts as of_clients
from tests.federation.toy import name_images, toy_features, write_toy


def doubts(x: Tensor, text: Tensor | None = None) -> list[str]:
    text = torch.eye(4) if text is None else text
    classes = ("ant", "bee", "cat", "dog")[: len(text)]
    return list(directions.doubts({"art": x}, {}, text, classes))


def with_rows(change: Callable[[Tensor], Tensor], domain: str = "art") -> FeatureSet:
    features = toy_features()
    image = {**features.image, domain: change(features.image[domain].clone())}
    return replace(features, image=image)


def zeroed(count: int) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        x[:count] = 0
        return x

    return change


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e10])
def test_what_has_a_direction_becomes_a_unit_vector(scale: float) -> None:
    x = scale * torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    x[3] = 0
    bad = directions.undirected(x)
    unit = (F.normalize(x, dim=1).norm(dim=1) - 1).abs() < 1e-3
    assert bad.tolist() == (~unit).nonzero().flatten().tolist()


def test_lengths_tell_what_is_not_finite_or_not_when_squared() -> None:
    x = torch.ones(4, 8)
    x[1, 2], x[2, 3], x[3, 4] = torch.nan, torch.inf, 1e30
    assert directions.lengths(x).isfinite().tolist() == [True, False, False, False]


def test_sound_features_have_no_note() -> None:
    assert doubts(toy_features().image["art"]) == []
    assert doubts(torch.ones(1, 4)) == []  # one image is not like another
    assert doubts(torch.ones(0, 4)) == []


def test_single_rows_of_zeros_are_counted_and_the_first_are_named() -> None:
    (note,) = doubts(with_rows(zeroed(7)).image["art"])
    assert note.startswith("art: the features of 7 of 60 images are zeros")
    assert "row 0, row 1, row 2, row 3, row 4 and 2 more; leave" in note


@pytest.mark.parametrize("rounding", [0.0, 1e-6])
def test_images_of_the_same_features_are_told(
    rounding: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directions, "ROWS_AT_ONCE", 7)
    x = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).repeat(20, 1)
    (note,) = doubts(x * (1 + rounding * torch.arange(20)[:, None] / 20))
    assert note.startswith("art: all 20 images have the same features")
    x[19] += 0.01
    assert doubts(x) == []


def test_classes_that_nothing_tells_apart_are_told() -> None:
    x, text = torch.eye(3), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    (note,) = doubts(x, text)
    assert note.startswith("the captions of ant, cat are encoded alike")
    assert doubts(x, text[:2]) == []
    (note,) = doubts(x, text * torch.tensor([[0.0], [1.0], [0.0]]))
    assert note.startswith("the text features of 2 of 3 classes are zeros")
    assert "ant, cat; " in note


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_a_domain_of_zeros_is_refused_in_one_line(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_features(with_rows(torch.zeros_like, "cartoon"), tmp_path / "f")
    line = ["run", "--features", str(tmp_path / "f"), *more]
    assert main([*line, "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    said = " ".join((shown.out + shown.err).split())
    assert said.count("are zeros and say nothing") == 1
    assert "cartoon.safetensors: the features of all 60 images of domain" in said
    assert not (tmp_path / "out" / "summary.json").exists()


def test_no_text_feature_but_zeros_is_refused(tmp_path: Path) -> None:
    features = toy_features()
    save_features(replace(features, text=0 * features.text), tmp_path / "f")
    with pytest.raises(FeaturesError, match=r"text\.safetensors: the text features of"):
        load_features(tmp_path / "f")


def test_notes_on_features_are_told_once(tmp_path: Path) -> None:
    directory = write_toy(tmp_path / "f")
    features = name_images(directory)
    image = {**features.image, "art": zeroed(2)(features.image["art"].clone())}
    for _ in range(2):  # what is read has the note, and is written with it
        save_features(replace(features, image=image), directory)
        features = load_features(directory)
        (note,) = features.notes
        first, second = features.files["art"][:2]
        assert f"2 of 60 images are zeros and say nothing: {first}, {second};" in note


def test_run_and_dry_run_tell_of_zeros(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_features(with_rows(zeroed(3)), tmp_path / "f")
    line = ["run", "--features", str(tmp_path / "f"), "--target", "photo"]
    for more in (["--dry-run"], ["--rounds", "1", "--out", str(tmp_path / "out")]):
        assert main([*line, *more]) == 0
        shown = capsys.readouterr()
        assert "3 of 60 images are zeros" in " ".join((shown.out + shown.err).split())


def test_a_client_that_would_train_on_zeros_alone_is_told() -> None:
    """A domain has other images, of which other clients have some."""
    features = toy_features()
    image = {
        d: x * (features.label[d] != 2)[:, None] for d, x in features.image.items()
    }
    data = DataConfig(partition="classes", classes_per_client=1, clients=4)

    def notes(features: FeatureSet) -> list[str]:
        fed = build_federation(features, RunConfig(data=data), None, 0)
        found = of_clients(fed.clients, features, data)
        return [note for note in found if "teach nothing" in note]

    (note,) = notes(replace(features, image=image))
    assert note.startswith("1 of 4 clients have training images whose features are")
    assert not notes(features)
