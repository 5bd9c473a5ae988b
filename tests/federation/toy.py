"""Small synthetic features that a frozen encoder could have given."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from fedclip_plugin.features.feature_set import (
    FeatureSet,
    load_features,
    save_features,
)
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


def with_one_image(*domains: str) -> FeatureSet:
    """Toy features of which ``domains`` have one image alone, too few to train on."""
    toy = toy_features()
    rows = {d: 1 if d in domains else len(toy.label[d]) for d in toy.domains}
    image, label = (
        {d: of[d][:count] for d, count in rows.items()} for of in (toy.image, toy.label)
    )
    return replace(toy, image=image, label=label)


def name_images(directory: Path) -> FeatureSet:
    """The features in ``directory``, there and here with a name for each image."""
    found = load_features(directory)
    names = {
        d: tuple(f"{d}/{found.classes[c]}/{i}.jpg" for i, c in enumerate(y.tolist()))
        for d, y in found.label.items()
    }
    named = replace(found, files=names)
    save_features(named, directory)
    return named


def write_split(file: Path, features: FeatureSet, clients: tuple[str, ...] = ()) -> str:
    """A split as CoOp writes them, or one for each of ``clients``; the path of it."""
    rows = [
        [name, label]
        for d, names in features.files.items()
        for name, label in zip(names, features.label[d].tolist())
    ]

    def parts(rows: list[list[object]]) -> dict[str, list[list[object]]]:
        return {"train": rows[::2], "val": rows[1::4], "test": rows[3::4]}

    each = {c: parts(rows[i :: len(clients)]) for i, c in enumerate(clients)}
    file.write_text(json.dumps(each or parts(rows)))
    return str(file)


def own_directories(folder: Path, features: FeatureSet | None = None) -> list[Path]:
    """A feature directory for each domain, as clients of their own have them."""
    whole = features or toy_features()
    for d in whole.domains:
        alone = {"image": {d: whole.image[d]}, "label": {d: whole.label[d]}}
        files = {d: whole.files[d]} if whole.files else {}
        own = replace(whole, domains=(d,), files=files, **alone)
        save_features(own, folder / d)
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
