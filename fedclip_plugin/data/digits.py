"""The embedded data set: 1,797 real handwritten digits in four domains.

The images are those of scikit-learn's `load_digits` (the test part of UCI "Optical
Recognition of Handwritten Digits": 8 x 8 pixels, 17 grey levels).  Each is in exactly
one domain, as with PACS no drawing is there twice:

    scan      as it is, light ink on dark ground
    negative  inverted
    photo     absolute difference with a crop of one of scikit-learn's two photographs,
              in colour: the construction of MNIST-M (Ganin et al. 2016)
    sketch    the outline in dark pencil, turned by up to 30 degrees

Nothing is downloaded and nothing is drawn anew from run to run: the seed is fixed, and
the bytes do not depend on the version of zlib.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageFilter, ImageOps

from .dataset import ImageDataset, ImageDomain

IMAGE_SIZE = 32
MAX_TURN = 30.0  # degrees, either way, in `sketch`
DOMAINS = ("scan", "negative", "photo", "sketch")
_SEED = 0
_LEVELS = 16  # load_digits counts the set pixels of 4 x 4 blocks

Draw = Callable[[Image.Image, np.random.RandomState], Image.Image]


@functools.cache
def digits_dataset() -> ImageDataset:
    """Render the data set: classes "0" to "9", PNG files of 32 x 32 RGB in memory.

    File `scan/7/0412.png` shows sample 412 of `load_digits`.  The four domains hold
    450, 449, 449 and 449 images, and differ by at most one in every class.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = np.asarray(digits.target, dtype=np.int64)  # (1797,)
    member = _assign(labels)
    draws: dict[str, Draw] = {
        "scan": _scan,
        "negative": _negative,
        "photo": _photo(_photographs()),
        "sketch": _sketch,
    }
    domains = []
    for index, name in enumerate(DOMAINS):
        rows = np.flatnonzero(member == index)
        rows = rows[np.argsort(labels[rows], kind="stable")]  # class, then sample
        domains.append(_domain(name, rows, labels[rows], digits.images, draws[name]))
    classes = tuple(str(c) for c in range(10))
    return ImageDataset(name="digits", classes=classes, domains=tuple(domains))


def _assign(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Domain index of every sample: dealt out like cards, one class after the other.

    `RandomState` and not `default_rng`: NumPy promises that its stream never changes.
    """
    order = np.random.RandomState(_SEED).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    member = np.empty(len(labels), dtype=np.int64)
    member[order] = np.arange(len(labels)) % len(DOMAINS)
    return member


def _domain(
    name: str,
    rows: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    images: npt.NDArray[np.float64],
    draw: Draw,
) -> ImageDomain:
    random = np.random.RandomState(_SEED + 1 + DOMAINS.index(name))
    encoded = tuple(encode_png(draw(_enlarge(images[row]), random)) for row in rows)
    files = tuple(
        f"{name}/{label}/{row:04d}.png" for label, row in zip(labels, rows, strict=True)
    )
    labels.flags.writeable = False  # the data set is shared by every caller
    return ImageDomain(name=name, files=files, labels=labels, read=encoded.__getitem__)


def _enlarge(image: npt.NDArray[np.float64]) -> Image.Image:
    """(8, 8) in 0..16 -> grey 32 x 32 image; ink is light.

    A blank margin of one pixel leaves room for outlines and for turned corners.
    """
    grey = np.rint(np.pad(image, 1) * (255 / _LEVELS)).astype(np.uint8)  # (10, 10)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    return Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC)


def _scan(digit: Image.Image, random: np.random.RandomState) -> Image.Image:
    return digit


def _negative(digit: Image.Image, random: np.random.RandomState) -> Image.Image:
    return ImageOps.invert(digit)


def _sketch(digit: Image.Image, random: np.random.RandomState) -> Image.Image:
    angle = random.uniform(-MAX_TURN, MAX_TURN)
    turned = digit.rotate(angle, Image.Resampling.BICUBIC)
    inside = turned.point(lambda grey: 255 if grey >= 128 else 0)
    outline = ImageChops.difference(inside, inside.filter(ImageFilter.MinFilter(3)))
    return ImageOps.invert(outline)


def _photo(photographs: list[Image.Image]) -> Draw:
    def draw(digit: Image.Image, random: np.random.RandomState) -> Image.Image:
        photograph = photographs[random.randint(len(photographs))]
        left = random.randint(photograph.width - IMAGE_SIZE + 1)
        top = random.randint(photograph.height - IMAGE_SIZE + 1)
        crop = photograph.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE))
        return ImageChops.difference(digit.convert("RGB"), crop)

    return draw


def _photographs() -> list[Image.Image]:
    from sklearn.datasets import load_sample_images

    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


def encode_png(image: Image.Image) -> bytes:
    """PNG bytes of an image as RGB, not compressed.

    Pillow's own writer compresses, and zlib and zlib-ng do so to different bytes; the
    bytes are what the feature cache takes its key from.
    """
    pixels = np.asarray(image.convert("RGB"))  # (H, W, 3) uint8
    height, width, _ = pixels.shape
    filters = np.zeros((height, 1), dtype=np.uint8)  # every line starts with filter 0
    lines = np.hstack([filters, pixels.reshape(height, width * 3)])
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bit, RGB
    chunks = (b"IHDR" + header, b"IDAT" + _stored(lines.tobytes()), b"IEND")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in chunks
    )


def _stored(data: bytes) -> bytes:
    """A zlib stream of one stored block (RFC 1950, 1951); at most 65,535 bytes."""
    block = struct.pack("<BHH", 1, len(data), len(data) ^ 0xFFFF) + data
    return b"\x78\x01" + block + struct.pack(">I", zlib.adler32(data))
