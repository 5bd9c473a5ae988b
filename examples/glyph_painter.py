"""Endless pictures of digits and letters, drawn from the fonts that matplotlib ships.

A glyph is kept as two distance fields, to its outline and to its skeleton: bent fields
stay smooth, and the width of the pen is a mere threshold.  The four styles resemble the
domains of the data set `digits`, but no handwriting and no photograph goes into them.
`pretrain_tiny_clip.py` trains on what :class:`Painter` draws.
"""

from __future__ import annotations

import functools
import math
import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import get_data_path
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt
from torch import Tensor

FIELD = 48  # pixels across a glyph's distance fields
INK = 0.8  # share of the field that the glyph spans
SIZE = 32  # pixels across an image
DIGITS, LETTERS = string.digits, string.ascii_lowercase
CLASSES = DIGITS + LETTERS
STYLES = ("scan", "negative", "photo", "sketch")
# Shapes that a pen gives a digit and a font does not: other characters that show them.
ALTERNATES = {"0": "O", "1": "lI|", "4": "\u0427\u0447"}


@dataclass(frozen=True)
class Glyphs:
    """`fields` (G, 2, F, F): distance to the outline (< 0 inside) and to the skeleton,
    in units of the half field; `rows[c]` lists the glyphs of class c."""

    fields: Tensor
    rows: list[Tensor]


def usable_fonts() -> list[Path]:
    folder = Path(get_data_path()) / "fonts" / "ttf"
    needed = {ord(c) for c in string.digits + string.ascii_letters}
    symbols = ("cmsy", "cmmi", "LastResort")  # pictures, old-style figures, boxes
    return [
        path
        for path in sorted(folder.glob("*.ttf"))
        if not path.name.startswith(symbols)
        and needed <= FT2Font(str(path)).get_charmap().keys()
    ]


def draw_glyph(character: str, font: ImageFont.FreeTypeFont) -> np.ndarray:
    """Bool mask (F, F) with the character's box centred, its longer side INK of F."""
    left, top, right, bottom = font.getbbox(character)
    canvas = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(canvas).text((-left, -top), character, fill=255, font=font)
    scale = INK * FIELD / max(canvas.size)
    size = (max(2, round(canvas.width * scale)), max(2, round(canvas.height * scale)))
    mask = Image.new("L", (FIELD, FIELD))
    corner = ((FIELD - size[0]) // 2, (FIELD - size[1]) // 2)
    mask.paste(canvas.resize(size, Image.Resampling.BOX), corner)
    return np.asarray(mask) > 110


def cross_bar(seven: np.ndarray) -> np.ndarray:
    """The continental 7: a short bar through the stem."""
    mask = seven.copy()
    row = FIELD // 2
    stem = int(np.flatnonzero(seven[row]).mean())
    mask[row : row + 3, max(0, stem - 8) : stem + 9] = True
    return mask


@functools.cache
def load_glyphs() -> Glyphs:
    masks, owners = [], []
    for path in usable_fonts():
        font = ImageFont.truetype(str(path), 96)
        charmap = FT2Font(str(path)).get_charmap()
        for owner, name in enumerate(CLASSES):
            same = name + name.upper() if name in LETTERS else name
            for character in same + ALTERNATES.get(name, ""):
                if ord(character) in charmap:
                    masks.append(draw_glyph(character, font))
                    owners.append(owner)
            if name == "7":
                masks.append(cross_bar(masks[-1]))
                owners.append(owner)
    ink = np.stack(masks)
    bones = thin(ink)
    fields = [
        np.stack(
            [
                distance_transform_edt(~m) - distance_transform_edt(m),
                distance_transform_edt(~b),
            ]
        )
        for m, b in zip(ink, bones, strict=True)
    ]
    owner_of = torch.tensor(owners)
    return Glyphs(
        fields=torch.tensor(np.stack(fields), dtype=torch.float32) / (FIELD / 2),
        rows=[(owner_of == c).nonzero()[:, 0] for c in range(len(CLASSES))],
    )


def thin(masks: np.ndarray) -> np.ndarray:
    """Skeletons of (G, F, F) bool masks (Zhang and Suen, CACM 27(3), 1984)."""
    ink = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    around = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
    changed = True
    while changed:
        changed = False
        for one, two in (((0, 2, 4), (2, 4, 6)), ((0, 2, 6), (0, 4, 6))):
            near = np.stack([np.roll(ink, (-y, -x), (1, 2)) for y, x in around])
            count = near.sum(0)
            rises = (~near & np.roll(near, -1, 0)).sum(0)
            gone = ink & (count >= 2) & (count <= 6) & (rises == 1)
            gone &= ~near[list(one)].all(0) & ~near[list(two)].all(0)
            ink = ink & ~gone
            changed |= bool(gone.any())
    return ink[:, 1:-1, 1:-1]


class Painter:
    """Draws batches of styled glyphs; all randomness comes from one generator."""

    def __init__(self, glyphs: Glyphs, seed: int) -> None:
        self.glyphs = glyphs
        self.random = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Float32 tensor of this shape, even between low and high."""
        return low + (high - low) * torch.rand(shape, generator=self.random)

    def normal(self, *shape: int) -> Tensor:
        """Float32 tensor of this shape, standard normal."""
        return torch.randn(shape, generator=self.random)

    def index(self, high: int, *shape: int) -> Tensor:
        """Int64 tensor of this shape, even over 0 .. high - 1."""
        return torch.randint(high, shape, generator=self.random)

    def batch(self, classes: Tensor, styles: Tensor) -> Tensor:
        """(B,) class and (B,) style indices -> (B, 3, SIZE, SIZE) in 0..1."""
        grey = self.drawing(classes)
        sketch = styles == STYLES.index("sketch")
        turned = sketch | (self.uniform(0, 1, len(classes)) < 0.1)
        grey[turned] = self.turn(grey[turned])
        grey[sketch] = self.outline(grey[sketch])
        image = grey[:, None].repeat(1, 3, 1, 1)
        negative = styles == STYLES.index("negative")
        image[negative] = 1 - image[negative]
        photo = styles == STYLES.index("photo")
        image[photo] = self.blend(image[photo])
        image += self.normal(*image.shape) * self.uniform(0, 0.03, len(image), 1, 1, 1)
        return image.clamp(0, 1)

    def drawing(self, classes: Tensor) -> Tensor:
        """Light ink on dark ground, (B, SIZE, SIZE): bent, fitted, pooled, enlarged."""
        count = len(classes)
        pick = [self.glyphs.rows[c] for c in classes.tolist()]
        chance = self.uniform(0, 1, count).tolist()
        rows = torch.stack([r[int(u * len(r))] for r, u in zip(pick, chance)])
        pen = (self.uniform(0, 1, count) < 0.6).long()  # skeleton or the font's weight
        fields = self.glyphs.fields[rows, pen][:, None]  # (B, 1, F, F)
        width = torch.where(
            pen == 1, self.uniform(0.08, 0.2, count), self.uniform(-0.02, 0.1, count)
        )
        bend = self.bend(count)
        ink = self.ink(fields, width, bend, grid(count, SIZE))
        ink = self.ink(fields, width, bend, self.fit(ink))  # (B, SIZE, SIZE)
        small = F.avg_pool2d(ink[:, None], 4)  # (B, 1, 8, 8)
        small = (small * 16).round() / 16
        low = F.interpolate(
            F.pad(small, (1, 1, 1, 1)), SIZE, mode="bicubic", antialias=True
        )
        sharp = F.interpolate(F.pad(ink[:, None], (4, 4, 4, 4)), SIZE, mode="bilinear")
        keep = self.uniform(0, 1, count) < 0.15
        return torch.where(keep[:, None, None], sharp[:, 0], low[:, 0]).clamp(0, 1)

    def bend(self, count: int) -> tuple[Tensor, Tensor]:
        """Affine matrices (B, 2, 2) and coarse displacement fields (B, 2, 5, 5)."""
        angle = self.normal(count) * math.radians(8)
        slant = self.normal(count) * 0.22
        stretch = torch.exp(self.normal(count) * 0.18)
        cos, sin = angle.cos(), angle.sin()
        turn = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
        shear = torch.stack([stretch, slant, torch.zeros(count), 1 / stretch], 1).view(
            -1, 2, 2
        )
        strength = self.uniform(0.02, 0.14, count, 1, 1, 1)
        return turn @ shear, self.normal(count, 2, 5, 5) * strength

    def ink(
        self, fields: Tensor, width: Tensor, bend: tuple[Tensor, Tensor], at: Tensor
    ) -> Tensor:
        """Ink (B, S, S) in 0..1 at the points `at` (B, S, S, 2) of the bent glyph."""
        matrix, shift = bend
        shift = F.interpolate(shift, 20, mode="bicubic", align_corners=True)
        moved = at @ matrix.transpose(1, 2)[:, None]
        moved = moved + F.grid_sample(
            shift, at, padding_mode="border", align_corners=True
        ).permute(0, 2, 3, 1)
        distance = F.grid_sample(
            fields, moved, padding_mode="border", align_corners=False
        )[:, 0]
        return torch.sigmoid((width[:, None, None] - distance) * 40)

    def fit(self, ink: Tensor) -> Tensor:
        """Points (B, S, S, 2) at which the ink fills the square's height."""
        seen = ink > 0.5
        lines = torch.linspace(-1, 1, ink.shape[-1])
        spans = []
        for axis in (1, 2):  # columns: x, rows: y
            there = seen.any(axis)
            low = torch.where(there, lines, 1.0).amin(1)
            high = torch.where(there, lines, -1.0).amax(1)
            spans.append((low, high))
        (left, right), (top, bottom) = spans
        height = ((bottom - top) / 2).clamp(min=0.2) + 0.03
        width = ((right - left) / 2).clamp(min=0.02) + 0.03
        share = (width / height * self.uniform(0.75, 1.4, len(ink))).clamp(0.2, 1)
        centre = torch.stack([left + right, top + bottom], 1) / 2
        centre[:, 0] += self.normal(len(ink)) * 0.06
        scale = torch.stack([width / share, height], 1)
        return grid(len(ink), SIZE) * scale[:, None, None] + centre[:, None, None]

    def turn(self, grey: Tensor) -> Tensor:
        """Rotate (B, S, S) drawings by up to 30 degrees either way."""
        angle = self.uniform(-math.pi / 6, math.pi / 6, len(grey))
        zero, cos, sin = torch.zeros_like(angle), angle.cos(), angle.sin()
        theta = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
        at = F.affine_grid(theta, [len(grey), 1, SIZE, SIZE], align_corners=False)
        return F.grid_sample(grey[:, None], at, align_corners=False)[:, 0]

    def outline(self, grey: Tensor) -> Tensor:
        """Dark contour lines on white, thin or thick."""
        level = self.uniform(0.35, 0.6, len(grey), 1, 1)
        mask = (grey >= level).float()[:, None]  # 4D: max_pool2d takes an empty batch
        edge = mask + F.max_pool2d(1 - mask, 3, 1, 1) - 1
        thick = F.max_pool2d(edge, 2, 1, 1)[..., :SIZE, :SIZE]
        choose = self.uniform(0, 1, len(grey), 1, 1) < 0.25
        return 1 - torch.where(choose, thick[:, 0], edge[:, 0])

    def blend(self, image: Tensor) -> Tensor:
        """Absolute difference with a texture, as MNIST-M does; sometimes an overlay."""
        texture = self.texture(len(image))
        colour = self.uniform(0, 1, len(image), 3, 1, 1)
        overlay = image * colour + (1 - image) * texture
        difference = (image - texture).abs()
        choose = self.uniform(0, 1, len(image), 1, 1, 1) < 0.15
        return torch.where(choose, overlay, difference)

    def texture(self, count: int) -> Tensor:
        """Made-up backgrounds (B, 3, SIZE, SIZE): octaves of coloured noise, two such
        divided by a ragged edge."""
        layers = [self.noise(count) for _ in range(3)]
        edge = (layers[2].mean(1, keepdim=True) - 0.5) * self.uniform(
            2, 40, count, 1, 1, 1
        )
        share = torch.sigmoid(edge)
        plain = self.uniform(0, 1, count, 1, 1, 1) < 0.5
        return torch.where(
            plain, layers[0], layers[0] * share + layers[1] * (1 - share)
        )

    def noise(self, count: int) -> Tensor:
        """Coloured noise (B, 3, SIZE, SIZE) in 0..1, from smooth to rough."""
        fall = self.uniform(0.3, 1.0, count, 1, 1, 1)  # spectrum: rough to smooth
        total = torch.zeros(count, 4, SIZE, SIZE)
        for octave, size in enumerate((2, 4, 8, 16, 32)):
            layer = self.normal(count, 4, size, size)
            total += F.interpolate(layer, SIZE, mode="bilinear") * fall**octave
        grey, colour = total[:, :1], total[:, 1:]
        mixed = grey + colour * self.uniform(0, 0.7, count, 1, 1, 1)
        contrast = self.uniform(0.01, 0.2, count, 1, 1, 1)
        base = self.uniform(0, 1, count, 1, 1, 1) + 0.25 * self.normal(count, 3, 1, 1)
        return (base + contrast * mixed).clamp(0, 1)


def grid(count: int, size: int) -> Tensor:
    """(B, size, size, 2) points x, y over the square -1..1."""
    line = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], -1).expand(count, size, size, 2)
