"""`fedclip data NAME --to DIR`: a data set as image folders, from parquet files.

The parquet files come from the Hugging Face hub (`flwrlabs/pacs`,
`flwrlabs/office-home` or any `owner/name`), or from disk with `--from`.  Each row is an
image:

    image   encoded bytes: a struct {bytes, path}, or binary  (also: img, picture)
    domain  text, or an index into ClassLabel names    (also: environment, env, style)
    label   text, or an index into ClassLabel names    (also: class, category)

The bytes are written as they are to DIR/<domain>/<class>/<name>, where the name is the
one in `path`, so that ImageFolder's order and with it the paper's split come out as
with the original folders; without a `path`, the row's number.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..config.schema import EMBEDDED_DATASET
from ..errors import DataError, one_line
from ..storage.files import cannot_write, remove_leftovers, write_bytes
from .dataset import KNOWN, ImageDataset, canonical_name
from .folders import image_files, load_dataset, subfolders
from .parquet import ImageTable
from .progress import Progress, silent

_MARKER = ".fedclip-data.json"
_SIGNATURES = (
    (re.compile(rb"\xff\xd8\xff"), ".jpg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), ".png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), ".webp"),
    (re.compile(rb"BM"), ".bmp"),
    (re.compile(rb"II\*\x00|MM\x00\*"), ".tif"),
    (re.compile(rb"P[3-6]\s"), ".ppm"),
)


@dataclass(frozen=True)
class Materialised:
    """What `materialise` left in `path`; `written` of the `images` are new."""

    path: Path
    images: int
    written: int


def materialise(
    name: str,
    to: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Materialised:
    """Write data set `name` as image folders to `to`, for `--root`.

    `name` is `digits`, a data set with images on the hub, or a hub id `owner/name`;
    with `source`, a parquet file or a folder of them, any name.  A second call writes
    nothing, one after an interruption resumes; files are whole or absent.  Raises
    DataError, or RunError where nothing can be written.
    """
    name, path = canonical_name(name), Path(to).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(path / ".fedclip-data.lock", timeout=0):
            done = _finished(name, path)
            for folder in (path, *path.glob("*/*")):
                remove_leftovers(folder)
            if source is None and done is not None:
                return Materialised(path, done, 0)
            return _materialise(name, path, source, progress)
    except Timeout as error:
        raise DataError(
            f"--to {to}: another `fedclip data` is writing there; wait for it"
        ) from error
    except OSError as error:
        raise cannot_write(path, error) from error


def _materialise(
    name: str,
    path: Path,
    source: str | os.PathLike[str] | None,
    progress: Progress,
) -> Materialised:
    if name == EMBEDDED_DATASET and source is None:
        dataset = load_dataset(name, None)
        total = sum(len(domain.files) for domain in dataset.domains)
        written = _write(name, _embedded_files(dataset), total, path, progress)
    else:
        folder = _download(name, path) if source is None else Path(source).expanduser()
        tables = [ImageTable.open(file) for file in _parquet_files(folder)]
        total = sum(table.num_rows for table in tables)
        if total == 0:
            raise DataError(f"{folder} holds no rows; expected one per image")
        written = _write(name, _table_files(tables), total, path, progress)
        _complete_classes(path, tables)
    _mark(path, name, total)
    return Materialised(path, total, written)


def _mark(path: Path, name: str, images: int | None) -> None:
    """Note whose folder this is; `images` once they are all there."""
    marker = {"dataset": name, "images": images}
    write_bytes(path / _MARKER, json.dumps(marker).encode(), durable=False)


def _finished(name: str, path: Path) -> int | None:
    """How many images an earlier call left, None unless all are still there.

    Raises DataError where `path` holds something else: names could mix unnoticed.
    """
    try:
        marker = json.loads((path / _MARKER).read_text(encoding="utf-8"))
        dataset, images = marker["dataset"], marker["images"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        dataset, images = None, None
    present = sum(len(image_files(domain)) for domain in subfolders(path))
    if dataset != name and (dataset or present):
        content = (
            f"the data set {dataset}" if dataset else f"{present} images from elsewhere"
        )
        raise DataError(f"--to {path} holds {content}; choose a new folder")
    return images if present == images else None


def _download(name: str, path: Path) -> Path:
    repository = KNOWN[name].hub if name in KNOWN else name
    if not repository or "/" not in repository:
        fetched = [
            EMBEDDED_DATASET,
            *(n for n, published in KNOWN.items() if published.hub),
        ]
        raise DataError(
            f"fedclip data {name}: not known on the hub (known: {', '.join(fetched)}, "
            "or a hub id OWNER/NAME); from parquet files on disk: --from PATH"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise DataError(
            "fetching a data set needs huggingface_hub; "
            "pip install 'fedclip-plugin[hub]'"
        ) from error
    try:
        folder = snapshot_download(
            repo_id=repository, repo_type="dataset", allow_patterns=["*.parquet"]
        )
    except Exception as error:  # each HTTP library and the hub have their own
        raise DataError(
            f"cannot fetch {repository} from the Hugging Face hub ({one_line(error)}); "
            f"where there is a network, `hf download {repository} --repo-type dataset "
            f"--local-dir DIR`; then `fedclip data {name} --to {path} --from DIR`"
        ) from error
    return Path(folder)


def _parquet_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    files = sorted(source.rglob("*.parquet")) if source.is_dir() else []
    if not files:
        state = "holds no *.parquet file" if source.is_dir() else "does not exist"
        raise DataError(f"--from {source} {state}; expected a parquet file or a folder")
    return files


def _embedded_files(dataset: ImageDataset) -> Iterator[tuple[str, bytes]]:
    for domain in dataset.domains:
        for index, name in enumerate(domain.files):
            yield name, domain.read(index)


def _table_files(tables: Iterable[ImageTable]) -> Iterator[tuple[str, bytes]]:
    used: set[str] = set()
    number = 0
    for table in tables:
        for row in table.rows():
            folder = f"{row.domain}/{row.label}"
            stem = f"{folder}/{row.stem or f'{number:06d}'}"
            suffix = _suffix(row.data, row.where)
            name, copy = stem + suffix, 2
            while name.casefold() in used:  # also where A and a are one file
                name, copy = f"{stem}-{copy}{suffix}", copy + 1
            used.add(name.casefold())
            number += 1
            yield name, row.data


def _suffix(data: bytes, where: str) -> str:
    for signature, suffix in _SIGNATURES:
        if signature.match(data):
            return suffix
    raise DataError(f"{where}: the image is not JPEG, PNG, WebP, BMP, TIFF or PPM")


def _write(
    dataset: str,
    files: Iterable[tuple[str, bytes]],
    total: int,
    to: Path,
    progress: Progress,
) -> int:
    """Write what is not there yet; returns how many files that was."""
    _mark(to, dataset, None)
    written = 0
    for done, (name, data) in enumerate(files, start=1):
        path = to / name
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            write_bytes(path, data, durable=False)
            written += 1
        else:
            if size != len(data):
                raise DataError(
                    f"{path} exists with other contents; choose a new folder with --to"
                )
        progress(f"write {dataset}", done, total)
    return written


def _complete_classes(to: Path, tables: Iterable[ImageTable]) -> None:
    """Give each domain a folder for each class: some data sets lack a combination."""
    domains = subfolders(to)
    classes = {cls for table in tables for cls in table.classes}
    classes |= {cls.name for domain in domains for cls in subfolders(domain)}
    for domain in domains:
        for cls in classes:
            (domain / cls).mkdir(exist_ok=True)
