"""What lies in the folders of a data set: which are looked into, what is an image.

Folders that a system, a network drive or Python makes are passed over, hidden ones
too, and links that lead back to where they lie.  A :class:`Listing` remembers what it
passed over and left out, for the notes of the data set.
"""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..errors import DataError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp"),
    *(".tif", ".tiff", ".ppm", ".pgm"),
    *(".jfif", ".jpe", ".jif", ".jfi", ".pjpeg", ".pjp"),  # JPEG by other names
)
_SYSTEM_FOLDERS = {
    *("__macosx", "network trash folder", "temporary items"),  # macOS
    *("$recycle.bin", "recycler", "system volume information", "found.000"),  # Windows
    *("lost+found", "__pycache__", "node_modules"),
    *("@eadir", "@tmp", "#recycle", "#snapshot"),  # Synology
    *("@recycle", "@__thumb", "@recently-snapshot", "~snapshot"),  # QNAP, NetApp
}
_SYSTEM_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f/\\:*?"<>|]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
LONGEST = 150  # bytes of a name; file systems allow 255
_MOST_BYTES = 1 << 31  # of one image


class Listing:
    """The folders and images of one data set; counts what is passed over."""

    def __init__(self) -> None:
        self.strays: dict[str, None] = {}  # folders outside the data
        self._system: dict[str, str] = {}  # path -> name
        self._known: dict[Path, tuple[list[str], Counter[str]]] = {}

    def subfolders(self, path: Path) -> list[Path]:
        """Folders in `path` that may hold data, sorted by name."""
        folders, files = self._entries(path)
        for entry in files:
            if entry.is_symlink() and not os.path.exists(entry.path):
                name = f"{printable(entry.name)} (a link that leads nowhere)"
                self.strays[name] = None
        return [path / name for name in sorted(entry.name for entry in folders)]

    def images(self, folder: Path) -> list[str]:
        """Paths of the image files at any depth: by parent, then by name."""
        return self._contents(folder)[0]

    def others(self, folder: Path) -> Counter[str]:
        """How many other files lie there, by suffix in lower case."""
        return self._contents(folder)[1]

    def images_in(self, folder: Path) -> int:
        """How many images lie in `folder` itself, none of its folders counted."""
        return sum(is_image_name(file.name) for file in self._entries(folder)[1])

    def notes(self, folders: Sequence[Path]) -> list[str]:
        """What was passed over, and what was left out of the class `folders`."""
        lines = []
        if self._system:
            names = Counter(self._system.values())
            listed = some(f"{n} ({c})" if c > 1 else n for n, c in names.items())
            lines.append(f"passed over folders of the system: {listed}")
        if self.strays:
            lines.append(
                f"passed over, as no part of the data: {some(self.strays)}; expected "
                "DOMAIN/CLASS/ with images, the classes those of the other domains"
            )
        left: Counter[str] = Counter()
        for folder in folders:
            left += self.others(folder)
        if left:
            kinds = (f"{n} {suffix}" for suffix, n in left.most_common())
            lines.append(
                f"left out: {some(kinds, ordered=False)}; what is read: "
                f"{' '.join(s[1:] for s in IMAGE_SUFFIXES[:9])}; convert pictures"
            )
        return lines

    def _contents(self, folder: Path) -> tuple[list[str], Counter[str]]:
        if folder not in self._known:
            images: list[str] = []
            others: Counter[str] = Counter()
            above = tuple(map(_identity, Path(os.path.realpath(folder)).parents))
            for parent, names in sorted(self._walk(os.fspath(folder), above)):
                images += [os.path.join(parent, n) for n in names if is_image_name(n)]
                rest = (n.lower() for n in names if not is_image_name(n))
                others.update(
                    os.path.splitext(n)[1] or "without suffix"
                    for n in rest
                    if n not in _SYSTEM_FILES
                )
            self._known[folder] = images, others
        return self._known[folder]

    def _walk(
        self, folder: str, above: tuple[tuple[int, int], ...]
    ) -> Iterator[tuple[str, list[str]]]:
        """Folder by folder, the sorted names of its visible files."""
        here = _identity(folder)
        if here in above:
            return  # a link to a folder that contains it: following would never end
        folders, files = self._entries(folder)
        for entry in folders:
            yield from self._walk(entry.path, (*above, here))
        yield folder, sorted(file.name for file in files)

    def _entries(
        self, path: str | os.PathLike[str]
    ) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
        """The visible folders and files in `path`, in no order; raises DataError.

        `.NAME.icloud` stands for an image that is not on this machine: it counts.
        """
        folders, files = [], []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.name[0] == "." and not entry.name.endswith(".icloud"):
                        continue
                    if not _is_folder(entry):
                        files.append(entry)
                    elif entry.name.casefold() in _SYSTEM_FOLDERS:
                        self._system[entry.path] = entry.name
                    else:
                        folders.append(entry)
        except OSError as error:
            raise DataError(
                f"cannot list folder {printable(os.fspath(path))}: {error.strerror}; "
                "make it readable, or move it away"
            ) from error
        return folders, files


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def is_image_name(name: str) -> bool:
    """True for a visible file with a suffix of `IMAGE_SUFFIXES`, in either case."""
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def safe_folder(name: str) -> str:
    """What can be a folder on every system; "" for a name of which nothing is left."""
    safe = FORBIDDEN.sub("-", name).encode()[:LONGEST].decode("utf-8", "ignore")
    safe = safe.strip(" .")
    if _RESERVED.fullmatch(safe) or safe.casefold() in _SYSTEM_FOLDERS:
        return f"{safe}-"
    return safe


def printable(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8 become `\\xNN`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def some(names: Iterable[str], limit: int = 5, ordered: bool = True) -> str:
    """The first few of `names`, and how many more there are."""
    shown = list(map(printable, sorted(names) if ordered else names))
    rest = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + rest


def read_file(paths: Sequence[str], index: int) -> bytes:
    """The bytes of `paths[index]`; raises DataError naming it, whatever lies there."""
    _status(paths[index])
    try:
        with open(paths[index], "rb") as file:
            return file.read()
    except OSError as error:
        raise _unreadable(paths[index], error.strerror) from error


def stat_file(paths: Sequence[str], index: int) -> str:
    """`size-mtime_ns-ctime_ns` of `paths[index]`; raises DataError naming the file."""
    status = _status(paths[index])
    # ctime too: a copy that keeps size and mtime of the file it replaces still sets it
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}"


def _status(path: str) -> os.stat_result:
    """Of a file that can be read to its end: a pipe or a device may never end."""
    try:
        status = os.stat(path)
    except OSError as error:
        broken = isinstance(error, FileNotFoundError) and os.path.islink(path)
        reason = "a link that leads nowhere" if broken else error.strerror
        raise _unreadable(path, reason) from error
    if not stat.S_ISREG(status.st_mode):
        raise _unreadable(path, "a folder, pipe, socket or device, not a file")
    if status.st_size > _MOST_BYTES:
        raise _unreadable(path, f"{status.st_size} bytes are too many for an image")
    return status


def _unreadable(path: str, reason: str | None) -> DataError:
    return DataError(
        f"cannot read image {printable(path)}: {reason}; "
        "repair it, or skip it with --on-bad-image skip"
    )
