"""Which CLIP to use: names, tags and files resolved to one config and one file.

Nothing here builds a model.  ``resolve`` reads a name as the paper writes it
(``ViT-B/32``), as open_clip does (``ViT-B-32-quickgelu``), one of ours
(``fedclip-tiny``) or one in ``--model-config``.

OpenAI's CLIPs, and some others, were trained with QuickGELU.  Built with the usual
GELU they load silently and encode worse, so the variant follows the weights: switched
where the tag or OpenAI's own name says so, refused where the request contradicts the
weights.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import WeightsError, did_you_mean
from .download import QUICKGELU, ModelSource, schema_files

Config = Mapping[str, Any]
MODELS_DIR = Path(__file__).parents[1] / "models"
SCHEMAS = ("hf-hub:", "local-dir:")  # open_clip names that bring their own weights
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".npz")
LIST_HINT = "python -c 'import open_clip; print(open_clip.list_pretrained())'"

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


def resolve(model: str, pretrained: str, config_dir: str | None = None) -> ModelSource:
    """Find the config and the weights of a model as the user names it.

    Needs no network, except for a ``hf-hub:`` model, whose config is there.  Raises
    WeightsError with the closest names on an unknown model, tag or file, and with the
    remedy on a QuickGELU mismatch.
    """
    if model.startswith(SCHEMAS):
        return _resolve_schema(model)
    name, config, config_file = _find_config(model, local_configs(config_dir))
    shipped = MODELS_DIR / f"{pretrained}.safetensors"
    if _is_shipped(pretrained):
        return _resolve_shipped(name, config, shipped)
    path = Path(pretrained).expanduser()
    file_like = os.sep in pretrained or path.suffix in SUFFIXES
    tag_config = None if file_like else _tag_config(name, pretrained)
    if tag_config is not None:
        return _resolve_tag(name, pretrained, config, tag_config, config_file)
    if path.is_file():
        return _resolve_file(model, name, config, path, config_file)
    raise _no_weights(name, pretrained, path, file_like)


def local_configs(config_dir: str | None) -> dict[str, tuple[Path, Config]]:
    """Configs shipped here and in ``--model-config`` (a directory, or one file)."""
    configs = _read_configs(MODELS_DIR)
    if config_dir is None:
        return configs
    folder = Path(config_dir).expanduser()
    if not folder.exists():
        raise WeightsError(f"--model-config {config_dir}: no such directory")
    own = _read_configs(folder)
    if not own:
        raise WeightsError(
            f"--model-config {config_dir}: holds no open_clip model config "
            "(*.json with embed_dim, vision_cfg and text_cfg)"
        )
    return {**configs, **own}


def _read_configs(where: Path) -> dict[str, tuple[Path, Config]]:
    configs: dict[str, tuple[Path, Config]] = {}
    for file in [where] if where.is_file() else sorted(where.glob("*.json")):
        config = read_json(file)
        if {"embed_dim", "vision_cfg", "text_cfg"} <= set(config):
            configs[file.stem] = (file, config)
    return configs


def _find_config(
    model: str, local: Mapping[str, tuple[Path, Config]]
) -> tuple[str, Config, Path | None]:
    """open_clip's name of a model, its config, and the file if it is a local one."""
    wanted = model.strip().replace("@336px", "-336").replace("/", "-")
    if wanted in local:
        file, config = local[wanted]
        return wanted, config, file
    import open_clip

    names = {name.lower(): name for name in (*local, *open_clip.list_models())}
    name = names.get(wanted.lower())
    if name is None:
        raise WeightsError(
            f"--model {model} is not known"
            f"{did_you_mean(wanted, names.values(), 3, 0.5)}; list all with "
            f"{LIST_HINT}, or add your own with --model-config DIR"
        )
    if name in local:
        return name, local[name][1], local[name][0]
    return name, open_clip.get_model_config(name), None


def _is_shipped(tag: str) -> bool:
    plain = os.sep not in tag and Path(tag).suffix not in SUFFIXES
    return plain and (MODELS_DIR / f"{tag}.json").is_file()


def _resolve_shipped(name: str, config: Config, file: Path) -> ModelSource:
    if name != file.stem:
        raise WeightsError(
            f"--pretrained {file.stem} belongs to --model {file.stem}, not to {name}"
        )
    if not file.is_file():
        raise WeightsError(f"{file} is missing: reinstall fedclip-plugin")
    config_file = file.with_suffix(".json")
    return ModelSource(
        name, file.stem, config, preprocess_of(config), file, config_file
    )


def _resolve_tag(
    name: str, tag: str, config: Config, tag_config: Config, config_file: Path | None
) -> ModelSource:
    quick = bool(tag_config.get("quick_gelu", False))
    _refuse_gelu_weights(name, f"--pretrained {tag}", quick)
    if quick and not config.get("quick_gelu", False):
        name, config = _quickgelu_variant(name, config)
    preprocess = preprocess_of(config, tag_config)
    return ModelSource(name, tag, config, preprocess, config_file=config_file)


def _resolve_file(
    model: str, name: str, config: Config, file: Path, config_file: Path | None
) -> ModelSource:
    origin = origin_of(name, file)
    quick = True if is_jit_archive(file) else origin.get("quick_gelu")
    if quick is not None:
        _refuse_gelu_weights(name, f"--pretrained {file}", quick)
    if quick and not config.get("quick_gelu", False):
        if model.strip() not in OPENAI_NAMES:
            raise _needs_quickgelu(name, file, config_file)
        name, config = _quickgelu_variant(name, config)
    preprocess = preprocess_of(config, origin)
    return ModelSource(name, file.name, config, preprocess, file, config_file)


def _refuse_gelu_weights(name: str, weights: str, quick: bool) -> None:
    if name.endswith(QUICKGELU) and not quick:
        raise WeightsError(
            f"--model {name} with {weights}: these weights were trained with GELU, "
            f"not QuickGELU; use --model {name.removesuffix(QUICKGELU)}"
        )


def _needs_quickgelu(name: str, file: Path, config_file: Path | None) -> WeightsError:
    import open_clip

    if config_file is None and name + QUICKGELU in open_clip.list_models():
        remedy = f"use --model {name}{QUICKGELU}"
    else:
        remedy = f'set "quick_gelu": true in {config_file or "a config of your own"}'
    return WeightsError(
        f"--pretrained {file}: these are OpenAI's weights or others trained with "
        f"QuickGELU, and --model {name} has GELU; {remedy}"
    )


def _quickgelu_variant(name: str, config: Config) -> tuple[str, Config]:
    import open_clip

    registered = open_clip.get_model_config(name + QUICKGELU)
    return (
        (name + QUICKGELU, registered)
        if registered
        else (name, {**config, "quick_gelu": True})
    )


def _resolve_schema(model: str) -> ModelSource:
    """A ``hf-hub:org/name`` or ``local-dir:PATH`` model of open_clip."""
    config_file, file = schema_files(model)
    config = read_json(config_file)
    if "model_cfg" not in config:
        raise WeightsError(f"--model {model}: {config_file} has no model_cfg")
    preprocess = preprocess_of(config["model_cfg"], config.get("preprocess_cfg", {}))
    return ModelSource(model, file.name, config["model_cfg"], preprocess, file)


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


def _tag_config(name: str, tag: str) -> Config | None:
    """The registry's entry of a tag; the base model's for a -quickgelu name."""
    from open_clip.pretrained import get_pretrained_cfg

    for candidate in (name, name.removesuffix(QUICKGELU)):
        if entry := get_pretrained_cfg(candidate, tag):
            return {"quick_gelu": False, **entry}
    return None


def _no_weights(name: str, tag: str, path: Path, file_like: bool) -> WeightsError:
    import open_clip

    if path.is_dir():
        return WeightsError(f"--pretrained {tag} is a directory: expected a file")
    if file_like:
        return WeightsError(f"--pretrained {tag}: no such file")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not tags:
        return WeightsError(
            f"--pretrained {tag}: {name} has no downloadable weights; "
            "give a checkpoint with --pretrained FILE"
        )
    return WeightsError(
        f"--pretrained {tag} is neither a tag of {name} nor a file"
        f"{did_you_mean(tag, tags, 3, 0.5)}; tags: {', '.join(tags)}"
    )


def read_json(file: Path) -> Mapping[str, Any]:
    """A JSON object, {} if it is another value; WeightsError if unreadable."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file}: not a readable JSON file: {error}") from error
    return value if isinstance(value, dict) else {}


def is_jit_archive(file: Path) -> bool:
    """Whether a checkpoint is a TorchScript archive, as OpenAI's downloads are."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(n.endswith("/constants.pkl") for n in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def origin_of(name: str, file: Path) -> Mapping[str, Any]:
    """What the place of a downloaded file says about it; {} if nothing.

    A hub snapshot has ``open_clip_config.json`` beside the weights; failing that, the
    folder or the file is named as in open_clip's registry.  QuickGELU and the pixel
    normalisation cannot be told from the weights themselves.
    """
    sibling = file.with_name("open_clip_config.json")
    if sibling.is_file():
        config = read_json(sibling)
        quick = config.get("model_cfg", {}).get("quick_gelu", False)
        return {**config.get("preprocess_cfg", {}), "quick_gelu": bool(quick)}
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
