from __future__ import annotations

import pytest

from fedclip_plugin.clip.prompts import (
    TEMPLATES,
    captions,
    clean_class_name,
    prompt_templates,
)
from fedclip_plugin.config.inputs import PAPER_PROMPT, DataConfig
from fedclip_plugin.errors import ConfigError

PACS = ["dog", "elephant", "giraffe", "guitar", "horse", "house", "person"]


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("touring-bike", "touring bike"),
        ("Alarm_Clock", "alarm clock"),
        ("AlarmClock", "alarm clock"),
        ("back_pack", "back pack"),
        ("The_Eiffel_Tower", "the eiffel tower"),
        ("TV", "TV"),
        ("TVSet", "TV set"),
        ("GUITAR", "guitar"),
        ("iPhone", "iphone"),
        ("056.dog", "dog"),
        ("01-frog", "frog"),
        ("251.airplanes-101", "airplanes"),
        ("st.bernard", "st bernard"),
        ("3d_printer", "3d printer"),
        ("3.5-inch disk", "3.5 inch disk"),
        ("747", "747"),
        ("7", "7"),
        ("A", "A"),
        (" dog ", "dog"),
        ("___", "___"),
        ("c++", "c++"),
        ("vélo_électrique", "vélo électrique"),
        ("犬", "犬"),
    ],
)
def test_clean_class_name(folder: str, words: str) -> None:
    assert clean_class_name(folder) == words


def test_names_of_the_paper_and_of_digits_stay() -> None:
    assert captions(PACS, PAPER_PROMPT) == [f"a picture of a {c}" for c in PACS]
    digits = [str(d) for d in range(10)]
    assert captions(digits, "the number {}") == [f"the number {d}" for d in digits]


def test_names_that_would_come_out_alike_stay_apart() -> None:
    assert captions(["back_pack", "back-pack", "mug"], "{}") == [
        *("back_pack", "back-pack", "mug")
    ]
    assert captions(["A", "a"], "{}") == ["A", "a"]


def test_braces_in_a_class_name_are_text() -> None:
    assert captions(["{0}"], "a {}") == ["a {0}"]


@pytest.mark.parametrize(
    "prompt", ["a dog", "{} and {}", "", "a {{}}", "a {x} {}", "a {} }"]
)
def test_a_prompt_needs_one_place_for_the_class(prompt: str) -> None:
    with pytest.raises(ConfigError, match="exactly one"):
        captions(["dog"], prompt)


def test_named_templates() -> None:
    assert prompt_templates("paper") == (PAPER_PROMPT,)
    ensemble = prompt_templates("ensemble")
    assert len(set(ensemble)) == len(ensemble) >= 5
    assert DataConfig(prompts=ensemble).prompts == ensemble
    assert prompt_templates(["a {}", "paper", "a {}"]) == ("a {}", PAPER_PROMPT)
    assert all(t.count("{}") == 1 for group in TEMPLATES.values() for t in group)


def test_unknown_templates() -> None:
    with pytest.raises(ConfigError, match="did you mean ensemble"):
        prompt_templates("ensembel")
    with pytest.raises(ConfigError, match="at least one"):
        prompt_templates([])
