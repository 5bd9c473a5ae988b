"""Names, classes and clients that are hard to write down, show, or choose by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedclip_plugin.cli import main
from fedclip_plugin.features.feature_set import FeatureSet, save_features
from fedclip_plugin.storage.files import file_names
from tests.federation.toy import toy_features, write_toy


def named(*domains: str) -> FeatureSet:
    toy = toy_features()
    image, label = (dict(zip(domains, d.values())) for d in (toy.image, toy.label))
    return replace(toy, domains=domains, image=image, label=label)


def run(features: FeatureSet | Path, out: Path, *argv: str) -> int:
    directory = out.parent / "features"
    if isinstance(features, FeatureSet):
        save_features(features, directory)
    else:
        directory = features
    common = ["--features", str(directory), "--rounds", "3", "--out", str(out)]
    return main(["run", *common, "--quiet", *argv])


@pytest.mark.parametrize(
    "domains",
    [
        ("none", "a", "b"),
        ("a\x9b", "b", "c"),
    ],
)
def test_domains_that_cannot_be_shown_are_refused_at_the_start(
    domains: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(named(*domains), tmp_path / "out") == 2
    assert "rename it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_domains_called_like_files_of_ours(tmp_path: Path) -> None:
    out = tmp_path / "out"
    features = named("target", "config.toml", "x.")
    assert run(features, out, "--personalize", "mix") == 0
    runs = json.loads((out / "summary.json").read_text())["runs"]
    assert [one["target"] for one in runs] == list(features.domains)
    assert {path.name for path in out.iterdir() if path.is_dir()} == {
        "target", "x%2E", file_names(["config.toml"], ["config.toml"])["config.toml"],
    }  # fmt: skip
    personal = list((out / "x%2E" / "seed-0" / "personal").iterdir())
    assert len(personal) == 3
    assert {path.stem.partition("%")[0] for path in personal} == {
        "config.toml", "target",
    }  # fmt: skip
    assert main(["report", str(out), "--format", "csv"]) == 0


def test_domains_that_differ_by_case_alone(tmp_path: Path) -> None:
    assert run(named("Art", "art", "b"), tmp_path / "out") == 0
    folders = [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()]
    assert len({name.casefold() for name in folders}) == 3


def test_names_of_files_are_those_of_no_other() -> None:
    names = [
        "photo", "a b", "日本", "a/b", "a%2Fb", "..", ".", ".x", "x.", "x ", "a:b",
        "config.toml", "Config.TOML", "%config.toml", "\x85", "x" * 255, "x" * 254,
    ]  # fmt: skip
    files = list(file_names(names, ("config.toml",)).values())
    assert files[:3] == names[:3]
    assert len({file.casefold() for file in files}) == len(names)
    assert all(len(file.encode()) <= 200 and "/" not in file for file in files)
    assert not {".", "..", "config.toml"} & {file.casefold() for file in files}


def test_more_classes_than_a_report_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    many = toy_features(classes=2028)
    many = replace(many, classes=tuple(f"c{i}\x85" for i in range(2028)))
    out = tmp_path / "out"
    assert run(many, out, "--target", "photo", "--dataset", "da\x9bta") == 0
    assert "2,028 classes" in capsys.readouterr().out
    assert main(["report", str(out), "--format", "html", "--quiet"]) == 0
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert not evaluation["confusion"]
    assert evaluation["classes"][1] == "c1\N{REPLACEMENT CHARACTER}"
    # as an earlier version left it
    evaluation["confusion"] = {"fedclip": [[0] * 2028] * 2028}
    evaluation["classes"] = list(many.classes)
    (out / "evaluation.json").write_text(json.dumps(evaluation))
    assert main(["report", str(out), "--format", "html", "--quiet"]) == 0


def test_without_validation_rows_the_last_round_is_taken(tmp_path: Path) -> None:
    features, out = write_toy(tmp_path / "f", rows=340), tmp_path / "out"
    argv = ("--target", "photo", "--partition", "iid", "--clients", "340")
    assert run(features, out, *argv, "--patience", "1", "--personalize", "mix") == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rounds"] == summary["best_round"] == 3
    *_, note = summary["notes"]
    assert "the last round is taken" in note
    assert "--patience 1 and --personalize mix to no effect" in note
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["mean_val"] for line in lines] == [None] * 3


def test_clients_without_validation_rows_are_counted(tmp_path: Path) -> None:
    features, out = write_toy(tmp_path / "f", rows=22), tmp_path / "out"
    argv = ("--target", "photo", "--partition", "iid", "--clients", "10")
    assert run(features, out, *argv) == 0  # four rows each, five for some
    test, note = json.loads((out / "summary.json").read_text())["notes"]
    assert test.startswith("6 of 10 clients have no test image")
    assert note.startswith("6 of 10 clients have no validation image")


def test_options_that_are_no_text_are_refused_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features, out = write_toy(tmp_path / "f"), tmp_path / "out"
    assert run(features, out, "--dataset", "a\udcff") == 2
    assert "expected text in UTF-8; rename it" in capsys.readouterr().err
    assert not out.exists()
