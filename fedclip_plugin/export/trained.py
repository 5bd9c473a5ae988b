"""What a finished run has trained, read back with what it belongs to."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from ..clip.descriptions import caption_sets
from ..clip.encoder import EncoderSpec, FrozenClip
from ..config.inputs import DESCRIPTIONS
from ..config.schema import RunConfig
from ..errors import ConfigError, RunError, WeightsError
from ..features.encode import encode_captions
from ..storage.shapes import several, text
from ..storage.tensors import DamagedFileError, read_tensors
from ..wire.update import State, unflatten

_log = logging.getLogger("fedclip")
ADAPTER = "adapter.safetensors"
STATES = {"best": ADAPTER, "final": "final.safetensors"}
"""Which of a run's rounds -> the file of its state."""


@dataclass(frozen=True)
class Trained:
    """The best round's state of a run, its classes and prompts, and the CLIP's name.

    ``features`` is the key of the features that it was trained on, ``weights`` the hash
    of the CLIP's, where they are known.

    What clients keep for themselves is in the ``state`` as ``<client>/<key>``.
    """

    path: Path
    state: State
    classes: tuple[str, ...]
    prompts: tuple[str, ...]
    model: str
    features: str = ""
    weights: str = ""

    @property
    def width(self) -> int | None:
        """D of the features that the state takes; None for a state that tells none."""
        shared = {k: v for k, v in self.state.items() if "/" not in k}
        matrices = (v.shape[-1] for v in shared.values() if v.dim() == 2)
        return max(matrices, default=None)  # others are of hidden units, or of hits

    @property
    def shared(self) -> State:
        """The state that predicts for everybody.

        Raises ConfigError where every client has a whole one of its own.
        """
        own = unflatten({k: v for k, v in self.state.items() if "/" in k})
        state = {k: v for k, v in self.state.items() if "/" not in k}
        if own and all(state.keys() <= keys.keys() for keys in own.values()):
            raise ConfigError(
                f"{self.path} holds one model for each client and no shared one to "
                f"predict with: name a client, one of {', '.join(sorted(own))}"
            )
        return state


def read_trained(
    directory: Path, client: str | None = None, state: str | Path = "best"
) -> Trained:
    """The state of the run in ``directory``, or what ``client`` predicts with.

    That is what personalization made for it, else the shared state and what it keeps.
    ``state`` is ``best``, the state of the best round, ``final``, that of the last one,
    or another file.  Raises RunError where there is none, or where the file is not one
    of a run.
    """
    if str(state) not in STATES:
        return read_state(Path(state))
    path = directory / STATES[str(state)]
    personal = directory / "personal" / f"{client}.safetensors"
    kept = client is not None and not personal.is_file()
    if client is not None and not kept and str(state) != "best":
        raise ConfigError(
            f"--state {state}: what client {client} personalized is of the best round; "
            "leave one of the two out"
        )
    if client is not None and not kept:
        path = personal
    try:
        trained = _read(path)
    except FileNotFoundError as error:
        if (directory / ADAPTER).is_file() and str(state) == "final":
            raise RunError(
                f"{directory} has no {path.name}: an earlier version wrote it; its "
                "best round is there (--state best)"
            ) from error
        raise RunError(_absent(directory, client)) from error
    if not kept:
        return trained
    return replace(trained, state=_of_client(trained.state, directory, str(client)))


def read_state(path: Path) -> Trained:
    """A run's state by itself, a file or a folder with one; raises RunError."""
    if path.is_dir():
        path = path / ADAPTER
    try:
        return _read(path)
    except FileNotFoundError as error:
        raise RunError(
            f"--state {path}: no such file; expected best, final or the "
            "adapter.safetensors of a run"
        ) from error


def _read(path: Path) -> Trained:
    try:
        state, meta = read_tensors(path)
        classes = _names(meta["classes"])
        prompts = tuple(_found(path, p) for p in _names(meta["prompts"]))
        key = meta.get("features", "")
        encoder = json.loads(meta.get("encoder", "{}"))
        weights = encoder.get("sha256", "") if isinstance(encoder, dict) else ""
        return Trained(path, state, classes, prompts, meta["model"], key, str(weights))
    except (DamagedFileError, KeyError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is not an adapter of a fedclip run: {error}") from error


def _found(path: Path, prompt: str) -> str:
    """A file of descriptions that lies beside the state, as a hub's folder has it."""
    name = prompt.removeprefix(DESCRIPTIONS)
    if name == prompt or os.path.isabs(name):
        return prompt
    return f"{DESCRIPTIONS}{path.parent / name}"


def _of_client(state: State, directory: Path, client: str) -> State:
    """The shared state, and over it, key by key, what ``client`` keeps."""
    start = f"{client}/"
    own = {k[len(start) :]: v for k, v in state.items() if k.startswith(start)}
    if not own:
        raise RunError(_absent(directory, client))
    return {k: v for k, v in state.items() if "/" not in k} | own


def _names(value: str) -> tuple[str, ...]:
    names = json.loads(value)
    if wrong := several(text)(names):
        raise ValueError(wrong)
    return tuple(names)


def _absent(directory: Path, client: str | None) -> str:
    if client is not None:
        names = sorted(p.stem for p in (directory / "personal").glob("*.safetensors"))
        return (
            f"{directory} has no adapter of a client {client!r}: it has "
            f"{', '.join(names) or 'none; run with --personalize finetune'}"
        )
    leaves = sorted(p.parent for p in directory.glob(f"*/seed-*/{ADAPTER}"))
    hint = f"name one of its runs, e.g. {leaves[0]}" if leaves else "no run is there"
    return f"{directory} has no {ADAPTER}: {hint}"


def load_backbone(
    trained: Trained, config: RunConfig, precision: str = "fp32"
) -> FrozenClip:
    """The CLIP of ``config``; WeightsError if its features do not fit.

    Equal widths do not make equal features: of a run from a feature directory, whose
    weights are unknown, a CLIP of another name is refused unless the user named it.
    """
    spec = replace(EncoderSpec.from_config(config), precision=precision)
    name = spec.source().name
    if not trained.weights and name != trained.model:
        told = (
            f"{trained.path} was trained on features of {trained.model}, not of {name}"
        )
        if config.model.name == "auto":
            raise WeightsError(
                f"{told}: name that CLIP and its weights, as in --model "
                f"{trained.model} --pretrained FILE"
            )
        _log.warning("%s: are they the same?", told)
    encoder = FrozenClip.load(spec)
    if trained.width not in (None, encoder.embed_dim):
        raise WeightsError(
            f"{trained.path} was trained on {trained.model} (width {trained.width}), "
            f"but --model {spec.model} has width {encoder.embed_dim}; name that model "
            "and its weights"
        )
    return encoder


def class_texts(
    encoder: FrozenClip, classes: tuple[str, ...], prompts: tuple[str, ...]
) -> Tensor:
    """Normalised text features (C, D) of ``classes`` under ``prompts``, as in a run."""
    sets = caption_sets(classes, prompts)
    return F.normalize(encode_captions(encoder, sets), dim=1)
