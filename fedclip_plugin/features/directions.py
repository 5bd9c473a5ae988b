"""Features that tell nothing: rows without a direction, and rows that are all the same.

All that CLIP compares are directions.  The cosine similarity of a row of zeros with a
class is undefined: normalised it stays zero, and every class scores alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..data.listing import some
from ..ops.adapter import NORM_FLOOR

ALIKE = 1e-5  # of the largest value: what rounding in batches of other sizes changes
ROWS_AT_ONCE = 1 << 14  # copied or compared; bounds memory


def lengths(x: Tensor) -> Tensor:
    """L2 norms (N,) of the rows of ``x`` (N, D), without a copy of it.

    NaN or infinite where a value is, or where the squares overflow.
    """
    found: Tensor = torch.linalg.vector_norm(x, dim=1)
    return found


def undirected(x: Tensor) -> Tensor:
    """The rows of ``x`` (N, D) that have no direction, (M,) int64 ascending."""
    (rows,) = (lengths(x) < NORM_FLOOR).nonzero(as_tuple=True)
    return rows


def named(files: Sequence[str] | None, row: int) -> str:
    """The image of a domain's row, or its number from 0."""
    return files[row] if files else f"row {row}"


def doubts(
    image: Mapping[str, Tensor],
    files: Mapping[str, Sequence[str]],
    text: Tensor,
    classes: Sequence[str],
) -> Iterator[str]:
    """Lines on images and classes that features do not tell apart.

    ``image[domain]`` (N, D), ``text`` (C, D); ``files`` names the rows of a domain
    where that is known.
    """
    for domain, x in image.items():
        if len(bad := undirected(x)):
            names = (named(files.get(domain), i) for i in bad.tolist())
            yield (
                f"{domain}: the features of {len(bad):,} of {len(x):,} images are "
                f"zeros and say nothing: {some(names, ordered=False)}; leave these "
                "images out, or encode them again"
            )
        elif len(x) > 1 and _same(x):
            yield (
                f"{domain}: all {len(x):,} images have the same features, so that "
                "nothing tells them apart; leave out copies of one image, or take "
                "another checkpoint"
            )
    bad = undirected(text)
    if len(bad):
        yield (
            f"the text features of {len(bad):,} of {len(text):,} classes are zeros, so "
            f"that no image is like them: {some(classes[i] for i in bad.tolist())}; "
            "encode the captions again"
        )
    yield from _alike(classes, text)


def _same(x: Tensor) -> bool:
    limit = ALIKE * float(x[0].abs().max())
    parts = x.split(ROWS_AT_ONCE)
    return all(float((part - x[0]).abs().max()) <= limit for part in parts)


def _alike(classes: Sequence[str], text: Tensor) -> Iterator[str]:
    """Classes that no image can be told apart by: their captions are encoded alike."""
    groups: dict[bytes, list[str]] = {}
    for name, row in zip(classes, text):
        if row.any():
            groups.setdefault(row.numpy().tobytes(), []).append(name)
    if alike := [name for group in groups.values() if group[1:] for name in group]:
        yield (
            f"the captions of {some(alike)} are encoded alike, so that nothing tells "
            "these classes apart; shorten --prompt, which is cut at the model's "
            "context, or rename the folders"
        )
