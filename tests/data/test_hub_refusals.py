"""Rows and files from the hub that cannot be used, and folders that are not ours."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from fedclip_plugin.data.folders import load_dataset  # noqa: E402
from fedclip_plugin.data.hub import materialise  # noqa: E402
from fedclip_plugin.errors import DataError, RunError  # noqa: E402
from tests.data.parquet_files import (  # noqa: E402, F401
    CLASSES,
    PACS,
    json_copy,
    picture,
    rows,
    two_shards,
    write,
)


def write_named(path: Path, name: str, kind: str) -> Path:
    """A row whose domain or label has this name, or whose class is declared so."""
    row = rows(1)[0]
    if kind == "declared":
        return write(path, [row], {"label": [name]})
    return write(path, [{**row, "label": "dog", kind: name}], label=pa.string())


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("../up", "-up"),
        (".hidden", "hidden"),
        ("TV/Monitor", "TV-Monitor"),
        ("a\\b", "a-b"),
        ("C:", "C-"),
        ("aux", "aux-"),
        ("lost+found", "lost+found-"),
        ("犬" * 100, "犬" * 50),
    ],
)
@pytest.mark.parametrize("kind", ["domain", "label", "declared"])
def test_names_become_folders_and_classes_keep_them(
    tmp_path: Path, name: str, folder: str, kind: str
) -> None:
    source = write_named(tmp_path / "x.parquet", name, kind)
    materialise("mine", tmp_path / "out", source)
    assert {p.name for p in tmp_path.iterdir()} == {"out", "x.parquet"}
    dataset = load_dataset("mine", str(tmp_path / "out"))
    if kind == "domain":
        assert [domain.name for domain in dataset.domains] == [folder]
    else:
        assert dataset.classes == (name,)
        assert dataset.domains[0].files[0].split("/")[1] == folder


def test_names_that_become_alike_stay_apart(tmp_path: Path) -> None:
    names = ["a/b", "a-b", "a:b"]
    values = [{**rows(1)[0], "label": name} for name in names]
    source = write(tmp_path / "x.parquet", values, label=pa.string())
    materialise("mine", tmp_path / "out", source)
    materialise("mine", tmp_path / "out", source)
    assert sorted(load_dataset("mine", str(tmp_path / "out")).classes) == sorted(names)


@pytest.mark.parametrize("name", ["..", "", " . "])
@pytest.mark.parametrize("kind", ["domain", "label", "declared"])
def test_names_of_which_nothing_is_left(tmp_path: Path, name: str, kind: str) -> None:
    source = write_named(tmp_path / "x.parquet", name, kind)
    with pytest.raises(DataError, match="no usable row; 1 rows left out: expected tex"):
        materialise("mine", tmp_path / "out", source)
    assert not (tmp_path / "out").exists()


def test_paths_in_rows_cannot_leave_the_folder(tmp_path: Path) -> None:
    values = [json_copy(rows(1)[0], path) for path in ("../../a.jpg", "..", "/b.jpg")]
    materialise("x", tmp_path / "out", write(tmp_path / "x.parquet", values))
    folder = tmp_path / "out" / "art_painting" / "0"
    assert sorted(p.name for p in folder.iterdir()) == ["000001.jpg", "a.jpg", "b.jpg"]


def test_rows_that_cannot_be_used_are_counted_and_left_out(tmp_path: Path) -> None:
    good = rows(1)[0]
    bad = {
        "label 9 is not one of 3": {**good, "label": 9},
        "label -1 is not one of 3": {**good, "label": -1},
        "expected text or a number as label, got None": {**good, "label": None},
        "only a path": {**good, "image": {"bytes": None, "path": "x.jpg"}},
        "not JPEG, PNG": {**good, "image": {"bytes": picture(1, "GIF"), "path": None}},
        "nothing for an image": {**good, "image": None},
    }
    for index, (message, row) in enumerate(bad.items()):
        source, out = tmp_path / f"{index}.parquet", tmp_path / str(index)
        write(source, [row] * 2, {"label": CLASSES})
        with pytest.raises(DataError, match=f"no usable row; 2 rows.*{message}"):
            materialise("pacs", out, source)
        assert not out.exists()
        write(source, [row, good, row], {"label": CLASSES})
        done = materialise("pacs", out, source)
        assert done.images == 1
        assert len(done.notes) == 1
        assert done.notes[0].startswith("2 rows left out: ")
        assert message in done.notes[0]
        assert materialise("pacs", out).written == 0


def test_nothing_is_made_without_a_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        materialise("pacs", tmp_path / "out", tmp_path / "gone")
    assert not (tmp_path / "out").exists()


def test_folders_beside_the_domains_stay_as_they_are(
    tmp_path: Path, parquet: Path
) -> None:
    out = tmp_path / "out"
    materialise("pacs", out, parquet)
    theirs = out / "runs" / "photo"
    theirs.mkdir(parents=True)
    (out / "photo" / "masks").mkdir()
    materialise("pacs", out, parquet)
    assert [path.name for path in (out / "runs").iterdir()] == ["photo"]
    assert not (out / "sketch" / "masks").exists()


def test_scraps_of_others_stay(tmp_path: Path, parquet: Path) -> None:
    theirs = tmp_path / "out" / ".notes.tmp"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    materialise("pacs", tmp_path / "out", parquet)
    assert theirs.read_text() == "mine"


def test_files_that_cannot_be_used(tmp_path: Path, parquet: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="does not exist"):
        materialise("pacs", out, tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no \*\.parquet"):
        materialise("pacs", out, tmp_path / "empty")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(DataError, match="not a parquet file") as caught:
        materialise("pacs", out, tmp_path / "text.parquet")
    assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"image": [b"x"], "label": [1]}), tmp_path / "y")
    with pytest.raises(DataError, match=r"no domain column \(has image, label"):
        materialise("pacs", out, tmp_path / "y")
    with pytest.raises(DataError, match="holds no rows"):
        materialise("pacs", out, write(tmp_path / "z", []))
    first = next(parquet.rglob("*.parquet"))
    data = bytearray(first.read_bytes())
    data[200:2000] = bytes(1800)
    first.write_bytes(data)
    with pytest.raises(DataError, match="fetch it again"):
        materialise("pacs", out, parquet)


def test_folders_of_others_are_left_alone(tmp_path: Path, parquet: Path) -> None:
    out = tmp_path / "out"
    materialise("pacs", out, parquet)
    with pytest.raises(DataError, match="holds the data set pacs"):
        materialise("officehome", out, parquet)
    theirs = tmp_path / "theirs" / "photo" / "dog" / "mine.jpg"
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"mine")
    with pytest.raises(DataError, match="1 images from elsewhere"):
        materialise("pacs", tmp_path / "theirs", parquet)
    (out / "photo" / "dog" / "pic_001.jpg").write_bytes(b"changed")
    with pytest.raises(DataError, match="other contents"):
        materialise("pacs", out, parquet)
    assert (out / "photo" / "dog" / "pic_001.jpg").read_bytes() == b"changed"


def test_a_disk_that_does_not_take_it(
    tmp_path: Path, parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", os.replace

    def full(source: str, target: Path) -> None:
        if target.parent.name == "giraffe":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match=r"cannot write .*giraffe.*No space left.*--to"):
        materialise("pacs", out, parquet)
    assert list(out.rglob("*.tmp")) == []
    monkeypatch.undo()
    assert materialise("pacs", out, parquet).written == 40
