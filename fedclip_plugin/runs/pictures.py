"""Which test images a method corrected and which it broke against zero-shot CLIP.

The most confident ones with a thumbnail each, for the report: ``pictures.json``.  Only
where this process has the images: a host's stay with their clients.
"""

from __future__ import annotations

import base64
import functools
import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..algorithms import get_algorithm
from ..config.inputs import DataConfig
from ..config.schema import RunConfig
from ..data.dataset import ImageDataset, ImageDomain
from ..data.images import decode_image
from ..errors import FedClipError
from ..features.feature_set import FeatureSet
from ..features.obtain import open_data
from ..federation.build import Federation
from ..federation.evaluation import predict_parts
from ..storage.shapes import cleaned
from ..wire.update import State
from .results import test_parts
from .setup import Setup

SHOWN = 12  # of each kind
SIDE = 112  # pixels
QUALITY = 75  # of JPEG


def pictures(setup: Setup, state: State) -> dict[str, Any]:
    """``{"corrected": {"count", "shown": [...]}, "broken": ...}``; {} without images.

    Of the held-out domain, or else of all clients' test splits.  Each that is shown has
    its ``image`` (a name), the ``true`` class, what ``zero_shot`` and the method
    (``result``) say with their ``probability``, and a ``thumbnail``, JPEG in base64.
    """
    data, features = setup.config.data, setup.features
    if data.pictures == "off" or data.features is not None or not features.files:
        return {}
    parts = test_parts(setup.fed, state)
    if setup.fed.target is not None:
        parts = parts[:1]  # of several states, that of the first client
    rows = [part.rows for _, part in parts if part.rows is not None]
    if not parts or len(rows) < len(parts):
        return {}
    try:
        images = _images(data)
    except FedClipError:  # moved since they were encoded
        return {}
    truth = torch.cat([part.y for _, part in parts]).cpu()
    own, base = (_judged(setup.fed, parts, name) for name in (None, "zeroshot"))
    right, was = own[0] == truth, base[0] == truth
    place = torch.cat(rows).cpu()
    found: dict[str, Any] = {"test": len(truth)}
    for kind, which in (("corrected", right & ~was), ("broken", was & ~right)):
        (chosen,) = which.nonzero(as_tuple=True)
        order = chosen[own[1][chosen].argsort(descending=True, stable=True)]
        shown = [
            {
                "true": cleaned(features.classes[int(truth[i])]),
                "zero_shot": _said(features, base, i),
                "result": _said(features, own, i),
                **picture,
            }
            for i in order[:SHOWN].tolist()
            if (picture := _picture(images, features, int(place[i])))
        ]
        found[kind] = {"count": len(chosen), "shown": shown}
    return found


_Judged = tuple[Tensor, Tensor]  # classes (N,) int64, their probabilities (N,)


def _judged(fed: Federation, parts: Any, name: str | None) -> _Judged:
    algorithm = fed.algorithm if name is None else get_algorithm(name)
    labels, chances = [], []
    for scores in predict_parts(algorithm, parts, fed.task):  # (n, C), a part at a time
        best, label = scores.max(dim=1)
        labels.append(label.cpu())
        chances.append((best - scores.logsumexp(dim=1)).exp().cpu())
    return torch.cat(labels), torch.cat(chances)


def _said(features: FeatureSet, judged: _Judged, i: int) -> dict[str, Any]:
    label, chance = judged
    probability = min(1.0, float(chance[i]))
    said = cleaned(features.classes[int(label[i])])
    return {"label": said, "probability": probability}


@functools.lru_cache(maxsize=1)
def _images(data: DataConfig) -> dict[tuple[str, str], tuple[ImageDomain, int]]:
    """Domain and file -> where the image can be read."""
    dataset = open_data(RunConfig(data=data))
    assert isinstance(dataset, ImageDataset)  # for there is no --features
    return {
        (domain.name, name): (domain, i)
        for domain in dataset.domains
        for i, name in enumerate(domain.files)
    }


def _picture(images: Any, features: FeatureSet, row: int) -> dict[str, str] | None:
    """Name and thumbnail of a row; None for an image that is not there any more."""
    for domain in features.domains:
        count = len(features.label[domain])
        if row < count:
            break
        row -= count
    name = features.files[domain][row]
    try:
        source, i = images[domain, name]
        image = decode_image(source.read(i), name)
    except (KeyError, FedClipError):
        return None
    return {"image": cleaned(name), "thumbnail": _thumbnail(image)}


def _thumbnail(image: Image.Image) -> str:
    image = image.copy()
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY, optimize=True)
    return base64.b64encode(out.getvalue()).decode()
