"""What is doubtful about a data set although it can be read: lines for its notes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations

from ..errors import DataError
from .dataset import KNOWN, ImageDataset, ImageDomain
from .images import doubtful_light
from .listing import some

LOOKED_AT = 4  # images a domain
_WORDNET = r"n\d{8}"
_NUMBERED = r"(?:class|label|category|cls|cat|id|c|l)?[ _-]*\d+"
_CODE = re.compile(f"{_WORDNET}|{_NUMBERED}|[0-9a-f]{{8,}}", re.IGNORECASE)

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "eval"}


def doubts(dataset: ImageDataset) -> Iterator[str]:
    """Class names that are codes, images that are missing or nearly black."""
    codes = [name for name in dataset.classes if _CODE.fullmatch(name)]
    if codes:
        yield (
            f"{len(codes)} of {len(dataset.classes)} classes look like codes: "
            f"{some(codes)}; captions are made of these names: give "
            "--class-names FILE, or rename the folders to words, in every domain"
        )
    splits = [d.name for d in dataset.domains if d.name.lower() in _SPLITS]
    if len(splits) > 1:
        yield (
            f"{', '.join(splits)} are taken as domains, but are named as the splits of "
            "one data set; name the folders of the domains, or merge the splits and "
            "use --partition iid"
        )
    reference = KNOWN.get(dataset.name)
    images = sum(len(domain.files) for domain in dataset.domains)
    if reference and len(dataset.domains) == len(reference.domains):
        published = reference.images
        if images not in published:
            listed = " or ".join(f"{count:,}" for count in published)
            yield (
                f"{dataset.name}: {images:,} images found, {listed} are published; "
                "is the copy complete, and nothing twice?"
            )
    for domain in dataset.domains:
        for doubt, count in _light(domain).items():
            yield f"{domain.name}: of {LOOKED_AT} images looked at, {count} {doubt}"


def one_class(classes: Sequence[str], kind: str = "") -> Iterator[str]:
    """A line where there is nothing to choose from, and all is right."""
    if len(classes) == 1:
        yield (
            f"{classes[0]} is the only {kind}class: every prediction is right, "
            "whatever is trained; accuracies tell nothing"
        )


def seen_twice(
    dataset: ImageDataset, digests: Sequence[Sequence[str]]
) -> Iterator[str]:
    """Images of one domain that are images of another: what is held out is seen."""
    names = [domain.name for domain in dataset.domains]
    parts = [set(filter(None, part)) for part in digests]
    for (one, mine), (two, others) in combinations(zip(names, parts), 2):
        if shared := len(mine & others):
            yield (
                f"{shared} images of {one} are also images of {two}: held out, they "
                "would be seen in training; leave each in one domain"
            )


def _light(domain: ImageDomain) -> Counter[str]:
    """What is odd about the light of a few images, spread over the domain."""
    number = len(domain.files)
    seen: Counter[str] = Counter()
    for row in sorted({i * number // LOOKED_AT for i in range(LOOKED_AT)}):
        try:
            doubt = doubtful_light(domain.read(row))
        except DataError:  # told when it is to be encoded
            continue
        if doubt:
            seen[doubt] += 1
    return seen
