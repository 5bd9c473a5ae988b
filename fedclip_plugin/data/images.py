"""Encoded bytes to an RGB image, whatever the file holds.

A plain RGB or grey image comes out as `Image.open(...).convert("RGB")` gives it, as in
CLIP's own preprocessing.  Where that would lose the picture, this differs: 16-bit grey
is scaled and not clipped, transparency lies on white, and the rotation that a camera
noted in EXIF is applied.  Colour profiles are ignored; of an animation the first frame
is used.  Nothing global in Pillow is changed, so threads may decode side by side.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DataError, one_line

MAX_PIXELS = 178_956_970
"""Larger images are refused: where Pillow's own default turns to an error."""

_FREE_PIXELS = 1 << 24
_PIXELS_A_BYTE = 1000
"""Beyond the free ones; a blank JPEG has 170, a picture a few."""

_ORIENTATION = 0x0112  # EXIF tag
_TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")


def decode_image(data: bytes, name: str) -> Image.Image:
    """Decode one image (JPEG, PNG, WebP, BMP, TIFF, PPM, ...) to mode RGB.

    `name` is what the error calls the image.  Raises DataError on data that is empty,
    truncated, corrupt, not an image, larger than `MAX_PIXELS`, or far larger than its
    bytes can hold.
    """
    if not data:
        raise _bad(name, "it is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise _bad(name, f"{image.width} x {image.height} pixels are too many")
            if pixels > _FREE_PIXELS + _PIXELS_A_BYTE * len(data):
                raise _bad(name, f"{pixels} pixels in {len(data)} bytes: a bomb")
            image.load()
            return rgb_image(image)
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise _bad(name, "its pixels are too many") from error
    except UnidentifiedImageError as error:
        raise _bad(name, "not an image of a known format") from error
    except Exception as error:  # Pillow's readers raise anything on malformed data
        raise _bad(name, one_line(error)) from error


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

    Integers count as 16-bit unless they go beyond; those, and floats beyond 1, are
    scaled by their maximum.  Floats up to 1 are taken as shares of white.
    """
    grey = np.nan_to_num(np.asarray(image, dtype=np.float32))  # (H, W)
    peak = float(grey.max(initial=0.0))
    unit = 1.0 if image.mode == "F" else 65535.0
    scaled = grey.clip(0) * (255.0 / max(peak, unit))
    return np.rint(scaled).clip(0, 255).astype(np.uint8)
