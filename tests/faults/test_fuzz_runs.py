"""A stranger's run, shown: spoilt files give one line or a table."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks.faults import fuzz_runs as fuzz
from fedclip_plugin.errors import FedClipError
from fedclip_plugin.report.write import write_html
from tests.faults.fuzzing import few, quiet  # noqa: F401

# ------------------------------------------------------------- a stranger's run, shown

ANY = st.sampled_from(
    [
        *(None, True, -1, 0, 2**70, 1e308, math.nan, "", "x" * 20_000, "\x1b[2J"),
        *([], {}, [[]], {"a": []}, {"": None}, [1, 2], ["\ud800"], "<b>bold</b>"),
    ]
)


@st.composite
def spoilt(draw: st.DrawFn, value: Any) -> Any:
    """JSON of which one place is another value, or gone."""
    value = copy.deepcopy(value)
    place = value
    while True:
        if not isinstance(place, (dict, list)) or not place:
            return draw(ANY)
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        inner = place[key]
        if isinstance(inner, (dict, list)) and inner and draw(st.booleans()):
            place = inner
            continue
        if draw(st.booleans()):
            place[key] = draw(ANY)
        else:
            del place[key]
        return value


def write_run(folder: Any, **changed: Any) -> Any:
    leaf = folder / "leaf"
    leaf.mkdir(exist_ok=True)
    parts = {"summary": fuzz.SUMMARY, "metrics": fuzz.ROUND}
    parts |= {"evaluation": fuzz.EVALUATION, **changed}
    for name, value in parts.items():
        ending = "jsonl" if name == "metrics" else "json"
        (leaf / f"{name}.{ending}").write_text(json.dumps(value))
    return leaf


@pytest.mark.parametrize(
    ("part", "sound"),
    [
        ("summary", fuzz.SUMMARY),
        ("metrics", fuzz.ROUND),
        ("evaluation", fuzz.EVALUATION),
    ],
)
def test_a_report_of_spoilt_files_is_one_line_or_a_table(part, sound, tmp_path):
    @few
    @given(spoilt(sound))
    @example({**sound, "round": 2**60})
    def check(value: Any) -> None:
        leaf = write_run(tmp_path, **{part: value})
        try:
            told = fuzz.show(leaf)
        except FedClipError as error:
            told = str(error) + "\n"
            assert told.count("\n") == 1
        assert "\x1b" not in told

    check()


def test_names_in_the_page_are_texts(tmp_path):
    hostile = "<script>alert(1)</script>"
    scores = {"target": 0.5, "clients": {hostile: 0.5}, "mean": 0.5}
    summary = {**fuzz.SUMMARY, "dataset": hostile, "variant": hostile}
    summary |= {"zero_shot": scores, "result": scores, "target": hostile}
    evaluation = {**fuzz.EVALUATION, "classes": [hostile, "b"]}
    leaf = write_run(tmp_path, summary=summary, evaluation=evaluation)
    page = write_html(leaf).read_text(encoding="utf-8")
    assert "alert(1)" in page
    assert "<script>alert" not in page
