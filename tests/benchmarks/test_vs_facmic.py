"""``vs-facmic``: a step of the released code beside ours, where a checkout is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from benchmarks.command import ROOT
from tests.waiting import SECONDS


def run(*argv: object, home: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "FACMIC_HOME"}
    if home is not None:
        env["FACMIC_HOME"] = home
    words = ["-m", "benchmarks", "vs-facmic", *map(str, argv)]
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True,
        timeout=SECONDS, check=False,
    )  # fmt: skip


def test_without_a_checkout_one_line_says_so(tmp_path):
    done = run("--out", tmp_path, home=str(tmp_path))
    assert done.returncode != 0
    assert "FACMIC_HOME" in done.stderr.splitlines()[-1]
    done = run("--quick")
    assert done.returncode != 0
    assert "FACMIC_HOME is not set" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(
    not os.environ.get("FACMIC_HOME"),
    reason="FACMIC_HOME is not set: a checkout of AIPMLab/FACMIC",
)
def test_the_released_step_is_ours(tmp_path):
    done = run("--quick", "--out", tmp_path, home=os.environ["FACMIC_HOME"])
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "vs_facmic.json").read_text())["rows"]
    assert [row["steps"] for row in rows] == [1, 3]
    for row in rows:
        assert row["moved"] > 1e-5
        assert row["apart"] < 1e-5
