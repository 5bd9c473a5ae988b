"""The published data sets: domains in order, other spellings, sources.

Orders are those of the authors' code (`util/config.py`), so that a domain's index is
what `--test_envs` means there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..config.inputs import EMBEDDED_DATASET
from ..errors import spelling_key


@dataclass(frozen=True)
class ImageDomain:
    """The images of one domain, encoded, in a fixed order.

    `files` are N names relative to the data set's root, sorted as torchvision's
    `ImageFolder` sorts them; `labels` is (N,) int64, an index into the data set's
    classes. `read(i)` gives image i as encoded bytes (PNG, JPEG, ...) and raises
    `DataError` where it cannot. `stat(i)` is a cheap stamp that changes with file i,
    or `stat` is None for images that live in memory.
    """

    name: str
    files: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    read: Callable[[int], bytes]
    stat: Callable[[int], str] | None = None


@dataclass(frozen=True)
class ImageDataset:
    """Domains that share their classes, in the order in which reports list them.

    `notes` say what was passed over, left out or is doubtful, a line each.
    """

    name: str
    classes: tuple[str, ...]
    domains: tuple[ImageDomain, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class KnownDataset:
    """A published data set: its domains in the order of the authors' code.

    `images` are the totals that papers and repositories give (DomainBed's, Gulrajani
    and Lopez-Paz 2021, first): a set has other ones where it was cleaned later.
    """

    domains: Mapping[str, tuple[str, ...]]  # our name -> other folder names in use
    images: tuple[int, ...]
    aliases: tuple[str, ...] = ()
    hub: str | None = None  # a data set of the Hugging Face hub with the same images
    numbered: tuple[str, ...] = ()  # class names, where a distribution has numbers


def _plain(*domains: str) -> dict[str, tuple[str, ...]]:
    return dict.fromkeys(domains, ())


KNOWN = {
    "pacs": KnownDataset(
        {
            "art_painting": ("art", "paintings"),
            "cartoon": ("cartoons",),
            "photo": ("photos",),
            "sketch": ("sketches",),
        },
        images=(9_991,),
        aliases=("homework3-pacs",),
        hub="flwrlabs/pacs",
    ),
    "vlcs": KnownDataset(
        {
            "caltech101": ("caltech",),
            "labelme": (),
            "sun09": ("sun",),
            "voc2007": ("voc", "pascal", "pascalvoc2007"),
        },
        images=(10_729,),
        numbered=("bird", "car", "chair", "dog", "person"),
    ),
    "officehome": KnownDataset(
        {"art": (), "clipart": (), "product": (), "real_world": ("real",)},
        images=(15_588, 15_500),
        aliases=("off_home", "office_home", "OfficeHomeDataset_10072016"),
        hub="flwrlabs/office-home",
    ),
    "office31": KnownDataset(
        _plain("amazon", "dslr", "webcam"),
        images=(4_110, 4_652),
        aliases=("office",),
    ),
    "office_caltech": KnownDataset(
        _plain("amazon", "dslr", "webcam", "caltech"),
        images=(2_533,),
        aliases=("office_caltech10", "office_caltech_10"),
    ),
    "terra_incognita": KnownDataset(
        {f"location_{n}": (f"l{n}",) for n in (38, 43, 46, 100)},
        images=(24_788, 24_330),
        aliases=("terra",),
    ),
    "domainnet": KnownDataset(
        {
            "clipart": ("clip",),
            "infograph": ("info",),
            "painting": ("paint",),
            "quickdraw": ("quick",),
            "real": (),
            "sketch": (),
        },
        images=(586_575, 596_006),
        aliases=("domain_net",),
    ),
}


def canonical_name(name: str) -> str:
    """`Office-Home`, `off_home` -> `officehome`; a name that is not known stays."""
    for published, entry in KNOWN.items():
        if spelling_key(name) in map(spelling_key, (published, *entry.aliases)):
            return published
    return EMBEDDED_DATASET if spelling_key(name) == EMBEDDED_DATASET else name
