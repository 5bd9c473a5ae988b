from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from fedclip_plugin.data.folders import load_dataset  # noqa: E402
from fedclip_plugin.data.hub import materialise  # noqa: E402
from fedclip_plugin.data.images import decode_image  # noqa: E402
from fedclip_plugin.data.parquet import ImageTable  # noqa: E402
from fedclip_plugin.errors import DataError  # noqa: E402
from tests.data.parquet_files import (  # noqa: E402, F401
    CLASSES,
    PACS,
    json_copy,
    picture,
    rows,
    two_shards,
    write,
)


def test_folders_hold_the_original_bytes_under_their_names(
    tmp_path: Path, parquet: Path
) -> None:
    seen: list[tuple[str, int, int]] = []
    done = materialise(
        "pacs", tmp_path / "out", parquet, lambda *counts: seen.append(counts)
    )
    assert (done.images, done.written) == (48, 48)
    assert seen == [("write pacs", i, 48) for i in range(1, 49)]
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
    def interrupt(what: str, done: int, total: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        materialise("pacs", out, parquet, interrupt)
    (out / "photo" / "dog" / ".pic_001.jpg.x.tmp").write_bytes(b"killed here")
    assert materialise("pacs", out, parquet).written == 18
    assert list(out.rglob(".*.tmp")) == []
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
    module: Any = type(sys)("huggingface_hub")
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


def test_names_go_before_numbers(tmp_path: Path) -> None:
    values = [
        {"image": picture(i), "domain": "a", "label": i, "class": f"no {i}"}
        for i in range(2)
    ]
    types = {"image": pa.binary(), "domain": pa.string(), "label": pa.int64()}
    schema = pa.schema([*types.items(), ("class", pa.string())])
    pq.write_table(pa.Table.from_pylist(values, schema), tmp_path / "x")
    materialise("mine", tmp_path / "out", tmp_path / "x")
    assert load_dataset("mine", str(tmp_path / "out")).classes == ("no 0", "no 1")


def test_equal_names_stay_apart_also_where_case_does_not_count(tmp_path: Path) -> None:
    values = rows(1)[:1] * 3
    values = [
        json_copy(v, f"x/{name}") for v, name in zip(values, ("a.jpg", "A.JPG", "a"))
    ]
    materialise("x", tmp_path / "out", write(tmp_path / "x.parquet", values))
    files = load_dataset("x", str(tmp_path / "out")).domains[0].files
    assert [Path(name).name for name in files] == ["000002.jpg", "A-2.jpg", "a.jpg"]


def test_a_class_that_a_domain_lacks_gets_a_folder(tmp_path: Path) -> None:
    values = [row for row in rows(1) if (row["domain"], row["label"]) != ("photo", 1)]
    source = write(tmp_path / "x.parquet", values, {"label": [*CLASSES, "unicorn"]})
    materialise("pacs", tmp_path / "out", source)
    dataset = load_dataset("pacs", str(tmp_path / "out"))
    assert dataset.classes == (*CLASSES, "unicorn")
    assert dataset.domains[2].labels.tolist() == [0, 2]


def test_two_at_once(tmp_path: Path, parquet: Path) -> None:
    out = tmp_path / "out"

    def again(what: str, done: int, total: int) -> None:
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
        {"image": {"bytes": b"\xff\xd8\xff%04d" % i + blob}, "domain": "a", "label": 0}
        for i in range(300)
    ]
    table = ImageTable.open(write(tmp_path / "x", values))  # groups of 10 rows: 1 MB
    before = pa.total_allocated_bytes()
    peak = max(pa.total_allocated_bytes() - before for _ in table.rows())
    assert peak < 6e6 < 30e6 < (tmp_path / "x").stat().st_size
