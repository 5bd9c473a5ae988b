from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fedclip_plugin.data.dataset import KNOWN
from fedclip_plugin.data.doubts import seen_twice
from fedclip_plugin.data.folders import load_dataset
from fedclip_plugin.data.images import decode_image
from fedclip_plugin.errors import DataError
from tests.data.test_folders import PACS, make_set


def notes(root: Path, name: str = "mine") -> str:
    return "\n".join(load_dataset(name, str(root)).notes)


def fill(folder: Path, pixels: np.ndarray) -> None:
    for path in folder.rglob("*.jpg"):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        path.unlink()
        path.with_suffix(".png").write_bytes(buffer.getvalue())


@pytest.mark.parametrize("code", ["n01440764", "17", "class_3", "c0", "0a1b2c3d4e5f"])
def test_codes_are_told_with_the_remedy(tmp_path: Path, code: str) -> None:
    make_set(tmp_path, ("a", "b"), f"{code} dog")
    assert f"1 of 2 classes look like codes: {code}; " in notes(tmp_path)
    assert "rename the folders to words" in notes(tmp_path)


def test_words_are_no_codes(tmp_path: Path) -> None:
    make_set(tmp_path, ("a", "b"), "dog 056.frog MP3 747-400 A380 facade Alarm_Clock")
    assert notes(tmp_path) == ""


def test_a_published_set_that_is_not_whole(tmp_path: Path) -> None:
    make_set(tmp_path, PACS)
    assert "pacs: 16 images found, 9,991 are published" in notes(tmp_path, "pacs")
    assert notes(tmp_path, "my-pacs") == ""
    some = load_dataset("pacs", str(tmp_path), ["photo"])
    assert some.notes == ()


def test_every_published_size_is_known() -> None:
    sizes = {name: known.images[0] for name, known in KNOWN.items()}
    assert sizes == {
        "pacs": 9_991,
        "vlcs": 10_729,
        "officehome": 15_588,
        "office31": 4_110,
        "office_caltech": 2_533,
        "terra_incognita": 24_788,
        "domainnet": 586_575,
    }


def test_twelve_of_sixteen_bits_are_seen_and_told(tmp_path: Path) -> None:
    make_set(tmp_path, ("a", "b"))
    fill(tmp_path / "a", np.array([[0, 2048, 4095]], dtype=np.uint16))
    fill(tmp_path / "b", np.array([[0, 2048, 65535]], dtype=np.uint16))
    dataset = load_dataset("x", str(tmp_path))
    assert len(dataset.notes) == 1
    assert "a: of 4 images looked at, 4 use 12 of 16 bits" in dataset.notes[0]
    image = decode_image(dataset.domains[0].read(0), "x")
    assert np.asarray(image)[0, :, 0].tolist() == [0, 128, 255]


def test_nearly_black_images_are_told(tmp_path: Path) -> None:
    make_set(tmp_path, ("a", "b"))
    fill(tmp_path / "a", np.full((8, 8, 3), 15, dtype=np.uint8))
    assert "a: of 4 images looked at, 4 are nearly black" in notes(tmp_path)


@pytest.mark.parametrize("kind", ["text", "compressed", "international", "profile"])
def test_what_is_written_into_a_png_does_not_spoil_its_pixels(kind: str) -> None:
    image = Image.new("RGB", (4, 4), (1, 2, 3))
    info, profile = PngImagePlugin.PngInfo(), None
    if kind == "profile":
        profile = b"x" * 3_000_000
    elif kind == "international":
        info.add_itxt("Comment", "x" * 3_000_000, zip=True)
    else:
        for _ in range(40):
            info.add_text("Comment", "x" * 2_000_000, zip=kind == "compressed")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, icc_profile=profile)
    assert decode_image(buffer.getvalue(), "x").getpixel((0, 0)) == (1, 2, 3)
    with pytest.raises(DataError, match=r"decode image x: .*skip"):
        decode_image(buffer.getvalue()[:-40], "x")


def test_splits_of_one_data_set_are_no_domains(tmp_path: Path) -> None:
    make_set(tmp_path, ("Train", "val"), "cat dog")
    assert "Train, val are taken as domains" in notes(tmp_path)
    assert "--partition iid" in notes(tmp_path)
    make_set(tmp_path / "one", ("photo", "test"), "cat dog")
    assert "taken as domains" not in notes(tmp_path / "one")


def test_images_of_two_domains_are_counted(tmp_path: Path) -> None:
    make_set(tmp_path, ("a", "b"), "cat dog")
    found = load_dataset("mine", str(tmp_path))
    digests = [["1", "2", ""], ["2", "3", ""]]
    (note,) = seen_twice(found, digests)
    assert note.startswith("1 images of a are also images of b")
    assert list(seen_twice(found, [["1"], ["2"]])) == []
