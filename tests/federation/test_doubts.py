"""What a protocol could not meet is told, in the run and before it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedclip_plugin.cli import main
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.features.feature_set import save_features
from fedclip_plugin.federation.build import build_federation
from fedclip_plugin.federation.doubts import doubts
from tests.federation.toy import name_images, toy_features, write_split


def told(classes: int = 4, **data: object) -> list[str]:
    features = toy_features(classes=classes)
    config = DataConfig(**data)  # type: ignore[arg-type]
    fed = build_federation(features, RunConfig(data=config), None, 0)
    return list(doubts(fed.clients, features, config))


def test_a_sound_run_has_no_note() -> None:
    assert told() == []
    assert told(shots=2) == []
    few = {"partition": "classes", "classes_per_client": 1, "clients": 4}
    assert told(**few, shots=2) == []  # a class that a client has not, it lacks by plan


def test_classes_with_fewer_than_the_shots_are_counted() -> None:
    (note,) = told(shots=1000)
    assert note.startswith("--shots 1000: in 12 of 12 cases a client has fewer")
    assert "art has " in note
    assert "of 'class0'" in note
    assert note.endswith("and 10 more")
    features, data = toy_features(), DataConfig(shots=9)
    fed = build_federation(features, RunConfig(data=data), None, 0)
    counts = [c.train.y.bincount(minlength=4) for c in fed.clients]
    few = sum(int((count < 9).sum()) for count in counts)
    assert 0 < few < 12
    (note,) = doubts(fed.clients, features, data)
    assert f"in {few} of 12 cases" in note


def test_clients_without_images_are_counted() -> None:
    training, test = told(partition="iid", clients_per_domain=60)
    assert training.startswith("180 of 180 clients have no training image")
    assert test.startswith("180 of 180 clients have no test image")
    assert told(partition="iid", clients_per_domain=10) == []


def test_nothing_is_said_of_clients_that_are_not_known_here() -> None:
    assert list(doubts((), toy_features(), DataConfig(shots=1000))) == []


@pytest.mark.parametrize(
    ("words", "notes"),
    [
        (["--classes", "class1"], ["class1 is the only class: every"]),
        (["--classes", "class1,class2,base"], ["class2 is the only unseen class"]),
        (["--shots", "500"], ["--shots 500: in "]),
        (["--partition", "iid", "--clients", "120"], ["train on nothing"]),
    ],
    ids=["class", "unseen", "shots", "clients"],
)
def test_run_and_dry_run_tell(
    words: list[str], notes: list[str], toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["run", "--features", str(toy), "--target", "none", "--rounds", "1", *words]
    assert main([*line, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert main([*line, "--out", "run", "--quiet"]) == 0
    written = json.loads(Path("run", "summary.json").read_text())["notes"]
    for note in notes:
        assert note in shown
        assert any(note in line for line in written)


def test_images_outside_a_split_are_told_before_the_run(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = name_images(toy)
    split = write_split(tmp_path / "split.json", features)
    line = ["run", "--features", str(toy), "--target", "none", "--dry-run"]
    assert main([*line, "--split", split]) == 0
    assert "are not in it" not in capsys.readouterr().out
    parts = json.loads(Path(split).read_text())
    Path(split).write_text(json.dumps(parts | {"val": []}))
    assert main([*line, "--split", split]) == 0
    told = " images of the clients' domains are not in it"
    assert f"45 of the 180{told}" in capsys.readouterr().out
    held_out = [*line[:-2], "photo", "--dry-run"]
    assert main([*held_out, "--split", split]) == 0
    assert f"30 of the 120{told}" in capsys.readouterr().out


def test_evaluate_tells_of_one_class(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["run", "--features", str(toy), "--rounds", "1", "--target", "none"]
    assert main([*line, "--out", "run", "--quiet"]) == 0
    words = ["--features", str(toy), "--classes", "class1"]
    assert main(["evaluate", "run", *words]) == 0
    shown = capsys.readouterr()
    assert "class1 is the only class" in " ".join((shown.out + shown.err).split())


def test_a_class_of_a_stranger_moves_no_cursor(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = "odd\x1b[2J"
    stranger = replace(toy_features(), classes=(odd, "b", "c", "d"))
    save_features(stranger, tmp_path / "odd")
    words = ["--features", str(tmp_path / "odd"), "--classes", odd]
    assert main(["run", *words, "--target", "none", "--dry-run"]) == 0
    line = ["run", "--features", str(toy), "--rounds", "1", "--target", "none"]
    assert main([*line, "--out", "run", "--quiet"]) == 0
    assert main(["evaluate", "run", *words]) == 0
    shown = capsys.readouterr()
    assert "is the only class" in shown.out
    assert "is the only class" in shown.err
    assert "\x1b" not in shown.out + shown.err


@pytest.mark.parametrize("more", [[], ["--dry-run"]], ids=["run", "dry run"])
def test_rounds_that_train_on_nothing_are_refused(
    more: list[str], toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--target", "none", "--partition", "iid", "--clients", "180", "--quiet"]
    line = ["run", "--features", str(toy), *words, *more]
    assert main([*line, "--out", "out"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "none of the 180 clients has a training image for --alg fedclip" in said
    assert not Path("out", "summary.json").exists()
    assert main([*line, "--out", "zero", "--alg", "zeroshot"]) == 0
