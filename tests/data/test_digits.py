"""The embedded data set: counts, bytes, and what makes each domain what it is."""

from __future__ import annotations

import hashlib
import inspect
import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fedclip_plugin.data.dataset import ImageDomain
from fedclip_plugin.data.digits import digits_dataset, encode_png

BY_NAME = {domain.name: domain for domain in digits_dataset().domains}


def pixels(domain: ImageDomain) -> np.ndarray:
    """(N, 32, 32, 3) uint8"""
    images = [Image.open(io.BytesIO(domain.read(i))) for i in range(len(domain.files))]
    assert {(image.mode, image.size) for image in images} == {("RGB", (32, 32))}
    return np.stack([np.asarray(image) for image in images])


def samples(domain: ImageDomain) -> list[int]:
    return [int(name.split("/")[2].removesuffix(".png")) for name in domain.files]


def digest() -> str:
    found = hashlib.sha256()
    for domain in digits_dataset().domains:
        for i, name in enumerate(domain.files):
            found.update(name.encode() + domain.read(i))
    return found.hexdigest()


def test_classes_and_domains_in_order() -> None:
    dataset = digits_dataset()
    assert dataset.name == "digits"
    assert dataset.classes == tuple("0123456789")
    assert [d.name for d in dataset.domains] == ["scan", "negative", "photo", "sketch"]


def test_every_sample_is_in_exactly_one_domain() -> None:
    rows = [row for domain in BY_NAME.values() for row in samples(domain)]
    assert sorted(rows) == list(range(1797))


def test_domains_and_classes_are_balanced() -> None:
    counts = np.stack([np.bincount(d.labels, minlength=10) for d in BY_NAME.values()])
    assert counts.sum(1).tolist() == [450, 449, 449, 449]
    assert np.ptp(counts, axis=0).max() <= 1


@pytest.mark.parametrize("name", list(BY_NAME))
def test_files_come_as_image_folder_sorts_them(name: str) -> None:
    domain = BY_NAME[name]
    assert domain.labels.dtype == np.int64
    assert list(domain.files) == sorted(domain.files)
    assert [f.split("/")[:2] for f in domain.files] == [
        [name, str(label)] for label in domain.labels
    ]


def test_labels_are_those_of_the_samples_and_read_only() -> None:
    from sklearn.datasets import load_digits

    target = load_digits().target
    for domain in BY_NAME.values():
        assert np.array_equal(target[samples(domain)], domain.labels)
        with pytest.raises(ValueError, match="read-only"):
            domain.labels[0] = 1


def test_scan_and_negative_are_the_digit_and_its_inverse() -> None:
    from sklearn.datasets import load_digits

    images = load_digits().images
    for name, sign in (("scan", 1), ("negative", -1)):
        shown = pixels(BY_NAME[name]).astype(float)
        assert np.array_equal(shown[..., 0], shown[..., 2])  # grey
        for drawn, row in zip(shown, samples(BY_NAME[name]), strict=True):
            small = Image.fromarray(drawn[..., 0]).resize(
                (10, 10), Image.Resampling.BOX
            )
            source = np.pad(images[row], 1).ravel()
            assert sign * np.corrcoef(np.asarray(small).ravel(), source)[0, 1] > 0.9
        corner = shown[:, 0, 0].mean()
        assert corner == pytest.approx(0 if sign > 0 else 255, abs=5)


def test_photo_is_coloured_and_busy_around_the_digit() -> None:
    photo = pixels(BY_NAME["photo"]).astype(float)
    spread = (photo.max(-1) - photo.min(-1)).mean()
    assert spread > 20  # grey images have 0
    frame = np.concatenate([photo[:, :2].reshape(-1, 3), photo[:, -2:].reshape(-1, 3)])
    assert frame.std(0).mean() > 40
    assert len(np.unique(frame.round(-1), axis=0)) > 500  # two whole photographs


def test_sketch_is_a_thin_dark_outline_on_white() -> None:
    sketch = pixels(BY_NAME["sketch"])
    assert np.unique(sketch).tolist() == [0, 255]
    ink = (sketch[..., 0] == 0).mean((1, 2))
    assert (ink > 0.02).all()
    assert (ink < 0.3).all()
    solid = sketch[..., 0] == 0
    blocks = solid[:, :-2, :-2] & solid[:, 1:-1, 1:-1] & solid[:, 2:, 2:]
    blocks &= solid[:, :-2, 2:] & solid[:, 2:, :-2] & solid[:, 1:-1, :-2]
    assert blocks.mean() < 0.01  # no filled areas


def test_sketch_is_turned_both_ways() -> None:
    """The principal axis of upright ones leans to either side, scan's hardly at all."""

    def leaning(name: str) -> np.ndarray:
        domain = BY_NAME[name]
        ones = pixels(domain)[domain.labels == 0][..., 0].astype(float)
        ink = ones if name == "scan" else 255 - ones
        y, x = np.mgrid[:32, :32] - 15.5
        mass = ink.sum((1, 2))
        xy = (ink * x * y).sum((1, 2)) / mass
        difference = (ink * (y * y - x * x)).sum((1, 2)) / mass
        return np.degrees(np.arctan2(2 * xy, difference)) / 2

    assert leaning("sketch").std() > 1.3 * leaning("scan").std()
    assert leaning("sketch").min() < -10
    assert leaning("sketch").max() > 10


def test_bytes_are_the_same_in_another_process() -> None:
    code = "import hashlib\nfrom fedclip_plugin.data.digits import digits_dataset\n"
    code += inspect.getsource(digest) + "print(digest())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == digest()


def test_encode_png_round_trip_and_grey_input() -> None:
    random = np.random.RandomState(0)
    colour = random.randint(0, 256, (5, 7, 3), dtype=np.uint8)
    again = Image.open(io.BytesIO(encode_png(Image.fromarray(colour))))
    again.load()
    assert np.array_equal(np.asarray(again), colour)
    grey = Image.open(io.BytesIO(encode_png(Image.fromarray(colour[..., 0]))))
    assert np.array_equal(np.asarray(grey)[..., 2], colour[..., 0])
