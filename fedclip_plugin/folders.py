"""Folders of images on disk, listed in the order of torchvision's ImageFolder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import DataError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp"),
    *(".tif", ".tiff", ".ppm", ".pgm"),
)


def subfolders(path: Path) -> list[Path]:
    """Folders in `path`, sorted by name, without hidden ones and `__MACOSX`."""
    try:
        with os.scandir(path) as entries:
            names = [e.name for e in entries if e.is_dir() and _is_visible(e.name)]
    except OSError as error:
        raise DataError(f"cannot list folder {path}: {error.strerror}") from error
    return [path / name for name in sorted(names)]


def image_files(folder: str | os.PathLike[str]) -> list[str]:
    """Paths of the image files at any depth in `folder`: by parent, then by name."""
    found = []
    for parent, names in sorted(_walk(os.fspath(folder))):
        images = (name for name in names if is_image_name(name))
        found += [os.path.join(parent, name) for name in sorted(images)]
    return found


def is_image_name(name: str) -> bool:
    """True for a visible file with a suffix of `IMAGE_SUFFIXES`, in either case."""
    return _is_visible(name) and name.lower().endswith(IMAGE_SUFFIXES)


def printable(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8 become `\\xNN`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read_file(paths: Sequence[str], index: int) -> bytes:
    """The bytes of `paths[index]`; raises DataError naming the file."""
    try:
        with open(paths[index], "rb") as file:
            return file.read()
    except OSError as error:
        raise DataError(
            f"cannot read image {printable(paths[index])}: {error.strerror}; "
            "mend it, or leave it out with --on-bad-image skip"
        ) from error


def stat_file(paths: Sequence[str], index: int) -> str:
    """`size-mtime_ns-ctime_ns` of `paths[index]`; raises DataError naming the file."""
    try:
        status = os.stat(paths[index])
    except OSError as error:
        raise DataError(
            f"cannot read image {printable(paths[index])}: {error.strerror}"
        ) from error
    # ctime too: a copy that keeps size and mtime of the file it replaces still sets it
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    def fail(error: OSError) -> None:
        raise DataError(f"cannot list folder {error.filename}: {error.strerror}")

    for parent, children, names in os.walk(folder, onerror=fail, followlinks=True):
        children[:] = [
            name
            for name in children
            if _is_visible(name) and not _leads_back(os.path.join(parent, name))
        ]
        yield parent, names


def _leads_back(path: str) -> bool:
    """True for a link to a folder that holds it: to follow it would never end."""
    if not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    inside = os.path.realpath(os.path.dirname(path))
    return os.path.commonpath([target, inside]) == target
