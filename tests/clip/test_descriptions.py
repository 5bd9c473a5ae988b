"""--prompt descriptions:FILE.json: sentences of each class instead of a template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fedclip_plugin import api
from fedclip_plugin.cli import main
from fedclip_plugin.clip.descriptions import caption_sets, unused
from fedclip_plugin.clip.encoder import EncoderSpec, FrozenClip
from fedclip_plugin.data.digits import digits_dataset
from fedclip_plugin.errors import ConfigError


def written(path: Path, **of: object) -> str:
    path.write_text(json.dumps(of))
    return f"descriptions:{path}"


def test_sets_of_captions_with_gaps(tmp_path: Path) -> None:
    prompt = written(
        tmp_path / "d.json", dog=["a {} barks", "fur"], Alarm_Clock="rings"
    )
    sets = caption_sets(["dog", "AlarmClock"], [prompt, "a {}"])
    assert sets == [["a dog barks", "rings"], ["fur", ""], ["a dog", "a alarm clock"]]


def test_what_describes_no_class_is_told(tmp_path: Path) -> None:
    of = {"dog": "barks", "Dog": "runs", "cat": "purrs", "cow": "moos"}
    prompts = ["a {}", written(tmp_path / "d.json", **of)]
    (note,) = unused(["dog", "cat"], prompts)
    assert note.endswith("describes a class twice: Dog, cow")
    assert caption_sets(["dog"], prompts[1:]) == [["barks"]]  # the first of both
    assert unused(["cow", "cat", "dog"], ["a {}"]) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"dog": ["barks"]}', "no description of the class 'cat'"),
        ('{"dog": "barks", "cat": []}', "'cat' has none"),
        ('{"dog": "barks", "cat": [1]}', "'cat' is not a text"),
        ("[]", "got a list"),
        ("{", "cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        caption_sets(["dog", "cat"], [f"descriptions:{tmp_path / 'd.json'}"])
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("own_cache")
def test_a_class_is_the_mean_of_its_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = digits_dataset().classes
    of: dict[str, object]
    of = {name: f"the digit {name}" for name in names} | {names[0]: ["round", "empty"]}
    written(tmp_path / "d.json", **of)
    features = api.encode(prompt="descriptions:d.json")  # beside the working directory
    clip = FrozenClip.load(EncoderSpec("fedclip-tiny", "fedclip-tiny"))
    own = F.normalize(clip.encode_text(["round", "empty"]), dim=1).mean(dim=0)
    torch.testing.assert_close(features.text[0], own)
    written(tmp_path / "d.json", **(of | {names[0]: "round"}))
    assert api.encode(prompt="descriptions:d.json").key != features.key


@pytest.mark.usefixtures("own_cache")
def test_a_run_predicts_and_is_evaluated_by_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = digits_dataset().classes
    prompt = written(tmp_path / "d.json", **{n: [f"digit {n}", n] for n in names})
    run = str(tmp_path / "run")
    words = ["--prompt", prompt, "--rounds", "1", "--target", "sketch", "--quiet"]
    assert main(["run", *words, "--out", run]) == 0
    assert main(["evaluate", run, "--quiet"]) == 0
    assert main(["evaluate", run, "--prompt", prompt + "x", "--quiet"]) == 2
    assert "cannot be read" in capsys.readouterr().err
    classifier = api.load_classifier(run)
    assert classifier.classes == names
    assert main(["run", "--alg", "promptfl", *words, "--out", run + "2"]) == 2
    assert "not with descriptions" in capsys.readouterr().err
