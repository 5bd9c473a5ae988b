"""fedclip predict and fedclip evaluate, on a run of the embedded data."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedclip_plugin import api
from fedclip_plugin.cli.parser import main
from fedclip_plugin.data.hub import materialise
from fedclip_plugin.features.feature_set import load_features, save_features
from fedclip_plugin.federation.metrics import accuracy
from tests.federation.toy import write_toy


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and a folder of its images."""
    root = tmp_path_factory.mktemp("apply")
    api.run(rounds=1, target="sketch", out=root / "run")
    materialise("digits", root / "data")
    return root / "run", root / "data"


@pytest.fixture
def toy_run(toy: Path, tmp_path: Path) -> Path:
    api.run(features=str(toy), rounds=1, target="photo", out=tmp_path / "run")
    return tmp_path / "run"


def some_images(folder: Path) -> list[Path]:
    return sorted((folder / "sketch").rglob("*.png"))[::40][:5]


def test_predictions_are_those_of_the_classifier(
    digits: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = digits
    images = some_images(data)
    words = [str(image) for image in images]
    assert main(["predict", str(run), *words, "--format", "json", "--quiet"]) == 0
    rows = json.loads(capsys.readouterr().out)
    labels, probabilities = api.load_classifier(run).predict(words)
    assert [row["image"] for row in rows] == words
    assert [row["label"] for row in rows] == labels
    found = torch.tensor([list(row["probabilities"].values()) for row in rows])
    torch.testing.assert_close(found, probabilities, atol=0.02, rtol=0)
    for row in rows:
        own = row["zero_shot"]["probabilities"]
        assert row["zero_shot"]["label"] == max(own, key=lambda name: own[name])
        assert sum(own.values()) == pytest.approx(1, abs=1e-4)


def test_a_bad_image_is_named_and_the_rest_is_done(
    digits: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = digits
    good, *_ = some_images(data)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    words = ["predict", str(run), str(bad), str(good), str(tmp_path / "gone.png")]
    assert main([*words, "--format", "csv", "--quiet"]) == 2
    out, err = capsys.readouterr()
    (row,) = csv.DictReader(io.StringIO(out))
    assert row["image"] == str(good)
    assert float(row[row["label"]]) == pytest.approx(float(row["probability"]))
    assert "bad.png" in err
    assert "gone.png" in err
    assert "2 of 3 images could not be read" in err


def test_folders_and_the_standard_input(
    digits: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, data = digits
    first, second, *_ = some_images(data)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{second}\n{first}\n"))
    assert main(["predict", str(run), "-", "--format", "json", "--quiet"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in rows] == [str(second), str(first)]
    folder = first.parent
    assert main(["predict", str(run), str(folder), "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["image"] for row in rows] == sorted(map(str, folder.iterdir()))
    assert main(["predict", str(run), str(first)]) == 0
    assert "zero-shot" in capsys.readouterr().out


def test_words_of_the_users_own(
    digits: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = digits
    image = str(some_images(data)[0])
    words = ["predict", str(run), image, "--classes", "seven", "blue house"]
    assert main([*words, "--format", "json", "--quiet"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert list(row["probabilities"]) == ["seven", "blue house"]
    assert main([*words[:4], "seven"]) == 2
    assert "only seven" in capsys.readouterr().err


def test_a_closed_vocabulary_refuses_other_words(
    digits: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, data = digits
    api.run(alg="linear", rounds=1, target="sketch", out=tmp_path / "run")
    image = str(some_images(data)[0])
    words = ["predict", str(tmp_path / "run"), image, "--classes", "cat", "dog"]
    assert main(words) == 2
    assert "predicts only the" in capsys.readouterr().err


def test_no_image_is_one_line(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(toy_run), str(tmp_path / "empty")]) == 2
    assert "no image in" in capsys.readouterr().err


def test_evaluation_is_of_every_row(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_toy(tmp_path / "other", seed=0, rows=30, classes=6)
    words = ["evaluate", str(toy_run), "--features", str(other)]
    assert main([*words, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unseen_classes"] == ["class4", "class5"]
    features = load_features(other)
    for domain, each in found["domains"].items():
        assert each["images"] == 30
        x = torch.nn.functional.normalize(features.image[domain], dim=1)
        labels = (x @ features.class_text.t()).argmax(dim=1)
        expected = accuracy(labels, features.label[domain])
        assert each["zero_shot"]["accuracy"] == pytest.approx(expected)
    assert main([*words, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["domain"] for row in rows] == list(found["domains"])
    for row, each in zip(rows, found["domains"].values()):
        assert row["images"] == "30"
        for start, which in (("", "result"), ("zero_shot_", "zero_shot")):
            for key in ("accuracy", "macro_f1"):
                assert float(row[start + key]) == each[which][key]
    assert main([*words, "--classes", "class1", "class5"]) == 0
    assert "2 classes, 1 unseen" in capsys.readouterr().out


def test_the_held_out_domain_is_scored_as_in_the_run(
    toy: Path, toy_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(toy_run), "--format", "json"]
    assert main(words) == 0
    out, _ = capsys.readouterr()
    found, summary = json.loads(out), api.load_run(toy_run).summary
    got = found["domains"]["photo"]["result"]["accuracy"]
    assert got == pytest.approx(summary["result"]["target"])
    assert any("trained on" in note for note in found["notes"])
    assert main([*words[:2], "--quiet"]) == 0
    assert "note: " in capsys.readouterr().err
    state = toy_run / "adapter.safetensors"
    assert main([*words, "--state", str(state)]) == 0
    assert json.loads(capsys.readouterr().out)["domains"] == found["domains"]
    assert main([*words, "--state", str(toy_run / "none.safetensors")]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize("alg", ["linear", "gda"])
def test_other_classes_are_refused_by_closed_vocabularies(
    alg: str, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    api.run(features=str(toy), rounds=1, target="photo", alg=alg, out=run)
    assert main(["evaluate", str(run)]) == 0
    other = write_toy(tmp_path / "other", classes=6)
    capsys.readouterr()
    assert main(["evaluate", str(run), "--features", str(other)]) == 2
    error = capsys.readouterr().err
    assert "predicts only the 4 classes" in error
    assert error.count("\n") == 1


def test_features_of_another_width_are_refused(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_toy(tmp_path / "other", dim=24)
    assert main(["evaluate", str(toy_run), "--features", str(other)]) == 2
    assert "width 24" in capsys.readouterr().err


def test_features_of_other_weights_are_refused(
    digits: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Equal widths do not make equal features."""
    run, _ = digits
    own = api.encode()
    encoder = {**own.encoder, "sha256": "0" * 64}
    save_features(replace(own, encoder=encoder), tmp_path / "other")
    words = ["evaluate", str(run), "--features", str(tmp_path / "other"), "--quiet"]
    assert main(words) == 2
    assert "other weights" in capsys.readouterr().err
    unknown = replace(own, key="0" * 16, model="another", encoder={})
    save_features(unknown, tmp_path / "unknown")
    assert main([*words[:3], str(tmp_path / "unknown")]) == 0
    assert "the same weights?" in capsys.readouterr().err


def test_images_need_the_clip_of_the_features(
    toy_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run from a feature directory knows no weights: none is taken by default."""
    (tmp_path / "image.png").write_bytes(b"")
    assert main(["predict", str(toy_run), str(tmp_path / "image.png")]) == 2
    err = capsys.readouterr().err
    assert "was trained on features of toy, not of ViT-B-32" in err
    assert "as in --model toy --pretrained FILE" in err


def test_other_classes_are_judged_by_captions_or_refused(
    digits: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = digits
    other = tmp_path / "letters"
    for domain in ("scan", "sketch"):
        for name, folder in {"0": "letter o", "1": "letter l"}.items():
            (other / domain).mkdir(parents=True, exist_ok=True)
            (other / domain / folder).symlink_to(data / domain / name)
    words = ["--dataset", "letters", "--root", str(other), "--format", "json"]
    model = ["--model", "fedclip-tiny", "--pretrained", "fedclip-tiny"]
    assert main(["evaluate", str(run), *words, *model, "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["classes"] == found["unseen_classes"] == ["letter l", "letter o"]
    api.run(algorithm="gda", target="sketch", out=tmp_path / "gda")
    assert main(["evaluate", str(tmp_path / "gda"), *words, *model, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "predicts only the 10 classes" in said
    assert "letter l" in said


def test_the_embedded_digits_need_no_folder_of_the_run(
    digits: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, data = digits
    mine = {"dataset": "mine", "root": str(data), "model": "fedclip-tiny"}
    mine |= {"pretrained": "fedclip-tiny", "algorithm": "gda", "target": "sketch"}
    api.run(**mine, out=tmp_path / "run")
    words = ["evaluate", str(tmp_path / "run"), "--dataset", "digits"]
    assert main([*words, "--format", "json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(each["images"] for each in found["domains"].values()) == 1797
