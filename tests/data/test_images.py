from __future__ import annotations

import contextlib
import io
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from fedclip_plugin.data import images
from fedclip_plugin.data.images import decode_image
from fedclip_plugin.errors import DataError

MINI = Path(__file__).parents[3] / "shared" / "data" / "pacs-mini"


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (17, 11)) -> Image.Image:
    depth = len(Image.new(mode, (1, 1)).getbands())
    random = np.random.RandomState(0)
    shape = (size[1], size[0], depth)[: 2 + (depth > 1)]
    return Image.fromarray(random.randint(0, 256, shape).astype(np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_plain_images_are_what_clip_itself_would_see(mode: str, kind: str) -> None:
    data = encode(noise(mode), kind)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    image = decode_image(data, "x")
    assert image.mode == "RGB"
    assert image.size == (17, 11)
    assert image.tobytes() == expected.tobytes()


def test_cmyk_and_black_and_white() -> None:
    red = encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    assert np.allclose(decode_image(red, "x").getpixel((4, 4)), (255, 0, 0), atol=3)
    bits = encode(Image.new("1", (3, 3), 1), "PNG")
    assert decode_image(bits, "x").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    levels = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    image = decode_image(encode(Image.fromarray(levels), kind), "x")
    assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_big_endian_sixteen_bit_tiff() -> None:
    levels = np.array([[0, 51 * 257, 65535]], dtype=">u2")
    tags = [(256, 3), (257, 1), (258, 16), (259, 1), (262, 1), (273, 8), (278, 1)]
    tags += [(279, 6)]
    entries = b"".join(struct.pack(">HHIHH", tag, 3, 1, v, 0) for tag, v in tags)
    ifd = struct.pack(">H", len(tags)) + entries + struct.pack(">I", 0)
    data = b"MM\x00*" + struct.pack(">I", 14) + levels.tobytes() + ifd
    assert np.asarray(decode_image(data, "x"))[0, :, 0].tolist() == [0, 51, 255]


def test_float_grey() -> None:
    shares = np.array([[0.0, 0.5, 1.0, np.nan, -1.0]], dtype=np.float32)
    image = decode_image(encode(Image.fromarray(shares), "TIFF"), "x")
    assert np.asarray(image)[0, :, 0].tolist() == [0, 128, 255, 0, 0]


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    for kind in ("PNG", "WEBP"):
        image = decode_image(encode(clear, kind, lossless=True), "x")
        assert image.getpixel((0, 0)) == (255, 255, 255)
        assert image.getpixel((1, 0)) == (10, 20, 30)
    grey = encode(Image.new("LA", (1, 1), (0, 128)), "PNG")
    assert decode_image(grey, "x").getpixel((0, 0)) == (127, 127, 127)


def test_palette_with_and_without_transparency() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 0, 0, 0, 200, 0])
    palette.putpixel((1, 0), 1)
    plain = decode_image(encode(palette, "PNG"), "x")
    assert [plain.getpixel((i, 0)) for i in (0, 1)] == [(200, 0, 0), (0, 200, 0)]
    clear = decode_image(encode(palette, "PNG", transparency=0), "x")
    assert [clear.getpixel((i, 0)) for i in (0, 1)] == [(255,) * 3, (0, 200, 0)]


def test_transparent_colour_key() -> None:
    data = encode(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert decode_image(data, "x").getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_applied() -> None:
    image = Image.new("RGB", (20, 10))
    image.paste((255, 255, 255), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to view
    turned = decode_image(encode(image, "JPEG", exif=exif, quality=100), "x")
    assert turned.size == (10, 20)
    assert turned.getpixel((5, 2))[0] > 250  # what was left is on top
    assert turned.getpixel((5, 17))[0] < 5


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_malformed_exif_does_not_spoil_the_pixels() -> None:
    data = encode(noise(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert decode_image(data, "x").tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_several(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert decode_image(data, "x").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_truncated_data_names_the_image_and_the_remedy(kind: str) -> None:
    data = encode(noise(size=(64, 64)), kind)
    with pytest.raises(DataError, match=r"dog/1\.jpg.*--on-bad-image skip") as caught:
        decode_image(data[: len(data) // 2], "dog/1.jpg")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\xff\xd8\xff", bytes(999)])
def test_what_is_no_image_at_all(data: bytes) -> None:
    with pytest.raises(DataError, match="cannot decode image x"):
        decode_image(data, "x")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_never_raise_anything_else() -> None:
    random = np.random.RandomState(0)
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"):
        whole = np.frombuffer(encode(noise(), kind), dtype=np.uint8)
        for _ in range(60):
            data = whole.copy()
            data[random.randint(0, len(data), 5)] = random.randint(0, 256, 5)
            with contextlib.suppress(DataError):
                assert decode_image(data.tobytes(), "x").mode == "RGB"


def test_a_line_is_no_picture() -> None:
    with pytest.raises(DataError, match="1 x 2000 pixels: too long"):
        decode_image(encode(Image.new("L", (1, 2000)), "PNG"), "x")


def test_what_stands_for_an_image_elsewhere_names_the_remedy() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n"
    with pytest.raises(DataError, match=r"git lfs pull"):
        decode_image(pointer, "x")


def test_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("L", (100, 100)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match="too many"):
        decode_image(data, "x")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(images, "MAX_PIXELS", 9_999)
    with pytest.raises(DataError, match="100 x 100 pixels are too many"):
        decode_image(data, "x")


def test_threads_agree_and_no_global_changes() -> None:
    data = [encode(noise(size=(60 + i, 50)), "JPEG") for i in range(8)] * 8
    expected = [decode_image(d, "x").tobytes() for d in data]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda d: decode_image(d, "x").tobytes(), data))
    assert found == expected
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.skipif(not MINI.is_dir(), reason="real images are not here")
def test_real_images_are_what_clip_itself_would_see() -> None:
    files = sorted(path for path in MINI.rglob("*.*") if path.is_file())
    assert len(files) == 560
    for path in files:
        image = decode_image(path.read_bytes(), path.name)
        assert image.size == (227, 227)
        assert image.tobytes() == Image.open(path).convert("RGB").tobytes()


def test_a_small_file_that_unpacks_to_a_large_image_is_refused() -> None:
    bomb = encode(Image.new("1", (9_000, 9_000)), "PNG")
    assert len(bomb) < 20_000
    with pytest.raises(DataError, match=r"81000000 pixels in .* bytes: a bomb"):
        decode_image(bomb, "x")
    blank = encode(Image.new("L", (4_000, 4_000)), "PNG")
    assert decode_image(blank, "x").size == (4_000, 4_000)
