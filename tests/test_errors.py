"""Suggestions for names, and other libraries' errors in one line."""

from __future__ import annotations

import pytest

from fedclip_plugin.errors import did_you_mean, one_line


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("skech", "; did you mean sketch?"),
        ("Art Painting", "; did you mean art_painting?"),
        ("qqq", ""),
    ],
)
def test_a_close_name_is_suggested(name: str, hint: str) -> None:
    assert did_you_mean(name, ("art_painting", "photo", "sketch")) == hint


def test_several_names_are_suggested_where_asked_for() -> None:
    hint = did_you_mean("ViT-B/30", ("ViT-B-32", "ViT-B-16", "RN50"), most=2)
    assert hint == "; did you mean ViT-B-32 or ViT-B-16?"


def test_an_error_is_one_line() -> None:
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert len(one_line(ValueError("x " * 500))) <= 200
