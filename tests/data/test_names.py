"""--class-names: what class folders that are codes are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedclip_plugin.cli import main
from fedclip_plugin.data.folders import load_dataset
from fedclip_plugin.errors import ConfigError

CODES = ("n01440764", "n01443537")
JSON = '{"n01440764": "tench", "n01443537": "goldfish"}'


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for domain in ("lake", "tank"):
        for code in CODES:
            (tmp_path / "data" / domain / code).mkdir(parents=True)
            for i in range(5):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                image = Image.fromarray(pixels)
                image.save(tmp_path / "data" / domain / code / f"{i}.png")
    return tmp_path / "data"


def named(coded: Path, text: str) -> tuple[str, ...]:
    file = coded.parent / "names"
    file.write_text(text, encoding="utf-8-sig")
    dataset = load_dataset("fish", str(coded), class_names=str(file))
    assert [len(domain.files) for domain in dataset.domains] == [10, 10]
    assert not any("look like codes" in note for note in dataset.notes)
    return dataset.classes


@pytest.mark.parametrize(
    "text",
    [
        JSON,
        "n01440764 tench\nn01443537 goldfish\n",
        "# folder, name\nn01443537, goldfish\n\nn01440764,tench",
        'n01440764\ttench\nn01443537\t"goldfish"',
    ],
)
def test_json_and_two_columns(coded: Path, text: str) -> None:
    assert named(coded, text) == ("tench", "goldfish")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"n01440764": "tench"}', "no name for the class folder 'n01443537'"),
        ("n01440764 tench\nn01443537 tench", "the name 'tench' twice"),
        (f"{CODES[0]} a\n{CODES[1]} b\n{CODES[0]} c", "the folder 'n01440764' twice"),
        (f'{{"{CODES[0]}": "a", "{CODES[0]}": "b", "{CODES[1]}": "c"}}', "twice"),
        ("n01440764\nn01443537 b", "'n01440764' has no name"),
        ("", "is empty"),
        ("{1", "cannot be read"),
    ],
)
def test_what_is_wrong_is_one_line(coded: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        named(coded, text)
    assert "\n" not in str(error.value)


def test_folders_that_are_not_there_are_told(coded: Path, tmp_path: Path) -> None:
    file = tmp_path / "all"
    file.write_text("\n".join([*(f"{c} {c[-2:]} x" for c in CODES), "n1 great white"]))
    dataset = load_dataset("fish", str(coded), class_names=str(file))
    assert dataset.classes == ("64 x", "37 x")
    assert any("folders that are not there: n1" in note for note in dataset.notes)


def test_features_have_their_captions_already(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names").write_text(JSON)
    words = ["run", "--features", str(toy), "--class-names", str(tmp_path / "names")]
    assert main(words) == 2
    assert "fedclip features" in capsys.readouterr().err
