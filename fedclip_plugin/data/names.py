"""``--class-names FILE``: what class folders that are codes are called.

{"n01440764": "tench", "n01443537": "goldfish"}        JSON
n01440764 tench                                         a line each; tab, comma or
n01443537,goldfish                                      blank after the folder
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace

from ..config.paths import read_text
from ..errors import ConfigError, did_you_mean, reason
from .dataset import ImageDataset
from .listing import some

_BETWEEN = re.compile(r"\s*[,;]\s*|\s+")
_Pairs = list[tuple[str, str]]


def with_names(dataset: ImageDataset, path: str) -> ImageDataset:
    """`dataset` with the classes called as the file at `path` says.

    Entries of folders that there are not become a note.  Raises ConfigError, in one
    line, for a file that cannot be read, a class that it does not name, and an entry or
    a name that is there twice.
    """
    pairs = _read(path)
    names = dict(pairs)
    for what, values in (("folder", [f for f, _ in pairs]), ("name", names.values())):
        seen: set[str] = set()
        for value in values:
            if value in seen and (what == "folder" or _used(value, names, dataset)):
                raise ConfigError(f"--class-names {path}: the {what} {value!r} twice")
            seen.add(value)
    for name in dataset.classes:
        if name not in names:
            near = did_you_mean(name, names)
            raise ConfigError(
                f"--class-names {path}: no name for the class folder {name!r}{near}; "
                "add a line for it"
            )
    notes = dataset.notes
    if more := names.keys() - set(dataset.classes):
        notes += (
            f"--class-names {path} names folders that are not there: {some(more)}",
        )
    named = tuple(names[folder] for folder in dataset.classes)
    return replace(dataset, classes=named, notes=notes)


def _used(name: str, names: dict[str, str], dataset: ImageDataset) -> bool:
    """Whether more than one class of the data set would have this name."""
    return [names.get(folder) for folder in dataset.classes].count(name) > 1


def _read(path: str) -> _Pairs:
    try:
        text = read_text(path)
        if text.lstrip().startswith("{"):
            pairs = json.loads(text, object_pairs_hook=list)
        else:
            pairs = list(_lines(text))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"--class-names {path} cannot be read: {reason(error)}"
        ) from error
    for folder, name in pairs:
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(
                f"--class-names {path}: {folder!r} has no name; expected "
                '{"folder": "name", ...}, or a folder and its name on each line'
            )
    if not pairs:
        raise ConfigError(f"--class-names {path} is empty: expected folders and names")
    return [(folder.strip(), name.strip()) for folder, name in pairs]


def _lines(text: str) -> Iterator[tuple[str, str]]:
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("#"):
            continue
        parts = (
            line.split("\t", 1) if "\t" in line else _BETWEEN.split(line, maxsplit=1)
        )
        yield parts[0].strip('" '), parts[1].strip('" ') if parts[1:] else ""
