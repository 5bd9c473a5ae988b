"""What a data set is: named domains of encoded images over one list of classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class ImageDomain:
    """The images of one domain, encoded, in a fixed order.

    `files` are N names relative to the data set's root, sorted as torchvision's
    `ImageFolder` sorts them; `labels` is (N,) int64, an index into the data set's
    classes. `read(i)` gives image i as encoded bytes (PNG, JPEG, ...) and raises
    `DataError` where it cannot. `stat(i)` is a cheap stamp that changes with file i,
    or `stat` is None for images that live in memory.
    """

    name: str
    files: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    read: Callable[[int], bytes]
    stat: Callable[[int], str] | None = None


@dataclass(frozen=True)
class ImageDataset:
    """Domains that share their classes, in the order in which reports list them."""

    name: str
    classes: tuple[str, ...]
    domains: tuple[ImageDomain, ...]
