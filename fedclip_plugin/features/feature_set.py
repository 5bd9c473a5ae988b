"""FeatureSet: everything FedCLIP needs of the images, encoded once.

On disk it is a *feature directory*: ``features.json``, ``text.safetensors`` and one
``<domain>.safetensors`` each (docs/features.md).  A run needs nothing else: no CLIP,
no images.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.paths import as_path
from ..data.listing import is_image_name, printable, safe_folder
from ..errors import FeaturesError, reason
from ..ops.adapter import NORM_FLOOR
from ..storage.files import write_json
from ..storage.shapes import cleaned, each, several, text
from ..storage.tensors import DamagedFileError, read_tensors, write_tensors
from . import directions

FORMAT = 1
NAMES = "names.json"  # of the images, domain by domain
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "pretrained": str,
    "prompt": (str, list),
    "classes": list,
    "domains": list,
    "logit_scale": (int, float),
    "embed_dim": int,
    "key": str,
}
_TAKEN = re.compile(r"text|\d+\.domain")  # names of files of ours
_LISTS = ("skipped", "notes")  # of texts; left out where they are empty


@dataclass(frozen=True)
class FeatureSet:
    """Raw image features of every domain and the text features of every class.

    ``image[domain]`` (N, D) float32, raw encoder output; ``label[domain]`` (N,) int64
    index into ``classes``; ``text`` (C, D) float32, not normalised; ``logit_scale`` is
    the factor itself (100 for OpenAI's CLIP).  ``skipped`` lists unreadable images,
    ``notes`` what is doubtful about data and model, a line each; ``encoder`` names and
    hash of the weights that were used, where they are known.  ``files`` names the image
    of every row of a domain, where that is known; ``unseen`` holds the classes that are
    not trained on but scored.
    """

    model: str
    pretrained: str
    prompt: str | tuple[str, ...]
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    logit_scale: float
    embed_dim: int
    key: str
    image: Mapping[str, Tensor]
    label: Mapping[str, Tensor]
    text: Tensor
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    encoder: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unseen: FeatureSet | None = None

    @property
    def class_text(self) -> Tensor:
        """Normalised text features (C, D)."""
        return F.normalize(self.text, dim=1)

    def domain_order(self, index: Tensor, group: Tensor | int = 0) -> Tensor:
        """Rows counted over all domains, put domain after domain as they came.

        ``group`` (N,) int64, ascending: the rows of a group stay together.
        """
        domain = torch.bucketize(index, self._ends(), right=True)
        return index[torch.argsort(domain + len(self.domains) * group, stable=True)]

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, D) and labels (N,) of rows, in the order of ``index``."""
        x = torch.empty(len(index), self.embed_dim)
        y = torch.empty(len(index), dtype=torch.int64)
        for start in range(0, len(index), directions.ROWS_AT_ONCE):
            part = index[start : start + directions.ROWS_AT_ONCE]
            domains = torch.bucketize(part, self._ends(), right=True)
            for i, domain in enumerate(self.domains):
                (place,) = (domains == i).nonzero(as_tuple=True)
                row = part[place] - (self._ends()[i] - len(self.label[domain]))
                x[start + place] = self.image[domain][row]
                y[start + place] = self.label[domain][row]
        return x, y

    def undirected(self) -> Tensor:
        """The rows without a direction, (M,) int64, counted over all domains."""
        starts = [0, *self._ends().tolist()]
        parts = [directions.undirected(self.image[d]) for d in self.domains]
        return torch.cat([part + start for part, start in zip(parts, starts)])

    def _ends(self) -> Tensor:
        sizes = [len(self.label[domain]) for domain in self.domains]
        return torch.tensor(sizes).cumsum(0)


def save_features(features: FeatureSet, directory: str | Path) -> None:
    """Write a feature directory; ``features.json`` last, so a torn one is noticed."""
    directory = as_path(directory)
    header: dict[str, Any] = {
        "format": FORMAT,
        "model": features.model,
        "pretrained": features.pretrained,
        "prompt": features.prompt
        if isinstance(features.prompt, str)
        else list(features.prompt),
        "classes": list(features.classes),
        "domains": list(features.domains),
        "logit_scale": features.logit_scale,
        "embed_dim": features.embed_dim,
        "key": features.key,
    }
    for name in _LISTS:
        if value := getattr(features, name):
            header[name] = list(value)
    stems = _stems(features.domains)
    if stems:
        header["files"] = stems
    if features.encoder:
        header["encoder"] = dict(features.encoder)
    write_tensors(directory / "text.safetensors", {"text": features.text})
    for domain in features.domains:
        write_tensors(
            directory / f"{stems.get(domain, domain)}.safetensors",
            {"image": features.image[domain], "label": features.label[domain]},
        )
    if features.files:
        names = {domain: list(files) for domain, files in features.files.items()}
        write_json(directory / NAMES, cleaned(names))
    write_json(directory / "features.json", header)


def load_features(directory: str | Path) -> FeatureSet:
    """Read and verify a feature directory.

    Raises FeaturesError, in one line, for a missing directory, another format, a
    missing, truncated or altered file, wrong shapes, labels out of range, non-finite
    values, and where all features of a domain, or of the classes, are zeros.
    """
    directory = as_path(directory)
    header = _read_header(directory)
    dim, classes = header["embed_dim"], tuple(header["classes"])
    path = directory / "text.safetensors"
    text = _read(path, "text").float()
    _expect(
        tuple(text.shape) == (len(classes), dim)
        and bool(directions.lengths(text).isfinite().all()),
        f"{path}: text must be finite, small enough to be squared, and of shape "
        f"({len(classes)}, {dim}), got {tuple(text.shape)}",
    )
    _expect(
        len(directions.undirected(text)) < len(classes),
        f"{path}: the text features of all classes are zeros and say nothing",
    )
    image, label = {}, {}
    for domain in header["domains"]:
        path = directory / f"{header['files'].get(domain, domain)}.safetensors"
        image[domain] = _read(path, "image").float()
        label[domain] = _read(path, "label")
        _check_domain(path, domain, image[domain], label[domain], dim, len(classes))
    prompt = header["prompt"]
    lists: dict[str, Any] = {name: tuple(header.get(name, ())) for name in _LISTS}
    files = _names(directory / NAMES, label)
    doubts = directions.doubts(image, files, text, classes)
    lists["notes"] = tuple(dict.fromkeys((*lists["notes"], *doubts)))
    return FeatureSet(
        model=header["model"],
        pretrained=header["pretrained"],
        prompt=prompt if isinstance(prompt, str) else tuple(prompt),
        classes=classes,
        domains=tuple(header["domains"]),
        logit_scale=float(header["logit_scale"]),
        embed_dim=dim,
        key=header["key"],
        image=image,
        label=label,
        text=text,
        **lists,
        encoder=header.get("encoder", {}),
        files=files,
    )


def refuse_images(directory: Path) -> None:
    """Raise FeaturesError where ``directory`` holds images: it is a data set's."""
    for folder, _, names in os.walk(directory):
        if any(map(is_image_name, names)):
            raise FeaturesError(
                f"--to {directory}: there are images in {printable(folder)}; choose "
                "another folder, for the features alone"
            )


def _stems(domains: Sequence[str]) -> dict[str, str]:
    """Domain -> its file without suffix, for names that others have or no file can."""
    keys = Counter(domain.casefold() for domain in domains)
    return {
        domain: f"{i}.domain"
        for i, domain in enumerate(domains)
        if _TAKEN.fullmatch(domain.casefold())
        or keys[domain.casefold()] > 1
        or safe_folder(domain) != domain
    }


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise FeaturesError(
            f"{message}; write the directory again with `fedclip features`"
        )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FeaturesError(f"{path} cannot be read: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise FeaturesError(
            f"{path} is not readable JSON: {error}; write the directory again with "
            "`fedclip features`"
        ) from error


def _read_header(directory: Path) -> dict[str, Any]:
    path = directory / "features.json"
    if not path.is_file():
        raise FeaturesError(
            f"--features {directory}: no features.json there; "
            f"make one with `fedclip features --to {directory}`"
        )
    header = _read_json(path)
    version = header.get("format") if isinstance(header, dict) else None
    _expect(
        version == FORMAT, f"{path}: format {version!r}, this version reads {FORMAT}"
    )
    for name, kind in _FIELDS.items():
        _expect(
            isinstance(header.get(name), kind),
            f"{path}: {name!r} is missing or of the wrong type",
        )
    for name in ("classes", "domains"):
        values = header[name]
        _expect(
            bool(values)
            and all(isinstance(v, str) and v for v in values)
            and len(set(values)) == len(values),
            f"{path}: {name!r} must list different, non-empty names",
        )
    wrong = each(text)(header.get("encoder", {}))
    _expect(not wrong, f"{path}: 'encoder' {wrong}")
    for name in _LISTS:
        texts = header.get(name, [])
        _expect(
            isinstance(texts, list) and all(isinstance(text, str) for text in texts),
            f"{path}: {name!r} must list texts",
        )
    stems = header.setdefault("files", {})
    _expect(isinstance(stems, dict), f"{path}: 'files' must be an object")
    for domain in header["domains"]:
        stem = stems.get(domain, domain)
        _expect(
            isinstance(stem, str)
            and Path(stem).name == stem
            and stem not in (".", "..", "text"),
            f"{path}: domain {domain!r}: {stem!r} is not a plain file name",
        )
    _expect(
        math.isfinite(header["logit_scale"]) and header["logit_scale"] > 0,
        f"{path}: logit_scale {header['logit_scale']} is not a positive number",
    )
    _expect(header["embed_dim"] > 0, f"{path}: embed_dim must be positive")
    return dict(header)


def _names(path: Path, label: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """The images of the rows; none where an earlier version wrote the directory."""
    if not path.is_file():
        return {}
    names = _read_json(path)
    sizes = {domain: len(rows) for domain, rows in label.items()}
    wrong = each(several(text))(names) or (
        {domain: len(own) for domain, own in names.items()} != sizes
        and "names other images than there are rows"
    )
    _expect(not wrong, f"{path}: {wrong}")
    return {domain: tuple(own) for domain, own in names.items()}


def _read(path: Path, name: str) -> Tensor:
    try:
        return read_tensors(path)[0][name]
    except FileNotFoundError:
        problem = f"{path} is missing"
    except DamagedFileError as error:
        problem = str(error)
    except KeyError:
        problem = f"{path} holds no tensor {name!r}"
    raise FeaturesError(f"{problem}; write the directory again with `fedclip features`")


def _check_domain(
    path: Path, domain: str, image: Tensor, label: Tensor, dim: int, classes: int
) -> None:
    count = len(label) if label.dim() == 1 else -1
    _expect(
        tuple(image.shape) == (count, dim),
        f"{path}: image {tuple(image.shape)} and label {tuple(label.shape)} do not "
        f"match (N, {dim}) and (N,)",
    )
    _expect(
        label.dtype == torch.int64
        and (count == 0 or (int(label.min()) >= 0 and int(label.max()) < classes)),
        f"{path}: labels must be int64 in 0..{classes - 1}",
    )
    lengths = directions.lengths(image)
    _expect(
        bool(lengths.isfinite().all()),
        f"{path}: image features hold NaN or Inf, or are too large to be squared",
    )
    _expect(
        count == 0 or float(lengths.max()) >= NORM_FLOOR,
        f"{path}: the features of all {count:,} images of domain {domain!r} are zeros "
        "and say nothing",
    )
