"""What is doubtful about a data set although it can be read: lines for its notes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from ..errors import DataError
from .dataset import KNOWN, ImageDataset, ImageDomain
from .images import doubtful_light
from .listing import some

LOOKED_AT = 4  # images a domain
_WORDNET = r"n\d{8}"
_NUMBERED = r"(?:class|label|category|cls|cat|id|c|l)?[ _-]*\d+"
_CODE = re.compile(f"{_WORDNET}|{_NUMBERED}|[0-9a-f]{{8,}}", re.IGNORECASE)


def doubts(dataset: ImageDataset) -> Iterator[str]:
    """Class names that are codes, images that are missing or nearly black."""
    codes = [name for name in dataset.classes if _CODE.fullmatch(name)]
    if codes:
        yield (
            f"{len(codes)} of {len(dataset.classes)} classes look like codes: "
            f"{some(codes)}; captions are made of these names: rename the folders "
            "to words, in every domain"
        )
    known = KNOWN.get(dataset.name)
    found = sum(len(domain.files) for domain in dataset.domains)
    if known and len(dataset.domains) == len(known.domains):
        published = known.images
        if found not in published:
            listed = " or ".join(f"{count:,}" for count in published)
            yield (
                f"{dataset.name}: {found:,} images found, {listed} are published; "
                "is the copy complete, and nothing twice?"
            )
    for domain in dataset.domains:
        for doubt, count in _light(domain).items():
            yield f"{domain.name}: of {LOOKED_AT} images looked at, {count} {doubt}"


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
