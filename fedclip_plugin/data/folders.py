"""Data sets of the shape `<root>/<domain>/<class>/*`, read as ImageFolder reads them.

    load_dataset("pacs", "~/data")          # the paper's; also ~/data/PACS/<domain>/...
    load_dataset("my-birds", "~/birds")     # any other folder: a domain per subfolder
    load_dataset("digits", None)            # embedded, no files

The rows of a domain follow `torchvision.datasets.ImageFolder`: classes sorted, then
folders, then files, so that the paper's seeded split is reproducible.  Image files end
in one of `listing.IMAGE_SUFFIXES`, in either case.  Unlike ImageFolder, hidden files
and what does not belong to the data are passed over, with a note, JPEG may have other
suffixes, and an empty class folder is allowed.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..config.inputs import EMBEDDED_DATASET, DataConfig
from ..errors import DataError, did_you_mean, spelling_key
from .dataset import (
    KNOWN,
    ImageDataset,
    ImageDomain,
    KnownDataset,
    canonical_name,
)
from .doubts import doubts
from .listing import (
    IMAGE_SUFFIXES,
    Listing,
    printable,
    read_file,
    some,
    stat_file,
)
from .names import with_names

MARKER = ".fedclip-data.json"
_WRAPPERS = {"kfold", "images", "data", "domainadaptationimages"}
_SPLITS = {"train", "val", "valid", "validation", "crossval", "test", "full"}


def list_images(data: DataConfig) -> ImageDataset:
    """The data set of a run, its classes called as `--class-names` says."""
    return load_dataset(data.dataset, data.root, class_names=data.class_names)


def load_dataset(
    name: str,
    root: str | None,
    domains: Sequence[str] | None = None,
    class_names: str | None = None,
) -> ImageDataset:
    """List the images of data set `name` under `root`; only a few are opened.

    `root` holds the domain folders, or a folder named like the data set that does.
    `domains` selects some of them, in the data set's order.  Domains of a published
    data set get the names of `dataset.KNOWN`, however their folders are spelt;
    `class_names` is a file that says what the class folders are called.  The notes
    tell what was passed over, left out or is doubtful.
    Raises DataError for a folder that is missing, empty, or not of that shape.
    """
    name = canonical_name(name)
    if name == EMBEDDED_DATASET:
        embedded = _select(_embedded(root), domains)
        return with_names(embedded, class_names) if class_names else embedded
    listing = Listing()
    base, folders = _domain_folders(listing, name, _existing_root(name, root))
    published = KNOWN.get(name)
    chosen = _choose(name, published.domains if published else folders, domains)
    _check_present(name, base, folders, chosen)
    class_roots = {d: _class_root(listing, folders[d]) for d in chosen}
    classes = _common_classes(listing, base, class_roots)
    built = tuple(
        _build_domain(listing, domain, base, path, classes)
        for domain, path in class_roots.items()
    )
    dataset = ImageDataset(name, _class_names(base, published, classes), built)
    if class_names is not None:
        dataset = with_names(dataset, class_names)
    class_folders = [path / cls for path in class_roots.values() for cls in classes]
    notes = [
        *listing.notes(class_folders),
        *(
            f"left out: {count} images beside the class folders of {domain}"
            for domain, path in class_roots.items()
            if (count := listing.images_in(path))
        ),
        *dataset.notes,
        *doubts(dataset),
    ]
    return replace(dataset, notes=tuple(notes))


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
    return replace(dataset, domains=selected)


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


def _domain_folders(
    listing: Listing, name: str, root: Path
) -> tuple[Path, dict[str, Path]]:
    """The folder that holds the domains, and those by name."""
    published = KNOWN.get(name)
    if published:
        names = {spelling_key(n) for n in (name, *published.aliases)} | _WRAPPERS
        bases = _candidates(listing, root, names)
        matches = [(base, _match(listing, published, base)) for base in bases]
        base, folders = max(matches, key=lambda match: len(match[1]))  # first of equals
        others = {p.name for p in listing.subfolders(base)}
        others -= {p.name for p in folders.values()}
        listing.strays.update(dict.fromkeys(others if folders else ()))
        return base, folders
    named = (
        p
        for p in listing.subfolders(root)
        if spelling_key(p.name) == spelling_key(name)
    )
    base = next((path for path in named if _holds_domains(listing, path)), root)
    return base, _own_domains(listing, base)


def _own_domains(listing: Listing, base: Path) -> dict[str, Path]:
    """The folders in `base` that are domains: with images, and classes in common.

    What else lies there, such as runs of ours, notebooks or annotations, is noted.  A
    folder without images that has the others' classes stays: it is told as empty.
    """
    folders = {printable(path.name): path for path in listing.subfolders(base)}
    below = {
        name: listing.subfolders(_with_images(listing, path))
        for name, path in folders.items()
    }
    keys = {n: {spelling_key(path.name) for path in below[n]} for n in folders}
    full = [name for name in folders if any(map(listing.images, below[name]))]
    shared = {
        name
        for name in folders
        if keys[name] & set().union(*(keys[other] for other in full if other != name))
    }
    domains = shared if shared.intersection(full) else shared.union(full)
    if not full:
        return folders
    listing.strays.update(dict.fromkeys(folders.keys() - domains))
    return {name: path for name, path in folders.items() if name in domains}


def _candidates(listing: Listing, root: Path, names: set[str]) -> list[Path]:
    """`root`, then what lies in it under one of `names`, at most two levels down."""
    level, folders = [root], [root]
    for _ in range(2):
        level = [p for up in level for p in listing.subfolders(up)]
        level = [p for p in level if spelling_key(p.name) in names]
        folders += level
    return folders


def _match(listing: Listing, published: KnownDataset, base: Path) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    for path in listing.subfolders(base):
        for domain, others in published.domains.items():
            if spelling_key(path.name) in map(spelling_key, (domain, *others)):
                if domain in folders:
                    raise DataError(
                        f"{base}: {folders[domain].name!r} and {path.name!r} are both "
                        f"folders of domain {domain}; move one of them away"
                    )
                folders[domain] = path
    return folders


def _holds_domains(listing: Listing, path: Path) -> bool:
    """True for DOMAIN/CLASS/ below `path`; a domain has no folders in its classes."""
    return any(listing.subfolders(domain) for domain in listing.subfolders(path))


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


def _with_images(listing: Listing, domain: Path) -> Path:
    """`domain`, or its only folder `images` where that has folders (Office-31)."""
    children = listing.subfolders(domain)
    if [path.name.lower() for path in children] == ["images"]:
        return children[0] if listing.subfolders(children[0]) else domain
    return domain


def _class_root(listing: Listing, domain: Path) -> Path:
    """Where the class folders of a domain lie: in it, or in its `images` or `full`."""
    root = _with_images(listing, domain)
    children = {path.name.lower(): path for path in listing.subfolders(root)}
    if not children:
        raise DataError(f"{domain} has no class folders; expected {domain.name}/CLASS/")
    if set(children) <= _SPLITS:  # one distribution of VLCS
        if "full" in children:
            return children["full"]
        raise DataError(
            f"{domain} holds {', '.join(children)}, not classes; "
            f"merge them into {domain.name}/CLASS/"
        )
    return root


def _common_classes(
    listing: Listing, base: Path, class_roots: Mapping[str, Path]
) -> tuple[str, ...]:
    """The class folders, which must be the same in each domain; sorted.

    A folder without an image in any domain is a class only where each domain has it,
    and nothing but pictures of other formats lies in it.
    """
    Image.init()
    pictures = {*Image.registered_extensions(), ".heic", ".heif"}
    first, *others = class_roots
    folders = {
        d: {p.name: p for p in listing.subfolders(path)}
        for d, path in class_roots.items()
    }
    everywhere = set.intersection(*map(set, folders.values()))
    real = {
        name
        for subfolders in folders.values()
        for name, path in subfolders.items()
        if listing.images(path)
        or (name in everywhere and set(listing.others(path)) <= pictures)
    }
    for subfolders in folders.values():
        for name in subfolders.keys() - real:
            stray = os.path.relpath(subfolders.pop(name), base)
            listing.strays[printable(stray)] = None
    for domain in others:
        differences = (
            ("missing", folders[first].keys() - folders[domain].keys()),
            ("extra", folders[domain].keys() - folders[first].keys()),
        )
        problems = [f"{what} {some(names)}" for what, names in differences if names]
        if problems:
            raise DataError(
                f"{class_roots[domain]}: class folders differ from those of domain "
                f"{first}: {'; '.join(problems)}; make them equal (empty folders do), "
                "or move away what is not a domain"
            )
    return tuple(sorted(real))


def _class_names(
    base: Path, published: KnownDataset | None, classes: tuple[str, ...]
) -> tuple[str, ...]:
    if published and classes == tuple(str(i) for i in range(len(published.numbered))):
        return published.numbered or classes
    kept = marker(base).get("names")
    names = kept if isinstance(kept, dict) else {}
    return tuple(str(names.get(cls, printable(cls))) for cls in classes)


def marker(folder: Path) -> dict[str, Any]:
    """What `fedclip data` noted about a folder that it made; {} for another."""
    try:
        contents = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return contents if isinstance(contents, dict) else {}


def _build_domain(
    listing: Listing, name: str, base: Path, class_root: Path, classes: Sequence[str]
) -> ImageDomain:
    paths: list[str] = []
    labels: list[int] = []
    for label, cls in enumerate(classes):
        files = listing.images(class_root / cls)
        paths += files
        labels += [label] * len(files)
    if not paths:
        others: Counter[str] = Counter()
        for folder in listing.subfolders(class_root):
            others += listing.others(folder)
        instead = f", but {some(f'{n} {s}' for s, n in others.items())}"
        raise DataError(
            f"{class_root} holds no image file{instead if others else ''}; "
            f"expected {', '.join(s[1:] for s in IMAGE_SUFFIXES)} in its class folders"
        )
    start = len(os.path.join(base, ""))
    names = tuple(printable(path[start:].replace(os.sep, "/")) for path in paths)
    row_labels = np.asarray(labels, dtype=np.int64)  # (N,)
    return ImageDomain(
        name, names, row_labels, partial(read_file, paths), partial(stat_file, paths)
    )
