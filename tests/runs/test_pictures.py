"""Thumbnails of what a method corrected and broke, in the run and on its page."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from fedclip_plugin import api
from fedclip_plugin.cli import main
from fedclip_plugin.errors import RunError
from fedclip_plugin.report.records import load_run
from fedclip_plugin.report.write import write_html


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pictures") / "run"
    api.run(rounds=3, target="sketch", preset="best", algorithm="fedclip", out=out)
    return out


def test_the_most_confident_of_what_changed(run: Path) -> None:
    found = load_run(run).pictures
    summary = json.loads((run / "summary.json").read_text())
    gained = found["corrected"]["count"] - found["broken"]["count"]
    lift = summary["result"]["target"] - summary["zero_shot"]["target"]
    assert gained == round(lift * found["test"])
    assert found["corrected"]["count"] > 0
    for kind in ("corrected", "broken"):
        shown = found[kind]["shown"]
        assert len(shown) == min(12, found[kind]["count"])
        sure = [each["result"]["probability"] for each in shown]
        assert sure == sorted(sure, reverse=True)
        for each in shown:
            right, wrong = ("result", "zero_shot")
            right, wrong = (right, wrong) if kind == "corrected" else (wrong, right)
            assert each[right]["label"] == each["true"] != each[wrong]["label"]
            assert each["image"].startswith(f"sketch/{each['true']}/")
            picture = Image.open(io.BytesIO(base64.b64decode(each["thumbnail"])))
            assert max(picture.size) <= 112


def test_they_are_in_the_page_and_nothing_is_loaded(run: Path) -> None:
    page = (run / "report.html").read_text()
    found = load_run(run).pictures
    shown = found["corrected"]["shown"] + found["broken"]["shown"]
    assert len(re.findall(r'<img src="data:image/jpeg;base64,', page)) == len(shown)
    assert all(f'alt="{each["image"]}"' in page for each in shown)
    kinds = (found["corrected"], found["broken"])
    left = any(len(kind["shown"]) < kind["count"] for kind in kinds)
    assert ("most confident" in page) == left
    assert len(page) < 2_000_000
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)


def test_without_images_there_are_none(toy: Path, tmp_path: Path) -> None:
    api.run(features=str(toy), rounds=1, target="photo", out=tmp_path / "a")
    words = ["run", "--pictures", "off", "--rounds", "1", "--target", "sketch"]
    assert main([*words, "--quiet", "--out", str(tmp_path / "b")]) == 0
    for out in (tmp_path / "a", tmp_path / "b"):
        assert not (out / "pictures.json").exists()
        assert "<img" not in (out / "report.html").read_text()


@pytest.mark.parametrize("bad", ['"><script>', "x" * 50_000, 7])
def test_a_stranger_s_thumbnail_is_refused(run: Path, bad: object) -> None:
    path = run / "pictures.json"
    before = path.read_text()
    found = json.loads(before)
    found["corrected"]["shown"][0]["thumbnail"] = bad
    path.write_text(json.dumps(found))
    try:
        with pytest.raises(RunError, match=r"pictures\.json"):
            write_html(run)
    finally:
        path.write_text(before)
