"""Parquet files of labelled images, row by row in bounded memory."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, one_line

COLUMNS = {
    "image": ("image", "img", "picture"),
    "domain": ("domain", "environment", "env", "style"),
    "label": ("label", "class", "category"),
}
_BATCH_ROWS = 64
_FORBIDDEN = re.compile(r'[\x00-\x1f/\\:*?"<>|]')
_LONGEST = 150  # characters of a name; file systems allow 255 bytes


@dataclass(frozen=True)
class ImageRow:
    """One image: its encoded bytes, its folders, and where it came from."""

    data: bytes
    domain: str
    label: str
    stem: str | None  # the original file's name without suffix, if usable
    where: str


@dataclass(frozen=True)
class ImageTable:
    """An open parquet file with the columns that hold images and labels."""

    path: Path
    file: Any  # pyarrow.parquet.ParquetFile
    columns: Mapping[str, str]  # image, domain, label -> the column's name
    names: Mapping[str, Sequence[str]]  # of those, ClassLabel names

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
        columns = {kind: _find_column(path, kind, schema.names) for kind in COLUMNS}
        features = _label_names(schema.metadata or {})
        names = {
            kind: features[column]
            for kind, column in columns.items()
            if column in features
        }
        for kind in names:
            for name in names[kind]:
                _folder(name, kind, str(path))
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
        """Every row in order, one row group in memory; DataError names file and row."""
        number = 0
        try:
            for values in self._values():
                yield self._row(values, f"{self.path} row {number}")
                number += 1
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

    def _row(self, values: Mapping[str, Any], where: str) -> ImageRow:
        cell = values[self.columns["image"]]
        image = cell if isinstance(cell, Mapping) else {"bytes": cell}
        data, path = image.get("bytes"), image.get("path")
        if not isinstance(data, bytes) or not data:
            content = f"only the path {path!r}" if path else repr(data)
            raise DataError(f"{where}: expected the bytes of an image, got {content}")
        domain, label = (
            _folder(self._text(kind, values[self.columns[kind]], where), kind, where)
            for kind in ("domain", "label")
        )
        return ImageRow(data, domain, label, _stem(path), where)

    def _text(self, kind: str, value: Any, where: str) -> str:
        names = self.names.get(kind)
        if isinstance(value, int) and names is not None:
            if not 0 <= value < len(names):
                raise DataError(f"{where}: {kind} {value} is not one of {len(names)}")
            return names[value]
        if isinstance(value, (int, str)):
            return str(value)
        raise DataError(f"{where}: expected text or a number as {kind}, got {value!r}")


def _find_column(path: Path, kind: str, names: Sequence[str]) -> str:
    by_lower = {name.lower(): name for name in names}
    for candidate in COLUMNS[kind]:
        if candidate in by_lower:
            return by_lower[candidate]
    raise DataError(
        f"{path} has no {kind} column (has {', '.join(names)}; "
        f"expected one of {', '.join(COLUMNS[kind])})"
    )


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


def _folder(name: str, kind: str, where: str) -> str:
    """`name`, if it is safe as one folder below another on every system."""
    if (
        not name.strip(" .")
        or name.startswith(".")
        or len(name) > _LONGEST
        or _FORBIDDEN.search(name)
    ):
        raise DataError(
            f"{where}: {kind} {name!r} cannot be a folder's name; rename it"
        )
    return name


def _stem(path: Any) -> str | None:
    """The file name in `path` without suffix; None where it is unusable."""
    if not isinstance(path, str):
        return None
    stem = re.split(r"[/\\]", path)[-1].rpartition(".")[0]
    usable = stem and stem[0] not in ". " and len(stem) <= _LONGEST
    if not usable or _FORBIDDEN.search(stem):
        return None
    return stem
