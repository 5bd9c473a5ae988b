"""Small synthetic features that a frozen encoder could have given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from fedclip_plugin.features.feature_set import FeatureSet, save_features
from fedclip_plugin.federation.build import Federation
from fedclip_plugin.federation.checkpoint import Checkpoint
from fedclip_plugin.federation.engine import RunState, federate

DOMAINS = ("art", "cartoon", "photo")


def toy_features(
    rows: int = 60, dim: int = 16, classes: int = 4, seed: int = 0
) -> FeatureSet:
    """Three domains whose second half of dimensions is noise that a gate can close."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(classes, dim, generator=generator)
    loud = torch.where(torch.arange(dim) < dim // 2, 0.15, 0.6)
    image, label = {}, {}
    for domain in DOMAINS:
        y = torch.randint(0, classes, (rows,), generator=generator)
        shift = torch.randn(dim, generator=generator)
        noise = torch.randn(rows, dim, generator=generator)
        image[domain] = F.normalize(text, dim=1)[y] + 0.1 * shift + loud * noise
        label[domain] = y
    return FeatureSet(
        model="toy",
        pretrained="none",
        prompt="a picture of a {}",
        classes=tuple(f"class{i}" for i in range(classes)),
        domains=DOMAINS,
        logit_scale=100.0,
        embed_dim=dim,
        key=f"toy-{seed}",
        image=image,
        label=label,
        text=text,
    )


def write_toy(directory: Path, **kwargs: int) -> Path:
    save_features(toy_features(**kwargs), directory)
    return directory


def own_directories(folder: Path, features: FeatureSet | None = None) -> list[Path]:
    """A feature directory for each domain, as clients of their own have them."""
    whole = features or toy_features()
    for d in whole.domains:
        alone = {"image": {d: whole.image[d]}, "label": {d: whole.label[d]}}
        save_features(replace(whole, domains=(d,), **alone), folder / d)
    return [folder / d for d in whole.domains]


def checkpointed(fed: Federation, checkpoint: Checkpoint) -> Iterator[RunState]:
    """The embedded loop as a run may be killed: a checkpoint after every round."""
    for now in federate(fed, checkpoint.load(fed)):
        yield now
        if now.result is not None:
            checkpoint.save(now)


def resumed(make: Callable[[], Federation], folder: Path) -> RunState:
    """The end of a run that is killed after two rounds and goes on from its files."""
    for now in checkpointed(make(), Checkpoint(folder, "id")):
        if now.progress.round == 2:
            break
    *_, last = checkpointed(make(), Checkpoint(folder, "id"))
    return last
