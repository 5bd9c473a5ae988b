"""Every architecture of open_clip, small and with random weights, from end to end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks.encoders import zoo
from fedclip_plugin import api
from fedclip_plugin.cli import main
from fedclip_plugin.clip.encoder import (
    EncoderSpec,
    FrozenClip,
    fingerprint,
)
from fedclip_plugin.clip.resolve import resolve
from fedclip_plugin.errors import ConfigError, WeightsError

WEIGHTS = "open_clip_model.safetensors"
EXPORTED = ("vit", "coca", "eva02", "siglip", "biomedclip")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Images in ``data``, and a cache of their own."""
    root = tmp_path_factory.mktemp("zoo")
    zoo.write_images(root / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDCLIP_CACHE", str(root / "cache"))
        yield root


def model_of(place: Path, name: str) -> Path:
    folder = place / "models" / name
    return folder if folder.is_dir() else zoo.save(name, place / "models")


def by_file(folder: Path) -> EncoderSpec:
    file = str(folder / WEIGHTS)
    return EncoderSpec(folder.name, file, str(folder), "fp32", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.ZOO)
def test_from_doctor_to_export(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = model_of(place, name), str(place / f"run-{name}")
    model = ["--model", f"local-dir:{folder}"]
    data = ["--dataset", "shapes", "--root", str(place / "data")]
    assert main(["doctor", *data, *model]) == 0
    more = ["--rounds", "1", "--target", "dark", "--quiet"]
    assert main(["run", *data, *model, *more, "--out", run]) == 0
    assert main(["evaluate", run, *data, "--quiet"]) == 0
    capsys.readouterr()
    images = str(place / "data" / "dark" / "disc")
    assert main(["predict", run, images, "--format", "json", "--quiet"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == zoo.IMAGES
    assert all(sum(r["probabilities"].values()) == pytest.approx(1) for r in rows)
    if name in EXPORTED:  # checks itself against our own probabilities
        words = ["export", run, "--to", f"{run}-export", "--format", "torch"]
        assert main([*words, "--quiet"]) == 0


@pytest.mark.parametrize("name", ["siglip2", "biomedclip"])
def test_a_tokenizer_beside_the_weights_serves_a_file_too(
    name: str, place: Path
) -> None:
    folder = model_of(place, name)
    captions = ["a red disc", "a blue square"]
    one = FrozenClip.load(by_file(folder)).encode_text(captions)
    other = FrozenClip.load(EncoderSpec(f"local-dir:{folder}", "auto", None, "fp32"))
    assert torch.equal(one, other.encode_text(captions))
    assert not torch.allclose(one[0], one[1])


def test_another_tokenizer_makes_other_features(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_of(place, "siglip"), tmp_path / "siglip"))
    before = fingerprint(by_file(folder))
    file = folder / "tokenizer.json"
    swapped = file.read_text().replace('"disc"', '"x"').replace('"red"', '"disc"')
    file.write_text(swapped)
    assert fingerprint(by_file(folder)) != before


@pytest.mark.parametrize(
    ("name", "file", "what"),
    [
        ("siglip", "tokenizer.json", "no tokenizer for siglip"),
        ("biomedclip", "config.json", "no text tower's config for biomedclip"),
    ],
)
def test_what_is_only_on_the_hub_is_one_line_with_the_remedy(
    name: str, file: str, what: str, place: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_of(place, name), tmp_path / name))
    (folder / file).unlink()
    with pytest.raises(WeightsError, match=what) as error:
        FrozenClip.load(by_file(folder))
    said = str(error.value)
    assert f"put {file}" in said
    assert str(folder) in said
    assert "\n" not in said


def test_sigmoid_scores_are_siglips_own(place: Path) -> None:
    folder, run = model_of(place, "siglip"), place / "sigmoid"
    data = {"dataset": "shapes", "root": str(place / "data")}
    model = f"local-dir:{folder}"
    api.run(**data, model=model, algorithm="zeroshot", target="dark", out=run)
    image = [str(place / "data" / "dark" / "disc" / "0.png")]
    alone = api.load_classifier(run, scores="sigmoid")
    among = api.load_classifier(run).predict(image).probabilities.double()
    each = alone.predict(image).probabilities.double()
    # softmax takes the bias away, the sigmoid does not
    torch.testing.assert_close(among.log()[0, 0] - among.log()[0, 1],
                               each.logit()[0, 0] - each.logit()[0, 1],
                               atol=1e-3, rtol=1e-3)  # fmt: skip
    encoder = FrozenClip.load(by_file(folder))
    assert encoder.logit_bias == -10
    clip = f"local-dir:{model_of(place, 'vit')}"
    api.run(**data, model=clip, algorithm="zeroshot", target="dark", out=place / "soft")
    with pytest.raises(ConfigError, match="no logit_bias"):
        api.load_classifier(place / "soft", scores="sigmoid")


@pytest.mark.parametrize(
    ("model", "mean", "resize"),
    [
        ("ViT-B-16-SigLIP", 0.5, "squash"),
        ("ViT-B-16-SigLIP2", 0.5, "squash"),
        ("MobileCLIP-S1", 0.0, "shortest"),
        ("EVA02-B-16", 0.48145466, "shortest"),
        ("coca_ViT-B-32", 0.48145466, "shortest"),
        ("ViT-H-14", 0.48145466, "shortest"),
    ],
)
def test_a_local_file_is_prepared_as_the_published_weights_are(
    model: str, mean: float, resize: str, tmp_path: Path
) -> None:
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    source = resolve(model, str(file))
    assert source.preprocess["mean"][0] == mean
    assert source.preprocess["resize_mode"] == resize
