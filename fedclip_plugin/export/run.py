"""``fedclip export``: the backbone and the adapter of a finished run as one module."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ..clip.encoder import EncoderSpec, FrozenClip
from ..clip.prompts import captions
from ..config.schema import RunConfig
from ..errors import RunError, WeightsError
from ..features.encode import encode_captions
from ..storage.shapes import several, text
from ..storage.tensors import DamagedFileError, read_tensors
from .classifier import export_classifier


def export_run(
    directory: Path, config: RunConfig, to: Path, formats: tuple[str, ...]
) -> tuple[Path, ...]:
    """Export the adapter of the run in ``directory`` to ``to``; returns the files.

    ``config`` is the run's, overridden by ``--model`` and the like: a run on a feature
    directory does not know where its backbone's weights are.  Raises RunError where
    there is no adapter, WeightsError for a backbone of another width.
    """
    path = directory / "adapter.safetensors"
    try:
        state, meta = read_tensors(path)
        classes = json.loads(meta["classes"])
        prompts = json.loads(meta["prompts"])
        for names in (classes, prompts):
            if wrong := several(text)(names):
                raise ValueError(wrong)
        width = state["0.weight"].shape[0]
    except FileNotFoundError as error:
        runs = sorted(p.parent for p in directory.glob("*/seed-*/adapter.safetensors"))
        hint = f"name one of its runs, e.g. {runs[0]}" if runs else "no run there"
        raise RunError(f"{directory} has no adapter.safetensors: {hint}") from error
    except (
        *(DamagedFileError, KeyError, ValueError, IndexError, RecursionError),
    ) as error:
        raise RunError(f"{path} is not an adapter of a fedclip run: {error}") from error
    spec = replace(EncoderSpec.from_config(config), precision="fp32")
    encoder = FrozenClip.load(spec)
    if encoder.embed_dim != width:
        raise WeightsError(
            f"{path} was trained on {meta['model']} (width {width}), but --model "
            f"{spec.model} has width {encoder.embed_dim}; name that model and weights"
        )
    text_features = encode_captions(
        encoder, [captions(classes, prompt) for prompt in prompts]
    )
    return export_classifier(encoder, state, text_features, classes, to, formats)
