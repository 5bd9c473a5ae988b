"""Which classes are chosen, and how they are halved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedclip_plugin.data.classes import PRESETS, halves, listed, of_classes
from fedclip_plugin.data.dataset import ImageDataset, ImageDomain
from fedclip_plugin.errors import ConfigError, DataError

CLASSES = ("bird", "cat", "dog", "ice_cream", "zebra")


def test_names_in_any_spelling_keep_the_order_of_the_data_set() -> None:
    assert listed(CLASSES, ()) == CLASSES
    assert listed(CLASSES, ("zebra", "Ice Cream")) == ("ice_cream", "zebra")
    assert listed(CLASSES, ("dog,cat",)) == ("cat", "dog")
    assert listed(CLASSES, ("base",)) == CLASSES
    assert listed((*CLASSES, "a, b"), ("a, b",)) == ("a, b",)


def test_files_and_presets(tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("dog\n\nbird\n")
    (tmp_path / "some.json").write_text(json.dumps(["zebra", "cat"]))
    assert listed(CLASSES, (str(tmp_path / "some.txt"),)) == ("bird", "dog")
    assert listed(CLASSES, (str(tmp_path / "some.json"),)) == ("cat", "zebra")
    ten = PRESETS["domainnet-10"]
    assert len(ten) == 10
    assert listed([*ten, "zigzag"], ("domainnet-10",)) == ten
    assert listed([*ten, "zigzag"], ("domainnet-10,base",)) == ten
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(ConfigError, match="is empty"):
        listed(CLASSES, (str(tmp_path / "none.txt"),))
    (tmp_path / "bad.json").write_text("[1, 2]")
    with pytest.raises(ConfigError, match="expected names"):
        listed(CLASSES, (str(tmp_path / "bad.json"),))


def test_an_unknown_class_is_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"--classes zebras: no such class.*zebra"):
        listed(CLASSES, ("zebras",))
    with pytest.raises(ConfigError, match="did you mean dog,cat"):
        listed(CLASSES, ("dog cat",))
    for missing in ("lists/birds", "birds.txt"):
        with pytest.raises(ConfigError, match="no such file, and no such class"):
            listed(CLASSES, (missing,))


def test_base_is_the_larger_half() -> None:
    base = ("bird", "cat", "dog"), ("ice_cream", "zebra")
    assert halves(CLASSES, ("base",)) == base
    assert halves(CLASSES, ("Novel",)) == base[::-1]
    assert halves(CLASSES, ("dog", "cat")) is None
    assert halves(CLASSES, ("domainnet-10, base",)) == base
    with pytest.raises(ConfigError, match="give one of both"):
        halves(CLASSES, ("base", "novel"))
    with pytest.raises(ConfigError, match="there is only dog"):
        halves(("dog",), ("base",))


def make_dataset() -> ImageDataset:
    labels = np.array([0, 1, 2, 3, 4, 2])
    files = tuple(f"d/{i}.png" for i in range(6))
    domain = ImageDomain("d", files, labels, lambda i: str(i).encode(), str)
    return ImageDataset("toy", CLASSES, (domain,))


def test_images_of_other_classes_are_left_out() -> None:
    (domain,) = of_classes(make_dataset(), ("dog", "zebra")).domains
    assert domain.files == ("d/2.png", "d/4.png", "d/5.png")
    assert domain.labels.tolist() == [0, 1, 0]
    assert domain.stat is not None
    assert [domain.read(i) for i in range(3)] == [b"2", b"4", b"5"]
    assert [domain.stat(i) for i in range(3)] == ["2", "4", "5"]
    assert of_classes(make_dataset(), CLASSES).domains[0].files[0] == "d/0.png"


def test_a_domain_without_any_of_them_is_refused() -> None:
    dataset = make_dataset()
    labels = np.zeros(6, dtype=np.int64)
    (domain,) = dataset.domains
    empty = ImageDomain("d", domain.files, labels, domain.read)
    with pytest.raises(DataError, match="no image of the chosen --classes"):
        of_classes(ImageDataset("toy", CLASSES, (empty,)), ("dog",))
