"""`fedclip data NAME --to DIR`: a data set as image folders, from parquet files.

The parquet files come from the Hugging Face hub (`flwrlabs/pacs`,
`flwrlabs/office-home` or any `owner/name`), or from disk with `--from`.  Each row is an
image:

    image   encoded bytes: a struct {bytes, path}, or binary  (also: img, picture)
    domain  text, or an index into ClassLabel names    (also: environment, env, style)
    label   text, or an index into ClassLabel names    (also: class, category)

Of several such columns one with names goes before bare numbers.  Rows that cannot be
used are left out and counted.  A name that cannot be a folder's becomes one near it; of
a class, MARKER keeps the name for the captions.

The bytes are written as they are to DIR/<domain>/<class>/<name>, where the name is the
one in `path`, so that ImageFolder's order and with it the paper's split come out as
with the original folders; without a `path`, the row's number.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from ..config.inputs import EMBEDDED_DATASET
from ..config.paths import as_path
from ..errors import DataError, one_line, translate
from ..storage.files import cannot_write, remove_leftovers, write_bytes
from ..storage.locks import Timeout, take
from .dataset import KNOWN, ImageDataset, canonical_name
from .folders import MARKER, load_dataset, marker
from .listing import Listing, safe_folder
from .parquet import FolderNames, ImageTable
from .progress import Progress, silent


@dataclass(frozen=True)
class Materialised:
    """What `materialise` left in `path`; `written` of the `images` are new.

    `notes` say which rows were left out.
    """

    path: Path
    images: int
    written: int
    notes: tuple[str, ...] = ()


def materialise(
    name: str,
    to: str | os.PathLike[str],
    source: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Materialised:
    """Write data set `name` as image folders to `to`, for `--root`.

    `name` is `digits`, a data set with images on the hub, or a hub id `owner/name`;
    with `source`, a parquet file or a folder of them, any name.  A second call writes
    nothing, one after an interruption resumes; files are whole or absent.  Nothing is
    made before the source has given an image.  Raises DataError, or RunError where
    nothing can be written.
    """
    name, path = canonical_name(name), as_path(to)
    done = _finished(name, path)
    if source is None and done is not None:
        return Materialised(path, done, 0)
    images = _images(name, path, source)
    try:
        with take(path / ".fedclip-data.lock"):
            return _write(name, images, path, progress)
    except Timeout as error:
        raise DataError(
            f"--to {to}: another `fedclip data` is writing there; wait for it"
        ) from error
    except OSError as error:
        raise cannot_write(path, error) from error


@dataclass(frozen=True)
class _Images:
    """What is to be written: `total` rows at most, as names of files and bytes."""

    files: Iterator[tuple[str, bytes]]
    total: int
    tables: Sequence[ImageTable] = ()
    labels: FolderNames = field(default_factory=FolderNames)


def _images(name: str, path: Path, source: str | os.PathLike[str] | None) -> _Images:
    """The images of a source that has at least one; nothing is written."""
    if name == EMBEDDED_DATASET and source is None:
        dataset = load_dataset(name, None)
        total = sum(len(domain.files) for domain in dataset.domains)
        return _Images(_embedded_files(dataset), total)
    folder = _download(name, path) if source is None else as_path(source)
    tables = [ImageTable.open(file) for file in _parquet_files(folder)]
    total = sum(table.num_rows for table in tables)
    if total == 0:
        raise DataError(f"{folder} holds no rows; expected one per image")
    labels = FolderNames()
    files = _table_files(tables, labels)
    first = next(files, None)
    if first is None:
        raise DataError(f"{folder} holds no usable row; {'; '.join(_left_out(tables))}")
    return _Images(chain((first,), files), total, tables, labels)


def _left_out(tables: Iterable[ImageTable]) -> list[str]:
    counts: Counter[str] = sum((table.left_out for table in tables), Counter())
    return [f"{n} rows left out: {reason}" for reason, n in counts.most_common(9)]


def _mark(path: Path, name: str, images: int | None, names: dict[str, str]) -> None:
    """Note whose folder this is; `images` once they are all there.

    `names` are those of classes whose folders cannot be called so.
    """
    content = {"dataset": name, "images": images, "names": names}
    write_bytes(path / MARKER, json.dumps(content).encode(), durable=False)


def _finished(name: str, path: Path) -> int | None:
    """How many images an earlier call left, None unless all are still there.

    Raises DataError where `path` holds something else: names could mix unnoticed.
    """
    if not path.is_dir():
        return None
    dataset, images = (marker(path).get(key) for key in ("dataset", "images"))
    listing = Listing()
    present = sum(len(listing.images(domain)) for domain in listing.subfolders(path))
    if dataset != name and (dataset or present):
        content = (
            f"the data set {dataset}" if dataset else f"{present} images from elsewhere"
        )
        raise DataError(f"--to {path} holds {content}; choose a new folder")
    return present if present == images else None


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
            f"cannot fetch {repository} from the Hugging Face hub "
            f"({translate(error) or one_line(error)}); "
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


def _table_files(
    tables: Iterable[ImageTable], labels: FolderNames
) -> Iterator[tuple[str, bytes]]:
    used: set[str] = set()
    domains = FolderNames()
    number = 0
    for table in tables:
        for row in table.rows():
            folder = f"{domains.folder(row.domain)}/{labels.folder(row.label)}"
            stem = f"{folder}/{row.stem or f'{number:06d}'}"
            name, copy = stem + row.suffix, 2
            while name.casefold() in used:  # also where A and a are one file
                name, copy = f"{stem}-{copy}{row.suffix}", copy + 1
            used.add(name.casefold())
            number += 1
            yield name, row.data


def _write(dataset: str, images: _Images, to: Path, progress: Progress) -> Materialised:
    """Write what is not there yet, and a folder of each class in each domain.

    Some data sets lack a combination; what lies beside the data stays as it is.
    """
    _mark(to, dataset, None, {})
    done = written = 0
    named = (name for table in images.tables for name in table.classes)
    classes = {images.labels.folder(name) for name in named if safe_folder(name)}
    domains = set()
    for done, (name, data) in enumerate(images.files, start=1):
        path = to / name
        domains.add(path.parent.parent)
        classes.add(path.parent.name)
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
        progress(f"write {dataset}", done, images.total)
    if done < images.total:  # rows were left out
        progress(f"write {dataset}", images.total, images.total)
    for folder in (domain / cls for domain in domains for cls in classes):
        folder.mkdir(exist_ok=True)
        remove_leftovers(folder)
    remove_leftovers(to, f"{MARKER}.*")
    _mark(to, dataset, done, images.labels.changed())
    return Materialised(to, done, written, tuple(_left_out(images.tables)))
