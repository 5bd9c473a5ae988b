"""Data sets of the shape `<root>/<domain>/<class>/*`, read as ImageFolder reads them.

    load_dataset("pacs", "~/data")          # the paper's; also ~/data/PACS/<domain>/...
    load_dataset("my-birds", "~/birds")     # any other folder: a domain per subfolder
    load_dataset("digits", None)            # embedded, no files

The rows of a domain follow `torchvision.datasets.ImageFolder`: classes sorted, then
folders, then files, so that the paper's seeded split is reproducible.  Image files end
in one of `folders.IMAGE_SUFFIXES`, in either case.  Unlike ImageFolder, hidden files
and folders and `__MACOSX` are ignored, and an empty class folder is allowed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..config.schema import EMBEDDED_DATASET
from ..errors import DataError, did_you_mean, spelling_key
from .dataset import (
    KNOWN,
    ImageDataset,
    ImageDomain,
    KnownDataset,
    canonical_name,
)

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp"),
    *(".tif", ".tiff", ".ppm", ".pgm"),
)
_WRAPPERS = {"kfold", "images", "data", "domainadaptationimages"}
_SPLITS = {"train", "val", "valid", "validation", "crossval", "test", "full"}


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
    paths = []
    for parent, names in sorted(_walk(os.fspath(folder))):
        images = (name for name in names if is_image_name(name))
        paths += [os.path.join(parent, name) for name in sorted(images)]
    return paths


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
            "repair it, or skip it with --on-bad-image skip"
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
    """True for a link to a folder that contains it: following it would never end."""
    if not os.path.islink(path):
        return False
    target = os.path.realpath(path)
    inside = os.path.realpath(os.path.dirname(path))
    return os.path.commonpath([target, inside]) == target


def load_dataset(
    name: str, root: str | None, domains: Sequence[str] | None = None
) -> ImageDataset:
    """List the images of data set `name` under `root`; no image is opened.

    `root` holds the domain folders, or a folder named like the data set that does.
    `domains` selects some of them, in the data set's order.  Domains of a published
    data set get the names of `dataset.KNOWN`, however their folders are spelt.
    Raises DataError for a folder that is missing, empty, or not of that shape.
    """
    name = canonical_name(name)
    if name == EMBEDDED_DATASET:
        return _select(_embedded(root), domains)
    base, folders = _domain_folders(name, _existing_root(name, root))
    published = KNOWN.get(name)
    chosen = _choose(name, published.domains if published else folders, domains)
    _check_present(name, base, folders, chosen)
    class_roots = {domain: _class_root(folders[domain]) for domain in chosen}
    classes = _common_classes(class_roots)
    built = tuple(
        _build_domain(domain, base, path, classes)
        for domain, path in class_roots.items()
    )
    return ImageDataset(name, _class_names(published, classes), built)


def _embedded(root: str | None) -> ImageDataset:
    if root is not None:
        raise DataError(
            f"--dataset {EMBEDDED_DATASET} is embedded and takes no --root; name the "
            f"data set at {root} with --dataset, as in --dataset pacs"
        )
    from .digits import digits_dataset  # renders the images: only when asked for

    return digits_dataset()


def _select(dataset: ImageDataset, domains: Sequence[str] | None) -> ImageDataset:
    chosen = _choose(dataset.name, [d.name for d in dataset.domains], domains)
    selected = tuple(domain for domain in dataset.domains if domain.name in chosen)
    return ImageDataset(dataset.name, dataset.classes, selected)


def _choose(
    name: str, have: Iterable[str], requested: Sequence[str] | None
) -> tuple[str, ...]:
    """The requested domains, in the order of the data set; None = all of them."""
    have = tuple(have)
    if requested is None:
        return have
    keys = {spelling_key(domain): domain for domain in have}
    if name in KNOWN:
        for domain, others in KNOWN[name].domains.items():
            keys.update({spelling_key(other): domain for other in others})
    for domain in requested:
        if spelling_key(domain) not in keys:
            raise DataError(
                f"{name} has no domain {domain!r}{did_you_mean(domain, have)} "
                f"(it has {', '.join(have)})"
            )
    wanted = {keys[spelling_key(domain)] for domain in requested}
    if not wanted:
        raise DataError(f"no domain of {name} chosen; it has {', '.join(have)}")
    return tuple(domain for domain in have if domain in wanted)


def _existing_root(name: str, root: str | None) -> Path:
    published = KNOWN.get(name)
    if root is None:
        if published is None:
            names = (EMBEDDED_DATASET, *KNOWN)
            raise DataError(
                f"--dataset {name}: not a known data set{did_you_mean(name, names)} "
                f"(known: {', '.join(names)}; for your own images add --root DIR, "
                "a folder of DOMAIN/CLASS/ images)"
            )
        fetch = (
            f"fetch them with `fedclip data {name} --to DIR` and "
            if published.hub
            else ""
        )
        raise DataError(f"--dataset {name} needs its images: {fetch}add --root DIR")
    path = Path(root).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise DataError(f"--root {root} is not a folder; expected one of DOMAIN/CLASS/")
    if published and published.hub:
        remedy = f"fetch the images with `fedclip data {name} --to {root}`"
    else:
        remedy = "expected a folder of DOMAIN/CLASS/ images"
    raise DataError(f"--root {root} does not exist; {remedy}")


def _domain_folders(name: str, root: Path) -> tuple[Path, dict[str, Path]]:
    """The folder that holds the domains, and those by name."""
    published = KNOWN.get(name)
    if published:
        names = {spelling_key(n) for n in (name, *published.aliases)} | _WRAPPERS
        matches = [(base, _match(published, base)) for base in _candidates(root, names)]
        return max(matches, key=lambda match: len(match[1]))  # the first of equals
    named = (p for p in subfolders(root) if spelling_key(p.name) == spelling_key(name))
    base = next((path for path in named if _holds_domains(path)), root)
    return base, {printable(path.name): path for path in subfolders(base)}


def _candidates(root: Path, names: set[str]) -> list[Path]:
    """`root`, then what lies in it under one of `names`, at most two levels down."""
    level, folders = [root], [root]
    for _ in range(2):
        level = [p for up in level for p in subfolders(up)]
        level = [p for p in level if spelling_key(p.name) in names]
        folders += level
    return folders


def _match(published: KnownDataset, base: Path) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for path in subfolders(base):
        for domain, others in published.domains.items():
            if spelling_key(path.name) in map(spelling_key, (domain, *others)):
                if domain in folders:
                    raise DataError(
                        f"{base}: {folders[domain].name!r} and {path.name!r} are both "
                        f"folders of domain {domain}; move one of them away"
                    )
                folders[domain] = path
    return folders


def _holds_domains(path: Path) -> bool:
    """True for DOMAIN/CLASS/ below `path`; a domain has no folders in its classes."""
    return any(subfolders(domain) for domain in subfolders(path))


def _check_present(
    name: str, base: Path, folders: Mapping[str, Path], chosen: Sequence[str]
) -> None:
    missing = [domain for domain in chosen if domain not in folders]
    if not folders or len(missing) == len(chosen):
        expected = f" of {name} ({', '.join(chosen)})" if chosen else ""
        raise DataError(
            f"{base} has no domain folders{expected}; "
            "point --root at the parent of DOMAIN/CLASS/ folders"
        )
    if missing:
        raise DataError(
            f"{base} has no folder for domain {missing[0]!r} of {name}; add it, or "
            f"give an incomplete copy a name of its own, as in --dataset my-{name}"
        )


def _class_root(domain: Path) -> Path:
    """Where the class folders of a domain lie: in it, or in its `images` or `full`."""
    children = {path.name.lower(): path for path in subfolders(domain)}
    if not children:
        raise DataError(f"{domain} has no class folders; expected {domain.name}/CLASS/")
    if set(children) == {"images"} and subfolders(children["images"]):  # Office-31
        return children["images"]
    if set(children) <= _SPLITS:  # one distribution of VLCS
        if "full" in children:
            return children["full"]
        raise DataError(
            f"{domain} holds {', '.join(children)}, not classes; "
            f"merge them into {domain.name}/CLASS/"
        )
    return domain


def _common_classes(class_roots: Mapping[str, Path]) -> tuple[str, ...]:
    """The class folders, which must be the same in each domain; sorted."""
    first, *others = class_roots
    classes = {d: {p.name for p in subfolders(path)} for d, path in class_roots.items()}
    for domain in others:
        differences = (
            ("missing", classes[first] - classes[domain]),
            ("extra", classes[domain] - classes[first]),
        )
        problems = [f"{what} {_some(names)}" for what, names in differences if names]
        if problems:
            raise DataError(
                f"{class_roots[domain]}: class folders differ from those of domain "
                f"{first}: {'; '.join(problems)}; make them equal (empty folders do)"
            )
    return tuple(sorted(classes[first]))


def _some(names: Iterable[str], limit: int = 5) -> str:
    ordered = sorted(map(printable, names))
    rest = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + rest


def _class_names(
    published: KnownDataset | None, classes: tuple[str, ...]
) -> tuple[str, ...]:
    if published and classes == tuple(str(i) for i in range(len(published.numbered))):
        return published.numbered or classes
    return tuple(map(printable, classes))


def _build_domain(
    name: str, base: Path, class_root: Path, classes: Sequence[str]
) -> ImageDomain:
    paths: list[str] = []
    labels: list[int] = []
    for label, cls in enumerate(classes):
        files = image_files(class_root / cls)
        paths += files
        labels += [label] * len(files)
    if not paths:
        raise DataError(
            f"{class_root} holds no image file; "
            f"expected {', '.join(s[1:] for s in IMAGE_SUFFIXES)} in its class folders"
        )
    start = len(os.path.join(base, ""))
    names = tuple(printable(path[start:].replace(os.sep, "/")) for path in paths)
    row_labels = np.asarray(labels, dtype=np.int64)  # (N,)
    return ImageDomain(
        name, names, row_labels, partial(read_file, paths), partial(stat_file, paths)
    )
