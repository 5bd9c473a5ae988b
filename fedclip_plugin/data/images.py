"""Encoded bytes to an RGB image, whatever the file holds.

A plain RGB or grey image comes out as `Image.open(...).convert("RGB")` gives it, as in
CLIP's own preprocessing.  Where that would lose the picture, this differs: 16-bit grey
is scaled and not clipped, transparency lies on white, and the rotation that a camera
noted in EXIF is applied.  Colour profiles are ignored; of an animation the first frame
is used.  Nothing global in Pillow is changed, so threads may decode side by side.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DataError, one_line

MAX_PIXELS = 178_956_970
"""Larger images are refused: where Pillow's own default turns to an error."""

_FREE_PIXELS = 1 << 24
_PIXELS_A_BYTE = 1000
"""Beyond the free ones; a blank JPEG has 170, a picture a few."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")
_MOST_SIDES = 1000  # long by short: its short side becomes that of CLIP's input
_FEW_BITS = 14  # of 16
_DARK = 32  # of 255

_ORIENTATION = 0x0112  # EXIF tag
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode one image (JPEG, PNG, WebP, BMP, TIFF, PPM, ...) to mode RGB.

    `name` is what the error calls the image.  Raises DataError on data that is empty,
    truncated, corrupt, not an image, larger than `MAX_PIXELS`, or far larger than its
    bytes can hold.
    """
    try:
        with _opened(data, name) as image:
            return rgb_image(image)
    except DataError:
        plain = _without_extras(data)
        if len(plain) == len(data):
            raise
    with _opened(plain, name) as image:  # only what was written beside is at fault
        return rgb_image(image)


@contextlib.contextmanager
def _opened(data: bytes, name: str, small: bool = False) -> Iterator[Image.Image]:
    """The image with its pixels loaded, `small` a JPEG; all faults are DataError."""
    if not data:
        raise _bad(name, "it is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise _bad(name, f"{image.width} x {image.height} pixels are too many")
            if max(image.size) > _MOST_SIDES * min(image.size):
                raise _bad(name, f"{image.width} x {image.height} pixels: too long")
            if pixels > _FREE_PIXELS + _PIXELS_A_BYTE * len(data):
                raise _bad(name, f"{pixels} pixels in {len(data)} bytes: a bomb")
            if small:
                image.draft("L", (64, 64))
            image.load()
            yield image
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise _bad(name, "its pixels are too many") from error
    except UnidentifiedImageError as error:
        lfs = data.startswith(b"version https://git-lfs")
        reason = "a pointer of Git LFS, so `git lfs pull` is to be done" if lfs else ""
        raise _bad(name, reason or "not an image of a known format") from error
    except Exception as error:  # Pillow's readers raise anything on malformed data
        raise _bad(name, one_line(error)) from error


def _without_extras(data: bytes) -> bytes:
    """A PNG without texts and profiles, which Pillow refuses where they are large."""
    if not data.startswith(_PNG):
        return data
    kept, start = [_PNG], len(_PNG)
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        if kind in _PNG_CHUNKS:
            kept.append(data[start : start + length + 12])
        start += length + 12
    return b"".join(kept)


def doubtful_light(data: bytes) -> str:
    """What is odd about the light of an image, or "" for one that people can see.

    Raises DataError for one that cannot be decoded.
    """
    with _opened(data, "", small=True) as image:
        if image.mode.startswith("I"):
            bits = int(np.asarray(image).max(initial=0)).bit_length()
            if bits <= _FEW_BITS:
                return f"use {bits} of 16 bits: scale them so that white is 65535"
        high = rgb_image(image).convert("L").getextrema()[1]
    dark = isinstance(high, (int, float)) and high < _DARK
    return "are nearly black: are they pictures, and in the full range?" if dark else ""


def rgb_image(image: Image.Image) -> Image.Image:
    """An image as it should be seen, in mode RGB: upright, on white, 8 bits."""
    return _to_rgb(_upright(image))


def _bad(name: str, reason: str) -> DataError:
    return DataError(
        f"cannot decode image {name}: {reason}; "
        "repair it, or skip it with --on-bad-image skip"
    )


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # malformed EXIF: the pixels are still good
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_bytes(image)).convert("RGB")
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, "white")
        return Image.alpha_composite(white, colour).convert("RGB")
    return image.convert("RGB")


def _to_bytes(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(H, W) grey levels of more than 8 bits -> uint8.

    Integers count as 16-bit, or as 8 or 12 where so small that they would be nearly
    black.  Larger ones, and floats beyond 1, are scaled by their maximum.  Floats up to
    1 are taken as shares of white.
    """
    grey = np.nan_to_num(np.asarray(image, dtype=np.float32))  # (H, W)
    peak = float(grey.max(initial=0.0))
    units = (1.0,) if image.mode == "F" else (255.0, 4095.0, 65535.0)
    unit = next((unit for unit in units if peak <= unit), peak)
    scaled = grey.clip(0) * (255.0 / unit)
    return np.rint(scaled).clip(0, 255).astype(np.uint8)
