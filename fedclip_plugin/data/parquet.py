"""Parquet files of labelled images, row by row in bounded memory."""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError, one_line
from .listing import FORBIDDEN, LONGEST, safe_folder

COLUMNS = {
    "image": ("image", "img", "picture"),
    "domain": ("domain", "environment", "env", "style", "domain_name"),
    "label": (
        *("label", "class", "category"),
        *("label_name", "class_name", "category_name", "label_text"),
    ),
}
_BATCH_ROWS = 64
_NUMBER = re.compile(r"u?int|float|halffloat|double|bool")
_SIGNATURES = (
    (re.compile(rb"\xff\xd8\xff"), ".jpg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), ".png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), ".webp"),
    (re.compile(rb"BM"), ".bmp"),
    (re.compile(rb"II\*\x00|MM\x00\*"), ".tif"),
    (re.compile(rb"P[3-6]\s"), ".ppm"),
)


class FolderNames:
    """A folder for every name of a column: safe on every system, no two the same."""

    def __init__(self) -> None:
        self.folders: dict[str, str] = {}  # by name

    def folder(self, name: str) -> str:
        """`name` itself, or what is near it where that cannot be a folder."""
        if name not in self.folders:
            safe = folder = safe_folder(name)
            copy = 2
            while folder in self.folders.values():
                folder, copy = f"{safe}-{copy}", copy + 1
            self.folders[name] = folder
        return self.folders[name]

    def changed(self) -> dict[str, str]:
        """Folder -> name, of those that differ; control characters become blanks."""
        shown = {
            folder: "".join(c if c.isprintable() else " " for c in name).strip()
            for name, folder in self.folders.items()
        }
        return {folder: name for folder, name in shown.items() if name != folder}


@dataclass(frozen=True)
class ImageRow:
    """One image: its encoded bytes and their suffix, its domain and its class."""

    data: bytes
    suffix: str
    domain: str
    label: str
    stem: str | None  # the original file's name without suffix, if usable


@dataclass(frozen=True)
class ImageTable:
    """An open parquet file with the columns that hold images and labels."""

    path: Path
    file: Any  # pyarrow.parquet.ParquetFile
    columns: Mapping[str, str]  # image, domain, label -> the column's name
    names: Mapping[str, Sequence[str]]  # of those, ClassLabel names
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> rows

    @classmethod
    def open(cls, path: Path) -> ImageTable:
        """Read the schema; raises DataError on another format or missing columns."""
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise DataError(
                f"reading {path} needs pyarrow; pip install 'fedclip-plugin[hub]'"
            ) from error
        try:
            file = parquet.ParquetFile(path, pre_buffer=False)
        except (ValueError, OSError) as error:  # ArrowInvalid is a ValueError
            raise DataError(
                f"{path} is not a parquet file: {one_line(error)}"
            ) from error
        schema = file.schema_arrow
        features = _label_names(schema.metadata or {})
        columns = {kind: _find_column(path, kind, schema, features) for kind in COLUMNS}
        names = {
            kind: features[column]
            for kind, column in columns.items()
            if column in features
        }
        return cls(path, file, columns, names)

    @property
    def num_rows(self) -> int:
        """Rows of the file, from its footer."""
        return int(self.file.metadata.num_rows)

    @property
    def classes(self) -> Sequence[str]:
        """The classes that the file declares; it need not hold an image of each."""
        return self.names.get("label", ())

    def rows(self) -> Iterator[ImageRow]:
        """The usable rows in order, one row group in memory; counts the others.

        Raises DataError where the file is damaged.
        """
        number = 0
        try:
            for values in self._values():
                number += 1
                try:
                    row = self._row(values)
                except DataError as reason:
                    self.left_out[str(reason)] += 1
                else:
                    yield row
        except (ValueError, OSError) as error:
            raise DataError(
                f"{self.path} is damaged after row {number}: {one_line(error)}; "
                "fetch it again"
            ) from error

    def _values(self) -> Iterator[dict[str, Any]]:
        columns = list(self.columns.values())
        for group in range(self.file.num_row_groups):
            # Over all groups at once, Arrow would keep what it has read.
            for batch in self.file.iter_batches(
                _BATCH_ROWS, row_groups=[group], columns=columns
            ):
                yield from batch.to_pylist()

    def _row(self, values: Mapping[str, Any]) -> ImageRow:
        cell = values[self.columns["image"]]
        image = cell if isinstance(cell, Mapping) else {"bytes": cell}
        data, path = image.get("bytes"), image.get("path")
        if not isinstance(data, bytes) or not data:
            raise DataError(f"{'only a path' if path else 'nothing'} for an image")
        suffix = next((s for pattern, s in _SIGNATURES if pattern.match(data)), None)
        if suffix is None:
            raise DataError("the image is not JPEG, PNG, WebP, BMP, TIFF or PPM")
        domain, label = (
            self._text(kind, values[self.columns[kind]]) for kind in ("domain", "label")
        )
        return ImageRow(data, suffix, domain, label, _stem(path))

    def _text(self, kind: str, value: Any) -> str:
        names = self.names.get(kind)
        if isinstance(value, int) and names is not None:
            if not 0 <= value < len(names):
                raise DataError(f"{kind} {value} is not one of {len(names)}")
            value = names[value]
        if not isinstance(value, (int, str)) or not safe_folder(str(value)):
            raise DataError(
                f"expected text or a number as {kind}, got {repr(value)[:40]}"
            )
        return str(value)


def _find_column(
    path: Path, kind: str, schema: Any, features: Mapping[str, Sequence[str]]
) -> str:
    """The column of this kind, one with names before one with bare numbers."""
    by_lower: dict[str, str] = {name.lower(): name for name in schema.names}
    candidates = [by_lower[name] for name in COLUMNS[kind] if name in by_lower]
    if not candidates:
        raise DataError(
            f"{path} has no {kind} column (has {', '.join(schema.names)}; "
            f"expected one of {', '.join(COLUMNS[kind])})"
        )
    named = (
        column
        for column in candidates
        if column in features or not _NUMBER.match(str(schema.field(column).type))
    )
    return next(named, candidates[0])


def _label_names(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """ClassLabel names by column, from what `datasets` writes into the schema."""
    try:
        info = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            column: list(map(str, feature["names"]))
            for column, feature in info.items()
            if isinstance(feature, dict) and "names" in feature
        }
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _stem(path: Any) -> str | None:
    """The file name in `path` without suffix; None where it is unusable."""
    if not isinstance(path, str):
        return None
    stem = re.split(r"[/\\]", path)[-1].rpartition(".")[0]
    usable = stem and stem[0] not in ". " and len(stem.encode()) <= LONGEST
    if not usable or FORBIDDEN.search(stem):
        return None
    return stem
