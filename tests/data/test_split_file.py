"""Published splits: CoOp's file, and one a client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.data.partition import ClientRows, partition_clients
from fedclip_plugin.data.split_file import split_notes
from fedclip_plugin.errors import ConfigError

FILES = {
    "a": tuple(f"a/{c}/{i}.jpg" for c in ("cat", "dog") for i in range(5)),
    "b": tuple(f"b/{c}/{i}.jpg" for c in ("cat", "dog") for i in range(5, 10)),
}
LABELS = {name: np.repeat([0, 1], 5) for name in FILES}


def clients_of(
    path: Path, value: Any, target: str | None = None, **more: Any
) -> tuple[ClientRows, ...]:
    path.write_text(json.dumps(value))
    data = DataConfig(split=str(path), **more)
    return partition_clients(LABELS, data, target, 0, FILES)


def test_coops_file_splits_every_client(tmp_path: Path) -> None:
    split = {
        "train": [["a/dog/1.jpg", 7, "dog"], ["cat/2.jpg", 3], ["b/cat/5.jpg", 3]],
        "val": [["/data/set/a/cat/0.jpg", 3, "cat"]],
        "test": [["dog/9.jpg", 7]],
    }
    one, two = clients_of(tmp_path / "split.json", split)
    assert (one.name, two.name) == ("a", "b")
    assert one.train.tolist() == [6, 2]  # in the order of the file
    assert (one.val.tolist(), one.test.tolist()) == ([0], [])
    assert (two.train.tolist(), two.test.tolist()) == ([10], [19])
    (only,) = clients_of(tmp_path / "split.json", split, "a")
    assert only.train.tolist() == [10]
    pooled = clients_of(
        tmp_path / "split.json", split, partition="iid", clients=2, shots=1
    )
    assert sorted(r for c in pooled for r in c.test) == [19]


def test_a_split_a_client(tmp_path: Path) -> None:
    split = {
        "north": {"train": [["a/cat/0.jpg", 0]], "test": [["b/dog/9.jpg", 1]]},
        "south": {"train": [["a/dog/1.jpg", 1]]},
    }
    north, south = clients_of(tmp_path / "s.json", split)
    assert (north.name, north.index, south.index) == ("north", 0, 1)
    assert (north.train.tolist(), north.test.tolist()) == ([0], [19])
    assert len(south.val) == 0
    (north,) = clients_of(tmp_path / "s.json", split, "a")  # south has only rows of a
    assert north.name == "north"
    assert len(north.train) == 0
    with pytest.raises(ConfigError, match="names the clients itself"):
        clients_of(tmp_path / "s.json", split, partition="iid", clients=2)


def test_images_that_are_not_there_are_told(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    there = [["a/cat/0.jpg", 0], ["dog/9.jpg", 1]]
    path.write_text(json.dumps({"train": there, "test": [["a/cat/77.jpg", 0]]}))
    told, _ = split_notes(str(path), FILES)
    assert told.endswith(
        "1 of the 3 images named in it are not in the data set, such as a/cat/77.jpg"
    )
    path.write_text(json.dumps({"north": {"train": there}}))
    assert len(split_notes(str(path), FILES)) == 1
    assert split_notes(str(path), {}) == []  # refused elsewhere


def test_images_that_the_file_does_not_name_are_told(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    every = [[name, name.split("/")[1]] for names in FILES.values() for name in names]
    path.write_text(json.dumps({"train": [*every[3:], ["a/cat/77.jpg", "cat"]]}))
    (told,) = split_notes(str(path), FILES, chosen=True)
    assert f"3 of the {len(every)} images of the clients' domains are not" in told
    assert f"such as {every[0][0]}" in told
    path.write_text(json.dumps({"train": every[:9], "test": every[9:]}))
    assert split_notes(str(path), FILES) == []
    rest = [entry for entry in every if not entry[0].startswith("a/")]
    path.write_text(json.dumps({"train": rest}))
    assert split_notes(str(path), FILES, held_out="a") == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "expected"),
        ({"north": 3}, "'north': expected an object"),
        ({"train": [["a/cat/0.jpg"]]}, "expected \\[path, label\\]"),
        ({"train": {"a": 1}}, "expected lists"),
        ({"train": [["c/none.jpg", 0]]}, "none of its images is in the data set"),
        ({"train": [], "val": []}, "names no image"),
        (
            {"train": [["a/cat/0.jpg", 0]], "test": [["a/cat/0.jpg", 0]]},
            "is in it twice",
        ),
        (
            {"train": [["a/cat/0.jpg", 0], ["a/dog/0.jpg", 0]]},
            "images of another class folder",
        ),
        ({"train": [["a/cat/0.jpg", 0], ["a/cat/1.jpg", 1]]}, "several labels"),
    ],
)
def test_files_that_will_not_do(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        clients_of(tmp_path / "s.json", value)
    assert "\n" not in str(caught.value)


def test_a_path_that_may_be_several_images(tmp_path: Path) -> None:
    files = {"a": ("a/x/1.jpg", "a/y/1.jpg")}
    path = tmp_path / "s.json"
    path.write_text(json.dumps({"train": [["1.jpg", 0]]}))
    data = DataConfig(split=str(path))
    with pytest.raises(ConfigError, match="write more of its path"):
        partition_clients({"a": np.array([0, 1])}, data, None, 0, files)


def test_without_names_of_images_the_remedy_is_told(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text('{"train": [["a/cat/0.jpg", 0]]}')
    with pytest.raises(ConfigError, match="write the feature directory again"):
        partition_clients(LABELS, DataConfig(split=str(path)), None, 0)
    with pytest.raises(ConfigError, match=r"none\.json cannot be read: No such file"):
        partition_clients(
            LABELS, DataConfig(split=str(tmp_path / "none.json")), None, 0
        )
