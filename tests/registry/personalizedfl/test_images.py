"""The images behind PersonalizedFL's loaders: files, and arrays of pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from fedclip_plugin.clip.encoder import FrozenClip
from fedclip_plugin.data.images import decode_image
from fedclip_plugin.errors import DataError
from fedclip_plugin.features.feature_set import save_features
from fedclip_plugin.registry.personalizedfl.images import (
    HostImages,
    array_dataset,
    open_images,
)
from fedclip_plugin.registry.personalizedfl.start import settings_of
from tests.registry.personalizedfl.world import World, main_args, open_world


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    return open_world(tmp_path, monkeypatch)


@pytest.fixture
def images(world) -> HostImages:
    args = world.args()
    return open_images(args, settings_of(args)[0])


def test_a_loader_is_known_by_itself_not_by_its_place_in_memory(world, images):
    photos = world.images("photo")
    for row in range(20):  # each is gone before the next, whose id may be the same
        rows = images.samples(DataLoader(Subset(photos, [row])))
        assert torch.equal(rows.x[0], world.features.image["photo"][row])


def test_a_subset_of_a_subset_is_followed(world, images):
    cartoons = world.images("cartoon")
    loader = DataLoader(Subset(Subset(cartoons, [5, 6, 7]), [2, 0]))
    rows = images.samples(loader)
    assert torch.equal(rows.x, world.features.image["cartoon"][[7, 5]])


def test_an_image_that_could_not_be_read_is_left_out(world):
    found = world.features
    bad = f"photo/{found.classes[int(found.label['photo'][0])]}/000.jpg"
    image = {**found.image, "photo": found.image["photo"][1:]}
    label = {**found.label, "photo": found.label["photo"][1:]}
    left = replace(found, image=image, label=label, skipped=(bad,))
    save_features(left, world.root / "features")
    args = world.args()
    images = open_images(args, settings_of(args)[0])
    loader = DataLoader(Subset(world.images("photo"), [2, 0, 1]))
    assert torch.equal(images.samples(loader).x, found.image["photo"][[2, 1]])


def test_the_backbone_is_loaded_once(own_cache, tmp_path, monkeypatch):
    folder = tmp_path / "medmnist"
    folder.mkdir()
    np.save(folder / "xdata.npy", np.random.default_rng(0).random((22, 28, 28)))
    np.save(folder / "ydata.npy", np.repeat(np.arange(11), 2))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDCLIP_MODEL", "fedclip-tiny")
    loads, load = [], FrozenClip.load

    def counted(spec):
        loads.append(spec)
        return load(spec)

    monkeypatch.setattr(FrozenClip, "load", counted)
    for _ in range(2):
        args = main_args(
            tmp_path, dataset="medmnist", root_dir=f"{tmp_path}/",
            domains=None, num_classes=11,
        )  # fmt: skip
        images = open_images(args, settings_of(args)[0])
    assert len(loads) == 1
    assert images.x.shape[0] == 22


def test_labels_that_differ_are_refused(world, images):
    photos = world.images("photo")
    photos.targets = photos.targets[::-1].copy()
    with pytest.raises(DataError, match="class folders"):
        images.samples(DataLoader(photos))


def test_an_image_from_elsewhere_is_named(world, images):
    photos = world.images("photo")
    photos.x[0] = "/elsewhere/dog.jpg"
    with pytest.raises(DataError, match=r"/elsewhere/dog\.jpg"):
        images.samples(DataLoader(photos))


def test_data_without_labels_are_refused(images):
    with pytest.raises(DataError, match="targets"):
        images.samples(DataLoader([1, 2, 3]))


# ------------------------------------------------------------------------ pixel arrays


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.array([[[0, 128], [255, 1]]], np.uint8), [0, 128, 255, 1]),
        (np.array([[[0, 0.5], [1, 0.2]]]), [0, 128, 255, 51]),
        (np.array([[[0.0, 128.0], [255.0, 1.0]]]), [0, 128, 255, 1]),
        (np.array([[[-1.0, 0.0], [1.0, 0.5]]]), [0, 128, 255, 191]),
        (np.array([[[0.0, 510.0], [1020.0, 0.0]]]), [0, 128, 255, 0]),
    ],
)
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_arrays_become_images(tmp_path, pixels, expected, channels):
    if channels is not None:
        pixels = np.repeat(pixels[..., None], channels, axis=3)
    np.save(tmp_path / "xdata.npy", pixels)
    np.save(tmp_path / "ydata.npy", np.array([[2]]))
    dataset = array_dataset("medmnist", tmp_path, 11)
    image = decode_image(dataset.domains[0].read(0), "0")
    assert image.mode == "RGB"
    grey = np.asarray(image)[:, :, 0].reshape(-1).tolist()
    assert grey == expected
    assert dataset.domains[0].labels.tolist() == [2]
    assert dataset.classes[4] == "left kidney"


def test_classes_without_a_name_get_numbers(tmp_path):
    np.save(tmp_path / "xdata.npy", np.zeros((4, 6, 6, 3), np.uint8))
    np.save(tmp_path / "ydata.npy", np.arange(4))
    dataset = array_dataset("covid", tmp_path, 4)
    assert dataset.classes == ("class 0", "class 1", "class 2", "class 3")


@pytest.mark.parametrize(
    ("x", "y", "named"),
    [
        (np.zeros((3, 52, 27, 9)), np.zeros(3), "xdata.npy"),
        (np.zeros((3, 5)), np.zeros(3), "xdata.npy"),
        (np.zeros((3, 4, 4)), np.zeros(2), "ydata.npy"),
        (np.zeros((3, 4, 4)), np.array([0, 1, 11]), "ydata.npy"),
        (np.full((3, 4, 4), np.nan), np.zeros(3), "NaN"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, x, y, named):
    np.save(tmp_path / "xdata.npy", x)
    np.save(tmp_path / "ydata.npy", y)
    with pytest.raises(DataError, match=named):
        array_dataset("medmnist", tmp_path, 11)
