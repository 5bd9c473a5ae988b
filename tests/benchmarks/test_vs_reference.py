"""``vs-reference``: its counts, its fit, and a run with a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks.authors import round_cost as cost
from benchmarks.authors import vs_report
from benchmarks.authors.vs_reference import try_out
from benchmarks.command import ROOT
from tests.waiting import SECONDS

TARGET = "art_painting"


def run(*argv: object, home: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PERSONALIZEDFL_HOME"}
    if home is not None:
        env["PERSONALIZEDFL_HOME"] = home
    words = ["-m", "benchmarks", "vs-reference", *map(str, argv)]
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True,
        timeout=SECONDS, check=False,
    )  # fmt: skip


def test_a_round_of_the_authors_is_counted_image_by_image():
    work = cost.round_work({"a": 10, "b": 20, "c": 55, "d": 100}, "b")
    assert work.train == 6 + 32 + 60  # of 33 the last batch of one is skipped
    assert work.calls == (6, 2, 33, 11, 60, 20, 2, 20, 11, 20)
    full = cost.round_work(cost.PACS, TARGET)
    assert sum(cost.PACS.values()) == 9991
    assert full.encoded == 14_752  # 4,765 trained on, 9,987 evaluated


def test_rates_are_recovered_and_noise_is_left_out():
    work = cost.round_work(dict.fromkeys("abcd", 140), "a")
    true = cost.Rates(train=0.08, evaluate=0.05, call=0.3)
    steps = [true.evaluate * n + true.call for n in work.calls]
    steps[0] += true.train * work.train
    slow = [2 * s for s in steps]
    fitted = cost.fit_rates(cost.typical([slow, steps], "min"), work)
    assert fitted.train == pytest.approx(true.train)
    assert fitted.evaluate == pytest.approx(true.evaluate)
    assert fitted.call == pytest.approx(true.call)
    assert fitted.seconds(work) == pytest.approx(sum(steps))
    with pytest.raises(ValueError, match="3 steps"):
        cost.fit_rates(steps[:3], work)


def test_steps_are_read_off_the_authors_lines():
    lines = [
        (1.0, "clip: stand-in"),
        (5.0, "============ Train epoch 0 ============"),
        (9.0, " Site-1| Train Acc: 0.5000"),
        (9.5, " Site-1| Val  Acc: 0.5000"),
        (10.0, " Test site-0| Test Acc: 0.4000"),
        (11.0, "============ Train epoch 1 ============"),
        (14.0, " Site-1| Train Acc: 0.5000"),
        (15.0, "best test acc: 0.4000"),
    ]
    assert cost.round_steps(lines) == [[4.0, 0.5, 0.5], [3.0]]


def test_missing_rounds_count_as_the_median_one():
    assert cost.longer(10.0, {"a": [1, 2, 9], "b": [3, 3, 3]}, 5) == 10 + 2 * 2 + 2 * 3


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[object]:
    """The options of ``--quick``: a tiny model, ten images of each domain."""
    words: list[object] = []
    for name, value in try_out(tmp_path_factory.mktemp("vs")).items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, value]
    return words


@pytest.fixture(scope="module")
def measured(inputs, tmp_path_factory) -> tuple[dict, str]:
    """One run: results and page; of both sides where the authors' code is at hand."""
    out = tmp_path_factory.mktemp("out")
    done = run(*inputs, "--out", out, home=os.environ.get("PERSONALIZEDFL_HOME"))
    assert done.returncode == 0, done.stderr
    page = (out / "vs_reference.md").read_text()
    assert page.strip() == done.stdout.strip()
    return json.loads((out / "vs_reference.json").read_text()), page


@pytest.mark.slow
def test_own_side(measured):
    results, _ = measured
    assert results["sizes"][TARGET] == 10
    assert [results[p][0]["encoded"] for p in ("auto", "fp32")] == [48, 40]
    for precision in ("auto", "fp32"):
        side = results["result"][precision]["min"]
        assert 0 < side["encode"] < side["one"] < side["all"]
    alone = {**results, "authors": []}
    page = vs_report.markdown({**alone, "result": vs_report.extrapolate(alone)})
    assert "not measured" in page
    assert "times less" not in page


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("PERSONALIZEDFL_HOME"),
    reason="PERSONALIZEDFL_HOME is not set: a checkout of the authors' code",
)
def test_both_sides(measured):
    results, page = measured
    assert len(results["authors"][0]) == 10
    authors = results["result"]["authors"]["min"]
    assert authors["measured_round"] > 0
    assert authors["all"] > authors["one"] > 0
    assert "times less" in page


def test_bad_usage_is_one_line(inputs, tmp_path):
    done = run("--images", tmp_path / "nowhere", "--out", tmp_path)
    assert done.returncode == 2
    assert "nowhere" in done.stderr.splitlines()[-1]
    done = run(*inputs, "--out", tmp_path, home=str(tmp_path))
    assert done.returncode != 0
    assert "PERSONALIZEDFL_HOME" in done.stderr.splitlines()[-1]
