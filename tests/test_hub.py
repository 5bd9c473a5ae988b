from __future__ import annotations

import errno
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from fedclip_plugin.data import load_dataset  # noqa: E402
from fedclip_plugin.errors import DataError  # noqa: E402
from fedclip_plugin.hub import materialise  # noqa: E402
from fedclip_plugin.images import decode_image  # noqa: E402
from fedclip_plugin.parquet import ImageTable  # noqa: E402

PACS = ("art_painting", "cartoon", "photo", "sketch")
CLASSES = ["dog", "elephant", "giraffe"]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(seed: int, kind: str = "JPEG") -> bytes:
    pixels = np.random.RandomState(seed).randint(0, 256, (9, 9, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def rows(count: int = 4) -> list[dict[str, Any]]:
    """As in flwrlabs/pacs: the file's own name in `path`, sketches as PNG."""
    found = []
    for d, domain in enumerate(PACS):
        for label in range(len(CLASSES)):
            for i in range(count):
                kind = "PNG" if domain == "sketch" else "JPEG"
                data = picture(d * 100 + label * 10 + i, kind)
                image = {"bytes": data, "path": f"pic_{count - i:03d}.{kind.lower()}"}
                found.append({"image": image, "domain": domain, "label": label})
    return found


def write(
    path: Path,
    values: list[dict[str, Any]],
    names: dict[str, list[str]] | None = None,
    **types: Any,
) -> Path:
    fields = {"image": IMAGE, "domain": pa.string(), "label": pa.int64(), **types}
    schema = pa.schema(list(fields.items()))
    if names is not None:
        features = {k: {"names": v, "_type": "ClassLabel"} for k, v in names.items()}
        features["image"] = {"_type": "Image"}  # type: ignore[assignment]
        info = json.dumps({"info": {"features": features}})
        schema = schema.with_metadata({"huggingface": info})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(values, schema), path, row_group_size=10)
    return path


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    """Two shards, in a folder as on the hub."""
    values, names = rows(), {"label": CLASSES}
    write(
        tmp_path / "hub" / "data" / "train-00000-of-00002.parquet", values[:20], names
    )
    write(
        tmp_path / "hub" / "data" / "train-00001-of-00002.parquet", values[20:], names
    )
    return tmp_path / "hub"


def test_folders_hold_the_original_bytes_under_their_names(
    tmp_path: Path, parquet: Path
) -> None:
    seen: list[tuple[int, int]] = []
    done = materialise(
        "pacs", tmp_path / "out", parquet, lambda *counts: seen.append(counts)
    )
    assert (done.images, done.written) == (48, 48)
    assert seen == [(i, 48) for i in range(1, 49)]
    dataset = load_dataset("pacs", str(tmp_path / "out"))
    assert dataset.classes == tuple(CLASSES)
    assert [len(d.files) for d in dataset.domains] == [12] * 4
    photo, sketch = dataset.domains[2], dataset.domains[3]
    assert photo.files[0] == "photo/dog/pic_001.jpg"
    assert photo.read(0) == picture(203)  # i = 3: files are sorted, rows were not
    assert sketch.files[-1] == "sketch/giraffe/pic_004.png"
    assert decode_image(sketch.read(11), "x").size == (9, 9)


def test_a_second_call_writes_nothing(tmp_path: Path, parquet: Path) -> None:
    out = tmp_path / "out"
    materialise("pacs", out, parquet)
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*.*g")}
    assert materialise("pacs", out, parquet).written == 0
    assert materialise("pacs", out).written == 0  # not even the hub is asked
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.*g")} == stamps


def test_an_interrupted_call_is_continued(tmp_path: Path, parquet: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        materialise("pacs", out, parquet, interrupt)
    (out / "photo" / "dog" / ".pic_001.jpg.part").write_bytes(b"killed here")
    assert materialise("pacs", out, parquet).written == 18
    (out / "photo" / "dog" / "pic_001.jpg").unlink()
    assert materialise("pacs", out, parquet).written == 1
    assert sum(len(d.files) for d in load_dataset("pacs", str(out)).domains) == 48


def test_the_hub_is_asked_for_parquet_only(
    tmp_path: Path, parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot_download(**options: Any) -> str:
        asked.append(options)
        return str(parquet)

    fake_hub(monkeypatch, snapshot_download)
    assert materialise("Office-Home", tmp_path / "a").images == 48
    assert materialise("someone/else", tmp_path / "b").images == 48
    assert [options["repo_id"] for options in asked] == [
        *("flwrlabs/office-home", "someone/else")
    ]
    assert asked[0]["repo_type"] == "dataset"
    assert asked[0]["allow_patterns"] == ["*.parquet"]


def fake_hub(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
    module = type(sys)("huggingface_hub")
    module.snapshot_download = function
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_a_snapshot_in_the_local_cache_needs_no_network(
    tmp_path: Path, parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = pytest.importorskip("huggingface_hub")
    commit = "0" * 40
    repository = tmp_path / "cache" / "datasets--flwrlabs--pacs"
    (repository / "snapshots").mkdir(parents=True)
    parquet.rename(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    real = library.snapshot_download
    monkeypatch.setattr(
        library,
        "snapshot_download",
        lambda **options: real(
            **options, cache_dir=tmp_path / "cache", local_files_only=True
        ),
    )
    assert materialise("pacs", tmp_path / "out").images == 48


def test_no_network_tells_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(**options: Any) -> str:
        raise ConnectionError("cannot\nresolve host")

    fake_hub(monkeypatch, no_network)
    with pytest.raises(DataError, match="--from DIR") as caught:
        materialise("pacs", tmp_path / "out")
    assert "hf download flwrlabs/pacs --repo-type dataset" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_optional_packages(
    tmp_path: Path, parquet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r"fedclip-plugin\[hub\]"):
        materialise("pacs", tmp_path / "out")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"fedclip-plugin\[hub\]"):
        materialise("pacs", tmp_path / "out", parquet)


def test_names_that_are_not_on_the_hub(tmp_path: Path) -> None:
    for name in ("vlcs", "whatever"):
        with pytest.raises(DataError, match=r"pacs, officehome.*--from PATH"):
            materialise(name, tmp_path / "out")


def test_other_columns(tmp_path: Path) -> None:
    values = [
        {"img": picture(i), "Environment": i % 2, "class": "big cat"} for i in range(4)
    ]
    schema = {"img": pa.large_binary(), "Environment": pa.int8(), "class": pa.string()}
    features = {"Environment": {"names": ["day", "night"]}}
    table = pa.Table.from_pylist(values, pa.schema(list(schema.items())))
    info = json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({"huggingface": info}), tmp_path / "x")
    materialise("mine", tmp_path / "out", tmp_path / "x")
    dataset = load_dataset("mine", str(tmp_path / "out"))
    assert dataset.classes == ("big cat",)
    assert dataset.domains[1].files == (
        *("night/big cat/000001.jpg", "night/big cat/000003.jpg"),
    )


def test_equal_names_stay_apart_also_where_case_does_not_count(tmp_path: Path) -> None:
    values = rows(1)[:1] * 3
    values = [
        json_copy(v, f"x/{name}") for v, name in zip(values, ("a.jpg", "A.JPG", "a"))
    ]
    materialise("x", tmp_path / "out", write(tmp_path / "x.parquet", values))
    files = load_dataset("x", str(tmp_path / "out")).domains[0].files
    assert [Path(name).name for name in files] == ["000002.jpg", "A-2.jpg", "a.jpg"]


def json_copy(row: dict[str, Any], path: str) -> dict[str, Any]:
    return {**row, "image": {**row["image"], "path": path}}


def test_a_class_that_a_domain_lacks_gets_a_folder(tmp_path: Path) -> None:
    values = [row for row in rows(1) if (row["domain"], row["label"]) != ("photo", 1)]
    source = write(tmp_path / "x.parquet", values, {"label": [*CLASSES, "unicorn"]})
    materialise("pacs", tmp_path / "out", source)
    dataset = load_dataset("pacs", str(tmp_path / "out"))
    assert dataset.classes == (*CLASSES, "unicorn")
    assert dataset.domains[2].labels.tolist() == [0, 2]


@pytest.mark.parametrize(
    "name", ["../up", "..", "", ".hidden", "a/b", "a\\b", "C:", "x\n", "a" * 200]
)
@pytest.mark.parametrize("kind", ["domain", "label", "declared"])
def test_names_cannot_leave_the_folder(tmp_path: Path, name: str, kind: str) -> None:
    row = rows(1)[0]
    if kind == "declared":
        source = write(tmp_path / "x.parquet", [row], {"label": [name]})
    else:
        row = {**row, "label": "dog", kind: name}
        source = write(tmp_path / "x.parquet", [row], label=pa.string())
    with pytest.raises(DataError, match="cannot be a folder's name"):
        materialise("pacs", tmp_path / "out", source)
    assert [p.name for p in (tmp_path / "out").iterdir() if p.is_dir()] == []


def test_paths_in_rows_cannot_leave_the_folder(tmp_path: Path) -> None:
    values = [json_copy(rows(1)[0], path) for path in ("../../a.jpg", "..", "/b.jpg")]
    materialise("x", tmp_path / "out", write(tmp_path / "x.parquet", values))
    folder = tmp_path / "out" / "art_painting" / "0"
    assert sorted(p.name for p in folder.iterdir()) == ["000001.jpg", "a.jpg", "b.jpg"]


def test_rows_that_cannot_be_used(tmp_path: Path) -> None:
    good = rows(1)[0]
    bad = {
        "label 9 is not one of 3": {**good, "label": 9},
        "label -1 is not one of 3": {**good, "label": -1},
        "expected text or a number as label, got None": {**good, "label": None},
        "only the path 'x.jpg'": {**good, "image": {"bytes": None, "path": "x.jpg"}},
        "not JPEG, PNG": {**good, "image": {"bytes": b"text", "path": None}},
        "got None": {**good, "image": None},
    }
    for index, (message, row) in enumerate(bad.items()):
        source = tmp_path / f"{index}.parquet"
        write(source, [good, row], {"label": CLASSES})
        with pytest.raises(DataError, match=message) as caught:
            materialise("pacs", tmp_path / str(index), source)
        assert f"{source} row 1" in str(caught.value)


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
    with pytest.raises(DataError, match="1 images of other origin"):
        materialise("pacs", tmp_path / "theirs", parquet)
    (out / "photo" / "dog" / "pic_001.jpg").write_bytes(b"changed")
    with pytest.raises(DataError, match="other contents"):
        materialise("pacs", out, parquet)
    assert (out / "photo" / "dog" / "pic_001.jpg").read_bytes() == b"changed"


@pytest.mark.parametrize(
    ("code", "message"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "cannot write --to")],
)
def test_a_disk_that_does_not_take_it(
    tmp_path: Path,
    parquet: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    message: str,
) -> None:
    out, real = tmp_path / "out", Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.suffix == ".part" and path.parent.name == "giraffe":
            real(path, data[:3])
            raise OSError(code, "no")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match=message):
        materialise("pacs", out, parquet)
    assert list(out.rglob("*.part")) == []
    monkeypatch.undo()
    assert materialise("pacs", out, parquet).written == 40


def test_two_at_once(tmp_path: Path, parquet: Path) -> None:
    out = tmp_path / "out"

    def again(done: int, total: int) -> None:
        with pytest.raises(DataError, match="another `fedclip data` is writing"):
            materialise("pacs", out, parquet)

    assert materialise("pacs", out, parquet, again).images == 48


def test_embedded_digits_as_folders(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = materialise("digits", out)
    assert done.images == done.written == 1797
    embedded, folders = load_dataset("digits", None), load_dataset("d", str(out))
    assert folders.classes == embedded.classes
    by_name = {domain.name: domain for domain in folders.domains}
    for domain in embedded.domains:
        assert by_name[domain.name].files == domain.files
        assert by_name[domain.name].labels.tolist() == domain.labels.tolist()
        assert by_name[domain.name].read(7) == domain.read(7)
    assert materialise("digits", out).written == 0


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    blob = np.random.RandomState(0).bytes(100_000)
    values = [
        {"image": {"bytes": b"%04d" % i + blob}, "domain": "a", "label": 0}
        for i in range(300)
    ]
    table = ImageTable.open(write(tmp_path / "x", values))  # groups of 10 rows: 1 MB
    before = pa.total_allocated_bytes()
    peak = max(pa.total_allocated_bytes() - before for _ in table.rows())
    assert peak < 6e6 < 30e6 < (tmp_path / "x").stat().st_size
