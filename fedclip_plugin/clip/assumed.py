"""What is assumed of weights that do not say how they were trained.

QuickGELU and the pixels' normalisation cannot be told from the weights themselves.
Their place may tell; else it is what all published weights of the model agree on, and
what is guessed beyond that is said in a note.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config.paths import read_text
from ..errors import WeightsError, reason
from .download import CONFIG_NAME, QUICKGELU

Config = Mapping[str, Any]
Published = Mapping[str, list[Any]]  # key -> the values of published weights

# OpenAI's own names; with its checkpoint file they mean the QuickGELU variant.
OPENAI_NAMES = (
    *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"),
    *("ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"),
)

# open_clip's PreprocessCfg defaults, here so that a cached run need not import it.
DEFAULT_PREPROCESS: Config = {
    "mode": "RGB",
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}
ASSUMED = ("mean", "std", "interpolation", "resize_mode")


def assumed_activation(
    requested: str,
    name: str,
    config: Config,
    config_file: Path | None,
    published: Published,
    trainer: bool,
) -> tuple[bool, str]:
    """QuickGELU or not where nothing says it, and the note on that, or "".

    ``trainer``: open_clip's saved it, which builds what its own names say.
    """
    chosen = bool(config.get("quick_gelu", False))
    seen = published.get("quick_gelu", [])
    if chosen or config_file is not None or True not in seen:
        return chosen, ""  # a name or a config that says it, or no doubt
    quick = not trainer and (requested in OPENAI_NAMES or False not in seen)
    use, other = ("QuickGELU", "GELU") if quick else ("GELU", "QuickGELU")
    remedy = f"--model {name}{'' if quick else QUICKGELU}"
    if quick and False not in seen:
        remedy = 'a --model-config of yours with "quick_gelu": false'
    why = f"as in OpenAI's {requested}" if quick else f"as open_clip's {name} has it"
    return quick, (
        "does not say with which activation it was trained: "
        f"{use} is assumed, {why}; for {other} give {remedy}"
    )


def preprocess_of_file(
    config: Config, origin: Config, published: Published, file: Path
) -> tuple[Config, tuple[str, ...]]:
    """Preprocessing of a file: as it says, as all published weights have it, or CLIP's.

    And a note on what had to be taken from CLIP's own.
    """
    agreed = {key: seen[0] for key, seen in published.items() if len(seen) == 1}
    chosen = preprocess_of(config, {**agreed, **origin})
    guessed = [key for key in ASSUMED if key not in agreed and key not in origin]
    if not guessed:
        return chosen, ()
    values = ", ".join(f"{key} {chosen[key]}" for key in guessed)
    return chosen, (
        f"{file.name} does not say how its images were prepared: CLIP's {values} "
        f'assumed; set others in {CONFIG_NAME} beside it, under "preprocess_cfg"',
    )


def preprocess_of(config: Config, overrides: Config | None = None) -> Config:
    """The fields of open_clip's PreprocessCfg, as ``create_model`` would set them."""
    size = config["vision_cfg"].get("image_size", 224)
    sides = [size, size] if isinstance(size, int) else list(size)
    chosen = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in (overrides or {}).items()
        if key in DEFAULT_PREPROCESS and value is not None
    }
    return {**DEFAULT_PREPROCESS, **chosen, "size": sides}


def published_for(name: str, config: Config) -> Published:
    """What the published weights of a model were trained with: key -> its values.

    ``mean``, ``std``, ``interpolation``, ``resize_mode`` and ``quick_gelu``; one value
    where all agree, nothing for a model that open_clip does not have.
    """
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    base, models = name.removesuffix(QUICKGELU), open_clip.list_models()
    if base not in models:  # a copy of a known config under another name
        get = open_clip.get_model_config
        base = next((model for model in models if get(model) == config), "")
    entries = [
        {"quick_gelu": False, **get_pretrained_cfg(base, tag)}
        for tag in open_clip.list_pretrained_tags_by_model(base)
    ]
    seen: dict[str, list[Any]] = {}
    for entry in entries:
        if name.endswith(QUICKGELU) and not entry["quick_gelu"]:
            continue
        for key in (*ASSUMED, "quick_gelu"):
            values, value = seen.setdefault(key, []), entry.get(key)
            value = list(value) if isinstance(value, tuple) else value
            if value is not None and value not in values:
                values.append(value)
    return seen


def origin_of(name: str, file: Path) -> Mapping[str, Any]:
    """What the place of a downloaded file says about it; {} if nothing.

    A hub snapshot has ``open_clip_config.json`` beside the weights; failing that, the
    folder or the file is named as in open_clip's registry.
    """
    sibling = file.with_name(CONFIG_NAME)
    if sibling.is_file():
        config = read_json(sibling)
        preprocess = told_by(config)
        if "model_cfg" in config:
            preprocess["quick_gelu"] = bool(
                config["model_cfg"].get("quick_gelu", False)
            )
        return preprocess
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    base = name.removesuffix(QUICKGELU)
    folders = {part.rsplit("--", 1)[-1] for part in file.absolute().parts[:-1]}
    for tag in open_clip.list_pretrained_tags_by_model(base):
        entry: dict[str, Any] = get_pretrained_cfg(base, tag)
        repository = entry.get("hf_hub", "").rstrip("/").rsplit("/", 1)[-1]
        url_name = entry.get("url", "").rsplit("/", 1)[-1]
        # OpenAI's files are plain "ViT-B-32.pt": too common a name to conclude from.
        if repository in folders or (tag != "openai" and url_name == file.name):
            return {"quick_gelu": False, **entry}
    return {}


def told_by(config: Config) -> dict[str, Any]:
    """What an ``open_clip_config.json`` says of the preprocessing."""
    preprocess = config.get("preprocess_cfg") or {}
    return {key: value for key, value in preprocess.items() if value is not None}


def read_json(file: Path) -> Mapping[str, Any]:
    """A JSON object, {} if it is another value; WeightsError if unreadable."""
    try:
        value = json.loads(read_text(file))
    except (OSError, ValueError) as error:
        what = f"{file}: not a readable JSON file: {reason(error)}"
        raise WeightsError(what) from error
    return value if isinstance(value, dict) else {}
