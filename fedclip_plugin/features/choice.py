"""The classes that a run is about, chosen before it and among its features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..config.inputs import DataConfig
from ..data import classes as choice
from ..data.dataset import ImageDataset
from .feature_set import FeatureSet


def with_listed(
    data: ImageDataset | FeatureSet, config: DataConfig
) -> ImageDataset | FeatureSet:
    """``data`` with the classes alone that ``--classes`` names; raises ConfigError.

    What is left out is not encoded either.
    """
    names = choice.listed(data.classes, config.classes)
    if isinstance(data, ImageDataset):
        return choice.of_classes(data, names)
    return of_classes(data, names)


def halved(features: FeatureSet, config: DataConfig) -> FeatureSet:
    """The half that is trained on, the other one as its ``unseen``; or all."""
    parts = choice.halves(features.classes, config.classes)
    if parts is None or features.unseen is not None:
        return features
    seen, unseen = parts
    return replace(of_classes(features, seen), unseen=of_classes(features, unseen))


def of_classes(features: FeatureSet, names: Sequence[str]) -> FeatureSet:
    """``features`` with the classes ``names`` alone, which are some of its own."""
    if tuple(names) == features.classes:
        return features
    number = torch.from_numpy(choice.numbering(features.classes, names))
    image, label, files = {}, {}, {}
    for domain in features.domains:
        labels = number[features.label[domain]]
        (kept,) = (labels >= 0).nonzero(as_tuple=True)
        if not len(kept):
            raise choice.no_images(domain)
        image[domain] = features.image[domain][kept]
        label[domain] = labels[kept]
        if domain in features.files:
            own = features.files[domain]
            files[domain] = tuple(own[i] for i in kept.tolist())
    rows = [features.classes.index(name) for name in names]
    identity = json.dumps([features.key, list(names)])
    return replace(
        features,
        classes=tuple(names),
        key=hashlib.sha256(identity.encode()).hexdigest(),
        image=image,
        label=label,
        text=features.text[rows],
        files=files,
    )
