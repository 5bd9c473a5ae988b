"""`--split FILE.json`: which images are for training, validation and test.

CoOp's form (Zhou et al. 2022), the one in which published splits come::

    {"train": [["path/of/image.jpg", 3, "class 3"], ...], "val": ..., "test": ...}

or a split a client: `{"hospital-a": {"train": ..., "val": ..., "test": ...}, ...}`.
A path is that of an image below the data set's folder, or the end of one; the numbers
are the file's own, and only have to name the same classes as the folders do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError, reason
from .listing import some
from .pools import Rows

PARTS = ("train", "val", "test")
WHOLE = ""
"""Stands for the client in a file that tells of none."""


def read_split(
    path: str, files: Mapping[str, Sequence[str]], labels: Rows
) -> dict[str, dict[str, Rows]]:
    """Client, or `WHOLE`, -> part -> its rows, in the order of the file.

    `files` are the images of each domain, row after row, `labels` (N,) the classes of
    the rows.  Entries of classes that were not chosen have no row.  Raises ConfigError,
    naming the entry, for a file that is not of that form, an image that is not there,
    one that is in two parts, and classes that are not those of the folders.
    """
    parts_of = _clients(path)
    names = [name for domain in files.values() for name in domain]
    if len(names) != len(labels):
        raise ConfigError(
            f"--split {path} needs the names of the images: use --root DIR, or write "
            "the feature directory again with `fedclip features`"
        )
    finder, clients = _Finder(path, names, labels), {}
    for client, parts in parts_of.items():
        clients[client] = {part: finder.rows(parts.get(part, [])) for part in PARTS}
    finder.check()
    return clients


def split_notes(
    path: str,
    files: Mapping[str, Sequence[str]],
    chosen: bool = False,
    held_out: str | None = None,
) -> list[str]:
    """Lines on images that the file names and `files` has not, and the other way round.

    The former are passed over: a site has a part of the images, a copy may be
    unfinished; where classes were `chosen`, the file's others are left out on purpose.
    Nor need it name those of the domain that is `held_out`.
    Without any image of the file `read_split` refuses.  Raises ConfigError for a file
    of another form.
    """
    names = _Names(path, [name for domain in files.values() for name in domain])
    entries = [
        _path(path, entry)
        for parts in _clients(path).values()
        for part in PARTS
        for entry in parts.get(part) or ()
    ]
    rows = [names.find(entry) for entry in entries]
    missing = [entry for entry, row in zip(entries, rows) if row is None]
    if len(missing) == len(entries):
        return []
    found = set(rows)
    owners = [domain for domain, own in files.items() for _ in own]
    ours = [row for row, domain in enumerate(owners) if domain != held_out]
    unused = [names.all[row] for row in ours if row not in found]
    notes = []
    if missing and not chosen:
        notes.append(
            f"--split {path}: {len(missing):,} of the {len(entries):,} images named in "
            f"it are not in the data set, such as {some(missing, 2)}"
        )
    if unused:
        notes.append(
            f"--split {path}: {len(unused):,} of the {len(ours):,} images of the "
            f"clients' domains are not in it, so no client has them, such as "
            f"{some(unused, 2)}"
        )
    return notes


def _path(path: str, entry: Any) -> str:
    """The image that an entry of a part names."""
    sound = isinstance(entry, list) and len(entry) >= 2
    if not sound or not isinstance(entry[0], str):
        raise ConfigError(f"--split {path}: {str(entry)[:80]}: expected [path, label]")
    return str(entry[0])


def _clients(path: str) -> dict[str, dict[str, Any]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            value = json.load(file)
    except OSError as error:
        raise ConfigError(f"--split {path} cannot be read: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"--split {path} is not readable JSON: {error}") from error
    if isinstance(value, dict) and "train" in value:
        value = {WHOLE: value}
    if not isinstance(value, dict) or not value:
        raise ConfigError(f'--split {path}: expected {{"train": [[path, label], ...]}}')
    for client, parts in value.items():
        if not isinstance(parts, dict) or not parts.keys() & set(PARTS):
            raise ConfigError(
                f"--split {path}: {client[:60]!r}: expected an object with "
                f"{', '.join(PARTS)}"
            )
    return value


class _Names:
    """The images of the data set, found by their paths or the ends of those."""

    def __init__(self, path: str, names: Sequence[str]) -> None:
        self.path = path
        self.all = names
        self.by_name = {name: row for row, name in enumerate(names)}
        self.by_last: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            self.by_last.setdefault(name.rsplit("/", 1)[-1], []).append(row)

    def find(self, path: str) -> int | None:
        """The row of the image; None where there is none."""
        path = path.replace("\\", "/")
        if path in self.by_name:
            return self.by_name[path]
        path = path.lstrip("./")
        rows = [
            row
            for row in self.by_last.get(path.rsplit("/", 1)[-1], ())
            if self.all[row].endswith(f"/{path}") or path.endswith(self.all[row])
        ]
        if len(rows) > 1:
            raise ConfigError(
                f"--split {self.path}: {path!r} may be any of "
                f"{some(self.all[row] for row in rows)}; write more of its path"
            )
        return rows[0] if rows else None


class _Finder:
    """Rows by the paths of a split file; each at most once."""

    def __init__(self, path: str, names: Sequence[str], labels: Rows) -> None:
        self.path = path
        self.names = _Names(path, names)
        self.labels = labels
        self.taken: set[int] = set()
        self.missing: list[str] = []
        self.classes: dict[object, int] = {}

    def rows(self, entries: object) -> Rows:
        """The rows of the entries of one part."""
        if not isinstance(entries, list):
            raise ConfigError(f"--split {self.path}: expected lists of [path, label]")
        return np.array(list(self._rows(entries)), dtype=np.int64)

    def _rows(self, entries: list[Any]) -> Iterator[int]:
        for entry in entries:
            name = _path(self.path, entry)
            row = self.names.find(name)
            if row is None:
                self.missing.append(name)
                continue
            if row in self.taken:
                raise ConfigError(f"--split {self.path}: {entry[0]!r} is in it twice")
            self.taken.add(row)
            mine = int(self.labels[row])
            if self.classes.setdefault(str(entry[1]), mine) != mine:
                raise ConfigError(
                    f"--split {self.path}: {entry[0]!r} has label {entry[1]}, as have "
                    "images of another class folder"
                )
            yield row

    def check(self) -> None:
        """Refuse a file that is of other images, or that numbers a class twice."""
        if not self.taken and not self.missing:
            raise ConfigError(f"--split {self.path} names no image")
        if not self.taken:
            raise ConfigError(
                f"--split {self.path}: none of its images is in the data set, such as "
                f"{some(self.missing, 2)}; the data set has {some(self.names.all, 2)}"
            )
        if len(set(self.classes.values())) < len(self.classes):
            raise ConfigError(
                f"--split {self.path} gives images of one class folder several labels"
            )
