from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedclip_plugin.errors import FeaturesError
from fedclip_plugin.features.feature_set import (
    load_features,
    refuse_images,
    save_features,
)
from tests.federation.toy import toy_features, write_toy


def test_round_trip(tmp_path):
    features = toy_features()
    save_features(features, tmp_path / "f")
    found = load_features(tmp_path / "f")
    assert found.classes == features.classes
    assert found.key == features.key
    assert torch.equal(found.text, features.text)
    for domain in features.domains:
        assert torch.equal(found.image[domain], features.image[domain])
        assert torch.equal(found.label[domain], features.label[domain])


def test_half_precision_is_read_as_float32(tmp_path):
    directory = write_toy(tmp_path / "f")
    tensors = load_file(directory / "art.safetensors")
    tensors["image"] = tensors["image"].half()
    save_file(tensors, directory / "art.safetensors")  # other software: no checksum
    assert load_features(directory).image["art"].dtype == torch.float32


def test_rows_are_counted_over_all_domains_and_come_as_asked(monkeypatch):
    features = toy_features(rows=10)
    monkeypatch.setattr("fedclip_plugin.features.directions.ROWS_AT_ONCE", 3)
    index = torch.tensor([25, 20, 3, 7])
    x, y = features.rows(index)
    art, photo = features.image["art"], features.image["photo"]
    assert torch.equal(x, torch.stack([photo[5], photo[0], art[3], art[7]]))
    assert torch.equal(y[:2], features.label["photo"][[5, 0]])
    assert features.rows(torch.tensor([], dtype=torch.int64))[0].shape == (0, 16)


def test_domain_order_keeps_domains_and_groups_together():
    features = toy_features(rows=10)
    index = torch.tensor([25, 3, 20, 7, 28, 1])
    assert features.domain_order(index).tolist() == [3, 7, 1, 25, 20, 28]
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    assert features.domain_order(index, group).tolist() == [3, 25, 20, 7, 1, 28]


@pytest.mark.parametrize(
    "domains",
    [
        ("text", "Text", "photo"),
        ("features", "text", "0.domain"),
        ("a:b", "x" * 240, "aux"),
        ("Photo", "photo", "1.domain"),
    ],
)
def test_domains_of_any_name_are_read_again(tmp_path, domains):
    toy = toy_features()
    parts = dict(zip(toy.domains, domains))
    features = replace(
        toy,
        domains=domains,
        image={parts[d]: toy.image[d] for d in parts},
        label={parts[d]: toy.label[d] for d in parts},
    )
    save_features(features, tmp_path / "f")
    found = load_features(tmp_path / "f")
    assert torch.equal(found.text, features.text)
    for domain in domains:
        assert torch.equal(found.image[domain], features.image[domain])
    files = [path.name.casefold() for path in (tmp_path / "f").iterdir()]
    assert len(set(files)) == len(files) == 5


def test_directories_of_earlier_versions_have_files_by_domain(tmp_path):
    directory = write_toy(tmp_path / "f")
    header = json.loads((directory / "features.json").read_text())
    assert "files" not in header  # others need not know of it
    save_file(load_file(directory / "art.safetensors"), directory / "x.y.safetensors")
    edit_header(directory, domains=["x.y", *header["domains"][1:]])
    assert load_features(directory).domains[0] == "x.y"


def test_a_data_set_is_no_place_for_features(tmp_path):
    refuse_images(tmp_path / "new")
    refuse_images(write_toy(tmp_path / "f"))
    (tmp_path / "Z" / "photo" / "dog").mkdir(parents=True)
    (tmp_path / "Z" / "photo" / "dog" / "1.JPG").touch()
    for folder in ("Z", "Z/photo", "Z/photo/dog"):
        with pytest.raises(FeaturesError, match="choose another folder"):
            refuse_images(tmp_path / folder)


def edit_header(directory, **changes):
    path = directory / "features.json"
    header = json.loads(path.read_text())
    header.update(changes)
    path.write_text(json.dumps({k: v for k, v in header.items() if v is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2, this version reads 1"),
        ({"format": None}, "format None"),
        ({"classes": None}, "'classes' is missing"),
        ({"classes": ["a", "a"]}, "different"),
        ({"embed_dim": 17}, r"shape \(4, 17\)"),
        ({"domains": ["art", "../art"]}, "plain file name"),
        ({"files": {"art": "../art"}}, "plain file name"),
        ({"files": {"art": "text"}}, "plain file name"),
        ({"files": ["art"]}, "'files' must be an object"),
        ({"domains": ["art", "missing"]}, r"missing\.safetensors is missing"),
        ({"logit_scale": -1}, "logit_scale"),
    ],
)
def test_wrong_header_is_told_in_one_line(tmp_path, changes, message):
    directory = write_toy(tmp_path / "f")
    edit_header(directory, **changes)
    with pytest.raises(FeaturesError, match=message) as error:
        load_features(directory)
    assert "\n" not in str(error.value)


def test_missing_directory_tells_how_to_make_one(tmp_path):
    with pytest.raises(FeaturesError, match="fedclip features --to"):
        load_features(tmp_path / "nowhere")


def test_torn_json_is_told(tmp_path):
    directory = write_toy(tmp_path / "f")
    (directory / "features.json").write_text('{"format": 1,')
    with pytest.raises(FeaturesError, match="not readable JSON"):
        load_features(directory)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"image": torch.zeros(5, 16), "label": torch.zeros(4).long()}, "do not match"),
        ({"image": torch.zeros(5, 8), "label": torch.zeros(5).long()}, "do not match"),
        ({"image": torch.zeros(5, 16), "label": torch.full((5,), 4)}, r"in 0\.\.3"),
        ({"image": torch.zeros(5, 16), "label": torch.zeros(5)}, "int64"),
        (
            {"image": torch.full((5, 16), torch.nan), "label": torch.zeros(5).long()},
            "NaN",
        ),
        ({"label": torch.zeros(5).long()}, "no tensor 'image'"),
    ],
)
def test_wrong_domain_file_is_named(tmp_path, tensors, message):
    directory = write_toy(tmp_path / "f")
    save_file(tensors, directory / "cartoon.safetensors")
    with pytest.raises(FeaturesError, match=message) as error:
        load_features(directory)
    assert "cartoon.safetensors" in str(error.value)


def test_truncated_domain_file_is_named(tmp_path):
    directory = write_toy(tmp_path / "f")
    path = directory / "photo.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(FeaturesError, match=r"photo\.safetensors is not a whole"):
        load_features(directory)
