"""What lies beside the data: it is passed over and told, and nothing stops a run."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from fedclip_plugin.data.folders import load_dataset
from fedclip_plugin.errors import DataError
from tests.data.test_folders import PACS, make_set, names, put


def told(*parts: str, notes: tuple[str, ...]) -> bool:
    return any(all(part in note for part in parts) for note in notes)


@pytest.mark.parametrize("name", ["mine", "pacs"])
def test_what_is_no_part_of_the_data_is_passed_over_and_told(
    tmp_path: Path, name: str
) -> None:
    root = make_set(tmp_path / "plain", PACS)
    plain = load_dataset(name, str(root))
    make_set(tmp_path / "Z", PACS)
    root = tmp_path / "Z"
    put(root, "runs/fedclip-1/config.toml", "@eaDir/x.png/THUMB.png", "docs/1.png")
    put(root, "lost+found/a/1.jpg", "$RECYCLE.BIN/S-1/1.jpg", "annotations/x/a.xml")
    put(root, "System Volume Information/a/1.jpg", "#recycle/a/1.jpg")
    put(root, "__pycache__/a.pyc", "venv/lib/site-packages/icon.png")
    put(root, "photo/cat/@eaDir/1.jpg/THUMB.jpg", "photo/lost+found/1.jpg")
    put(root, "sketch/runs/sketch/seed-0/config.toml", "cartoon/cat/Thumbs.db")
    found = load_dataset(name, str(root))
    assert [d.files for d in found.domains] == [d.files for d in plain.domains]
    assert found.classes == plain.classes
    assert told("system", "$RECYCLE.BIN", "@eaDir (2)", notes=found.notes)
    assert told("no part of the data", "annotations, docs, runs", notes=found.notes)
    assert not told("left out", notes=found.notes)


def test_a_domain_without_images_is_no_stray(tmp_path: Path) -> None:
    make_set(tmp_path, ("a", "b"))
    put(tmp_path, "c/cat/1.avif", "c/dog/2.avif")
    with pytest.raises(DataError, match=r"c holds no image file, but 2 \.avif"):
        load_dataset("x", str(tmp_path))


def test_one_domain_beside_another_shape_is_not_guessed(tmp_path: Path) -> None:
    make_set(tmp_path, ("a",))
    make_set(tmp_path, ("b",), "chat chien")
    with pytest.raises(DataError, match="class folders differ"):
        load_dataset("x", str(tmp_path))


def test_folders_of_other_files_are_no_classes(tmp_path: Path) -> None:
    make_set(tmp_path, ("a", "b"))
    put(tmp_path, "a/labels/1.xml", "b/labels/1.xml", "a/extra/notes.txt")
    dataset = load_dataset("x", str(tmp_path))
    assert dataset.classes == ("cat", "dog")
    assert told("a/extra, a/labels, b/labels", notes=dataset.notes)


def test_other_suffixes_are_read_or_counted(tmp_path: Path) -> None:
    make_set(tmp_path, ("a", "b"))
    put(tmp_path, "a/cat/3.jfif", "a/cat/4.JPE", "a/cat/5.gif", "b/cat/6.GIF")
    put(tmp_path, "b/dog/7.heic", "b/dog/8", "a/9.jpg")
    put(tmp_path, "b/dog/.10.jpg.icloud", "b/dog/.hidden.gif")
    dataset = load_dataset("x", str(tmp_path))
    assert "a/cat/3.jfif" in dataset.domains[0].files
    assert len(dataset.domains[0].files) == 6
    kinds = ("left out: 2 .gif, 1 ", "1 .heic", "1 .icloud", "1 without")
    assert told(*kinds, notes=dataset.notes)
    assert told("1 images beside the class folders of a", notes=dataset.notes)


def test_links_in_circles_end(tmp_path: Path) -> None:
    make_set(tmp_path, ("a", "b"))
    (tmp_path / "a" / "cat" / "to").symlink_to(tmp_path / "b" / "cat")
    (tmp_path / "b" / "cat" / "back").symlink_to(tmp_path / "a" / "cat")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "disk").symlink_to(tmp_path / "unmounted")
    dataset = load_dataset("x", str(tmp_path))
    assert names(dataset) == ("a", "b")
    assert len(dataset.domains[0].files) == 6
    assert told("disk (a link that leads nowhere), self", notes=dataset.notes)


@pytest.mark.parametrize("kind", ["link", "circle", "pipe", "socket", "device", "huge"])
def test_whatever_lies_where_an_image_should(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a/cat/2.jpg")
    monkeypatch.chdir(tmp_path / "a" / "cat")  # the name of a socket is a short one
    reasons = {
        "link": "a link that leads nowhere",
        "circle": "Too many levels",
        **dict.fromkeys(("pipe", "socket", "device"), "not a file"),
        "huge": "bytes are too many",
    }
    if kind == "pipe":
        os.mkfifo("1.jpg")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("1.jpg")
    elif kind == "huge":
        Path("1.jpg").touch()
        os.truncate("1.jpg", 3 << 30)
    else:
        targets = {"link": "gone", "circle": "1.jpg", "device": os.devnull}
        Path("1.jpg").symlink_to(targets[kind])
    domain = load_dataset("x", str(tmp_path)).domains[0]
    assert domain.stat is not None
    for look in (domain.read, domain.stat):
        with pytest.raises(DataError, match=rf"1\.jpg: .*{reasons[kind]}.*skip"):
            look(0)
    assert domain.read(1) == b"image a/cat/2.jpg"
