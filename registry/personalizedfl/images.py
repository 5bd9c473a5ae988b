"""The images of a PersonalizedFL run: encoded once, found again behind any loader.

The host augments its images and resizes them to 256 x 256; CLIP wants its own
preprocessing.  So the files are read, through the feature cache, and of a loader only
the paths, the labels and the row numbers count.
"""

from __future__ import annotations

import argparse
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...algorithms import Samples
from ...config.schema import RunConfig
from ...data.dataset import ImageDataset, ImageDomain
from ...data.folders import load_dataset
from ...data.listing import printable
from ...errors import DataError
from ...features import obtain
from ...features.feature_set import FeatureSet
from ...ops.kernels import resolve_device
from .start import ARRAYS, Progress, data_folder, refuse_time_series, say

# MedMNIST v2 (Yang et al. 2023), `medmnist/info.py`, the same for OrganA, C and SMNIST
ORGANS = (
    *("bladder", "left femur", "right femur", "heart", "left kidney", "right kidney"),
    *("liver", "left lung", "right lung", "pancreas", "spleen"),
)


class HostImages:
    """Features of all images of a host's data set; ``samples`` finds a loader's.

    ``x`` (N, D) and ``y`` (N,) are on the training device, all domains one after the
    other.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        features: FeatureSet,
        folder: str,
        device: torch.device,
    ) -> None:
        self.features = features
        self.x = torch.cat([features.image[d] for d in features.domains]).to(device)
        self.y = torch.cat([features.label[d] for d in features.domains]).to(device)
        self._folder = folder
        self._rows = _rows_of_files(dataset, features)
        # keyed by the loader itself: an id may be used again by another
        self._known: weakref.WeakKeyDictionary[Any, Samples] = (
            weakref.WeakKeyDictionary()
        )

    def samples(self, loader: Any) -> Samples:
        """Features and labels of the rows behind ``loader``, in their order.

        Raises DataError for an image that is not of this data set, or whose label
        differs.
        """
        if loader not in self._known:
            self._known[loader] = self._look_up(loader)
        return self._known[loader]

    def _look_up(self, loader: Any) -> Samples:
        data, indices = _behind(loader)
        labels = np.asarray(data.targets, dtype=np.int64)[indices]
        rows_of = [self._rows.get(name, -1) for name in self._names(data, indices)]
        for place, row in enumerate(rows_of):
            if row == -1:
                raise DataError(self._stranger(data, int(indices[place])))
        kept = [i for i, row in enumerate(rows_of) if row is not None]
        rows = torch.tensor([rows_of[i] for i in kept], dtype=torch.int64)
        rows = rows.to(self.y.device)
        y = self.y[rows]
        wrong = np.flatnonzero(y.cpu().numpy() != labels[kept])
        if len(wrong):
            place = kept[wrong[0]]
            raise DataError(
                f"{self._title(data, int(indices[place]))}: the loader gives class "
                f"{labels[place]}, {self._folder} says {int(y[wrong[0]])}; every "
                "domain needs the same class folders"
            )
        return Samples(self.x[rows], y)

    def _names(self, data: Any, indices: npt.NDArray[np.int64]) -> list[str]:
        if not hasattr(data, "x"):
            return [str(i) for i in indices.tolist()]
        names = (os.path.relpath(data.x[i], self._folder) for i in indices.tolist())
        return [printable(name.replace(os.sep, "/")) for name in names]

    def _title(self, data: Any, index: int) -> str:
        return str(data.x[index]) if hasattr(data, "x") else f"image {index}"

    def _stranger(self, data: Any, index: int) -> str:
        return (
            f"{self._title(data, index)} is behind a loader but not among the images "
            f"of {self._folder}; fedclip encodes ROOT_DIR/DATASET/DOMAIN/CLASS/ "
            f"folders, or {' and '.join(ARRAYS)}"
        )


def _behind(loader: Any) -> tuple[Any, npt.NDArray[np.int64]]:
    """The data set under all subsets, and the rows (n,) of it that a loader gives."""
    data = loader.dataset
    indices = np.arange(len(data), dtype=np.int64)
    while hasattr(data, "indices"):
        indices = np.asarray(data.indices, dtype=np.int64)[indices]
        # torch's Subset has .dataset, the host's Partition .data
        data = data.dataset if hasattr(data, "dataset") else data.data
    if not hasattr(data, "targets"):
        raise DataError(
            f"data set {type(data).__name__} has no .targets; fedclip needs the paths "
            "in .x and the labels in .targets, as PersonalizedFL's ImageDataset has"
        )
    return data, indices


def _rows_of_files(
    dataset: ImageDataset, features: FeatureSet
) -> dict[str, int | None]:
    """File -> its row over all domains; None for one that could not be read."""
    rows: dict[str, int | None] = dict.fromkeys(features.skipped)
    files = {domain.name: domain.files for domain in dataset.domains}
    start = 0
    for name in features.domains:
        kept = [file for file in files.get(name, ()) if file not in rows]
        if len(kept) != len(features.label[name]):
            raise DataError(
                f"the features hold {len(features.label[name])} images of {name}, "
                f"data set {dataset.name} has {len(kept)}: make them from these images"
            )
        rows.update((file, start + i) for i, file in enumerate(kept))
        start += len(kept)
    return rows


# ----------------------------------------------------------------------------- opening


def open_images(args: argparse.Namespace, config: RunConfig) -> HostImages:
    """All images that the host's ``args`` mean, encoded now or known from before.

    Raises FedClipError, as ``fedclip run`` does; DataError for a time series.
    """
    folder = data_folder(args)
    dataset = host_dataset(args, folder)
    if config.data.features is not None:
        features, stats = obtain.obtain_features(config)
    else:
        features, stats = obtain.encode_dataset(dataset, config, Progress())
    say(
        f"{stats.images} images, {stats.encoded} encoded now"
        + (f" in {stats.precision}" if stats.precision else "")
        + f"; {stats.seconds:.1f} s"
    )
    return HostImages(dataset, features, folder, resolve_device(config.model.device))


def host_dataset(args: argparse.Namespace, folder: str) -> ImageDataset:
    """The data set of ``args`` as images: folders, or arrays of pixels."""
    refuse_time_series(args.dataset)
    if getattr(args, "domains", None):
        return load_dataset(args.dataset, folder, args.domains)
    if all((Path(folder) / name).is_file() for name in ARRAYS):
        return array_dataset(args.dataset, Path(folder), args.num_classes)
    raise DataError(
        f"--dataset {args.dataset}: {folder} holds neither DOMAIN/CLASS/ folders that "
        f"main.py names in args.domains, nor {' and '.join(ARRAYS)}"
    )


def array_dataset(name: str, folder: Path, num_classes: int) -> ImageDataset:
    """``xdata.npy`` (N, H, W) or (N, H, W, C) and ``ydata.npy`` as one domain.

    Every image becomes an RGB file in memory, so that CLIP's own preprocessing and the
    cache serve it.  Raises DataError for arrays that are not images.
    """
    pixels = np.load(folder / ARRAYS[0], mmap_mode="r")
    labels = np.load(folder / ARRAYS[1]).reshape(-1).astype(np.int64)
    if not (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] in (1, 3))):
        raise DataError(
            f"{folder / ARRAYS[0]} has the shape {pixels.shape}: expected images "
            "(N, H, W), (N, H, W, 1) or (N, H, W, 3)"
        )
    if len(labels) != len(pixels) or not _within(labels, num_classes):
        raise DataError(
            f"{folder / ARRAYS[1]} must hold {len(pixels)} labels in "
            f"0..{num_classes - 1}, one for each image"
        )
    offset, scale = _grey_scale(pixels, folder / ARRAYS[0])

    def read(index: int) -> bytes:
        grey = (np.asarray(pixels[index], dtype=np.float64) - offset) * scale
        return _ppm(np.rint(grey).astype(np.uint8))

    files = tuple(str(i) for i in range(len(labels)))
    classes = class_names(name, num_classes)
    return ImageDataset(name, classes, (ImageDomain(name, files, labels, read),))


def class_names(name: str, count: int) -> tuple[str, ...]:
    """The organs of the OrganMNIST sets; numbers where no names are known."""
    if name.startswith("medmnist") and count == len(ORGANS):
        return ORGANS
    return tuple(f"class {i}" for i in range(count))


def _within(labels: npt.NDArray[np.int64], count: int) -> bool:
    return not len(labels) or (int(labels.min()) >= 0 and int(labels.max()) < count)


def _grey_scale(pixels: npt.NDArray[Any], path: Path) -> tuple[float, float]:
    """Offset and factor that bring all pixels of a data set to 0..255.

    0..255 stays, 0..1 is a share of white, anything else is stretched.
    """
    low, high = float(pixels.min(initial=0)), float(pixels.max(initial=0))
    if not np.isfinite([low, high]).all():
        raise DataError(f"{path} holds NaN or Inf")
    if low >= 0 and high <= 255:
        whole = np.issubdtype(pixels.dtype, np.integer) or high > 1
        return 0.0, 1.0 if whole else 255.0
    return low, 255.0 / (high - low)


def _ppm(pixels: npt.NDArray[np.uint8]) -> bytes:
    """(H, W) or (H, W, 1 or 3) as a PPM file: the same bytes with every Pillow."""
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    height, width, _ = pixels.shape
    rgb = np.broadcast_to(pixels, (height, width, 3))
    return f"P6 {width} {height} 255\n".encode() + rgb.tobytes()
