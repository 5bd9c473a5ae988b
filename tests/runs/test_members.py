"""Clients that join or leave after a run of gda, against runs that had them or not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fedclip_plugin as fc
from fedclip_plugin.cli import main
from fedclip_plugin.features.feature_set import FeatureSet, save_features
from fedclip_plugin.storage.tensors import read_tensors
from tests.federation.toy import DOMAINS, toy_features

OPTIONS = {"alg": "gda", "target": "none", "dataset": "toy"}


def without(features: FeatureSet, *names: str) -> FeatureSet:
    keep = tuple(d for d in features.domains if d not in names)
    parts = {"image": features.image, "label": features.label}
    return replace(
        features,
        domains=keep,
        **{k: {d: v[d] for d in keep} for k, v in parts.items()},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("members")
    whole = toy_features(rows=80)
    save_features(whole, folder / "whole")
    save_features(without(whole, "cartoon"), folder / "rest")
    save_features(without(whole, "art", "photo"), folder / "cartoon")
    for name in ("whole", "rest"):
        fc.run(features=folder / name, out=folder / f"run-{name}", **OPTIONS)
    return folder


def state(run: Path) -> dict[str, torch.Tensor]:
    return read_tensors(run / "adapter.safetensors")[0]


def assert_same(one: Path, other: Path) -> None:
    a, b = state(one), state(other)
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-6, atol=1e-6)


def sent_by_each(summary: dict[str, Any]) -> list[float]:
    ways, clients = ("bytes_up", "bytes_down"), len(summary["result"]["clients"])
    return [summary["communication"][way] / clients for way in ways]


def test_who_leaves_was_never_there(folder, tmp_path):
    summary = fc.leave(folder / "run-whole", "cartoon", out=tmp_path / "left")
    assert_same(tmp_path / "left", folder / "run-rest")
    assert set(summary["result"]["clients"]) == {"art", "photo"}
    rest = json.loads((folder / "run-rest" / "summary.json").read_text())
    assert summary["result"] == rest["result"]
    assert sent_by_each(summary) == pytest.approx(sent_by_each(rest), rel=0.01)
    (note,) = (n for n in summary["notes"] if n.startswith("members: "))
    assert note == "members: cartoon left, 48 rows"
    assert (tmp_path / "left" / "report.html").is_file()


def test_who_joins_late_is_as_if_there_from_the_start(folder, tmp_path):
    out = tmp_path / "joined"
    summary = fc.join(folder / "run-rest", features=folder / "cartoon", out=out)
    assert_same(out, folder / "run-whole")
    assert set(summary["result"]["clients"]) == set(DOMAINS)
    whole = json.loads((folder / "run-whole" / "summary.json").read_text())
    assert sent_by_each(summary) == pytest.approx(sent_by_each(whole), rel=0.1)
    with pytest.raises(fc.FedClipError, match="'cartoon' joined after the run"):
        fc.leave(out, "cartoon", out=tmp_path / "again")
    fc.leave(out, "cartoon", out=tmp_path / "again", features=folder / "cartoon")
    assert_same(tmp_path / "again", folder / "run-rest")
    back = fc.leave(out, "art", out=tmp_path / "back")
    assert len([n for n in back["notes"] if n.startswith("members: ")]) == 2
    with pytest.raises(fc.FedClipError, match="'art' is not a member of"):
        fc.leave(tmp_path / "back", "art", out=tmp_path / "twice")


def test_who_left_is_no_client_of_later_runs(folder, tmp_path):
    fc.leave(folder / "run-whole", "cartoon", out=tmp_path / "left")
    summary = fc.leave(tmp_path / "left", "art", out=tmp_path / "one")
    assert set(summary["result"]["clients"]) == {"photo"}
    back = {"features": folder / "cartoon", "out": tmp_path / "back"}
    summary = fc.join(tmp_path / "left", **back)  # and counts once, not twice
    whole = json.loads((folder / "run-whole" / "summary.json").read_text())
    found, wanted = (s["metrics"]["zero_shot"] for s in (summary, whole))
    assert found["calibration_error"] == pytest.approx(wanted["calibration_error"])


def test_by_command(folder, tmp_path, capsys):
    run, out = str(folder / "run-rest"), str(tmp_path / "out")
    words = ["join", run, "--features", str(folder / "cartoon"), "--out", out]
    assert main(words) == 0
    assert "members: cartoon joined, 48 rows" in capsys.readouterr().out
    words = ["leave", out, "--client", "cartoon", *words[2:4], "--out", f"{out}2"]
    assert main(words) == 0
    assert_same(Path(f"{out}2"), folder / "run-rest")
    assert main(["leave", out, "--client", "nobody", "--out", f"{out}3"]) == 2
    said = capsys.readouterr().err
    assert "client 'nobody' is not a member" in said
    assert "it has art, photo, cartoon" in said
    assert not Path(f"{out}3").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"classes": ("a", "b", "c", "d")}, "newcomers have other classes"),
        ({"model": "ViT-B-16"}, "newcomers have other weights: ViT-B-16"),
    ],
    ids=str,
)
def test_strangers_are_refused(folder, tmp_path, change, told):
    other = replace(without(toy_features(rows=80), "art", "photo"), **change)
    save_features(other, tmp_path / "other")
    with pytest.raises(fc.FedClipError, match=told):
        fc.join(folder / "run-rest", features=tmp_path / "other", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_weights_of_the_same_name_are_refused(folder, tmp_path):
    toy = toy_features(rows=80)
    odd = replace(without(toy, "art", "photo"), text=-toy.text)
    save_features(odd, tmp_path / "odd")
    with pytest.raises(fc.FedClipError, match="text features are others"):
        fc.join(folder / "run-rest", features=tmp_path / "odd", out=tmp_path / "out")


def test_a_member_does_not_join_twice(folder, tmp_path):
    with pytest.raises(fc.FedClipError, match="'cartoon' is a member already"):
        fc.join(folder / "run-whole", features=folder / "cartoon", out=tmp_path / "out")
    with pytest.raises(fc.FedClipError, match="'nobody' is not in these data: cartoon"):
        fc.join(
            folder / "run-rest",
            features=folder / "cartoon",
            client="nobody",
            out=tmp_path / "out",
        )


OTHERS = {
    "labels": lambda f: {"label": {d: v * 0 for d, v in f.label.items()}},
    "features": lambda f: {"image": {d: v.flip(1) for d, v in f.image.items()}},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_rows_than_were_added_are_noticed(folder, tmp_path, name):
    run = shutil.copytree(folder / "run-whole", tmp_path / "run")
    other = toy_features(rows=80)
    save_features(replace(other, **OTHERS[name](other)), tmp_path / "other")
    config = (run / "config.toml").read_text()
    config = config.replace(str(folder / "whole"), str(tmp_path / "other"))
    (run / "config.toml").write_text(config)
    with pytest.raises(fc.FedClipError, match="are not those that"):
        fc.leave(run, "cartoon", out=tmp_path / "out")


@pytest.mark.parametrize("name", ["linear", "tofa"])
def test_only_a_run_of_sums_can_change_its_members(folder, tmp_path, name):
    options = {**OPTIONS, "alg": name, "rounds": 1}
    fc.run(features=folder / "whole", out=tmp_path / name, **options)
    with pytest.raises(fc.FedClipError, match="a run of gda alone"):
        fc.leave(tmp_path / name, "art", out=tmp_path / "out")


def test_what_compression_lost_is_told(folder, tmp_path):
    run = tmp_path / "int8"
    fc.run(features=folder / "whole", out=run, compress="int8", **OPTIONS)
    summary = fc.leave(run, "cartoon", out=tmp_path / "left")
    assert any("travelled as int8" in note for note in summary["notes"])
