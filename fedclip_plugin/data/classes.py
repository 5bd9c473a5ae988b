"""`--classes`: which classes of a data set a run is about, and which half it trains on.

    base, novel       the first or the second half; CoOp's rule (Zhou et al. 2022), with
                      the classes in the data set's order, which of folders is by name
    dog cat           these alone, however they are spelt
    names.txt         those in a file: a name a line, or a JSON list
    domainnet-10      a published choice, see `PRESETS`

`base` and `novel` halve what the others name, so that `domainnet-10 base` is 5 classes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..errors import ConfigError, DataError, did_you_mean, reason, spelling_key
from .dataset import ImageDataset, ImageDomain
from .listing import some

BASE, NOVEL = HALVES = ("base", "novel")
PRESETS = {
    # of 345; Li et al. 2021, FedBN, arXiv 2102.07623
    "domainnet-10": (
        *("bird", "feather", "headphones", "ice_cream", "teapot"),
        *("tiger", "whale", "windmill", "wine_glass", "zebra"),
    ),
}


def listed(classes: Sequence[str], wanted: Sequence[str]) -> tuple[str, ...]:
    """Those of `classes` that `wanted` names, in their order; all where it names none.

    Raises ConfigError for a name that is none of them, and for an unreadable file.
    """
    named = [_find(classes, name) for name in _names(classes, wanted)]
    chosen = set(named) if named else set(classes)
    return tuple(name for name in classes if name in chosen)


def asked_halves(wanted: Sequence[str]) -> set[str]:
    """Which of `HALVES` are among the words, of which one may hold several."""
    parts = (part for word in wanted for part in word.split(","))
    return {part.strip().lower() for part in parts} & set(HALVES)


def halves(
    classes: Sequence[str], wanted: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The classes to train on and the unseen ones; None where all are trained on."""
    asked = asked_halves(wanted)
    if not asked:
        return None
    if len(asked) > 1 or len(classes) < 2:
        why = f"there is only {classes[0]}" if len(classes) < 2 else "give one of both"
        raise ConfigError(f"--classes {' '.join(wanted)}: {why}; all is the default")
    middle = -(-len(classes) // 2)
    base, novel = tuple(classes[:middle]), tuple(classes[middle:])
    return (base, novel) if asked == {BASE} else (novel, base)


def of_classes(dataset: ImageDataset, names: Sequence[str]) -> ImageDataset:
    """`dataset` with the classes `names` alone, which are some of its own."""
    if tuple(names) == dataset.classes:
        return dataset
    number = numbering(dataset.classes, names)
    domains = tuple(_of_domain(domain, number) for domain in dataset.domains)
    return replace(dataset, classes=tuple(names), domains=domains)


def numbering(classes: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """(C,) int64: the place among `names` of each of `classes`, or -1."""
    place = {name: i for i, name in enumerate(names)}
    return np.array([place.get(name, -1) for name in classes], dtype=np.int64)


def no_images(domain: str) -> DataError:
    """What to say of a domain that has none of the classes that were chosen."""
    return DataError(
        f"domain {domain!r} has no image of the chosen --classes; choose others, or "
        "leave the domain out"
    )


def _of_domain(domain: ImageDomain, number: np.ndarray) -> ImageDomain:
    labels = number[domain.labels]
    kept = np.flatnonzero(labels >= 0)
    if not len(kept):
        raise no_images(domain.name)
    read, stat = domain.read, domain.stat
    return ImageDomain(
        domain.name,
        tuple(domain.files[i] for i in kept),
        labels[kept],
        lambda i: read(int(kept[i])),
        None if stat is None else lambda i: stat(int(kept[i])),
    )


def _names(classes: Sequence[str], wanted: Sequence[str]) -> Iterator[str]:
    for word in wanted:
        if word in classes:
            yield word
        elif word.lower() in PRESETS:
            yield from PRESETS[word.lower()]
        elif os.path.isfile(word):
            yield from read_names(word, "--classes")
        elif "," in word:
            parts = filter(None, (part.strip() for part in word.split(",")))
            yield from _names(classes, list(parts))
        elif word.lower() not in HALVES:
            yield word


def read_names(path: str, flag: str) -> list[str]:
    """The names in a file, one a line or a JSON list; raises ConfigError."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
        names = json.loads(text) if text.lstrip().startswith("[") else text.split("\n")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{flag} {path} cannot be read: {reason(error)}") from error
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{flag} {path}: expected names, one a line or a JSON list")
    found = [name.strip() for name in names if name.strip()]
    if not found:
        raise ConfigError(f"{flag} {path} is empty: expected a name a line")
    return found


def _find(classes: Sequence[str], name: str) -> str:
    if name in classes:
        return name
    same = [known for known in classes if spelling_key(known) == spelling_key(name)]
    if len(same) == 1:
        return same[0]
    words = [*classes, *HALVES, *PRESETS]
    near, parts = did_you_mean(name, words), name.split()
    if len(parts) > 1 and {*map(spelling_key, parts)} <= {*map(spelling_key, words)}:
        near = f"; did you mean {','.join(parts)}?"
    file = os.path.basename(name) != name or name.endswith((".txt", ".json"))
    what = "no such file, and no such class" if file else "no such class"
    raise ConfigError(
        f"--classes {name}: {what}{near} (there are "
        f"{some(classes)}; or all, {', '.join(words[len(classes) :])}, or a file)"
    )
