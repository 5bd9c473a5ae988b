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

import contextlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..config.inputs import SCHEMAS
from ..config.paths import as_path
from ..errors import WeightsError, did_you_mean
from .assumed import (
    DEFAULT_PREPROCESS,
    OPENAI_NAMES,
    Config,
    assumed_activation,
    origin_of,
    preprocess_of,
    preprocess_of_file,
    published_for,
    read_json,
    told_by,
)
from .checkpoint import peek
from .download import QUICKGELU, ModelSource, schema_files

MODELS_DIR = Path(__file__).parents[1] / "models"
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".npz")
LIST_HINT = "python -c 'import open_clip; print(open_clip.list_pretrained())'"

NEEDED = {"embed_dim", "vision_cfg", "text_cfg"}
_NEEDED_TEXT = "embed_dim, vision_cfg, text_cfg"


def resolve(model: str, pretrained: str, config_dir: str | None = None) -> ModelSource:
    """Find the config and the weights of a model as the user names it.

    Names count in any case.  Needs no network, except for a ``hf-hub:`` model, whose
    config is there.  Raises WeightsError with the closest names on an unknown model,
    tag or file, and with the remedy on a QuickGELU mismatch.
    """
    model = model.strip()
    if model.startswith(SCHEMAS):
        return _resolve_schema(model)
    name, config, config_file = _find_config(model, local_configs(config_dir))
    openai = {spelling.lower(): spelling for spelling in OPENAI_NAMES}
    requested = openai.get(model.lower(), name)
    source = _find_weights(requested, name, pretrained, config, config_file)
    notes = source.notes
    if config_dir is not None and config_file is None:
        notes += (f"--model-config {config_dir} has no {name}: it changes nothing",)
    return replace(source, asked=requested, notes=notes)


def resolve_config(model: str, config_dir: str | None = None) -> ModelSource:
    """A model as the user names it, whatever its weights; raises WeightsError."""
    name, config, file = _find_config(model, local_configs(config_dir))
    return ModelSource(name, "", config, preprocess_of(config), config_file=file)


def _find_weights(
    requested: str, name: str, pretrained: str, config: Config, config_file: Path | None
) -> ModelSource:
    file_like = os.sep in pretrained or Path(pretrained).suffix in SUFFIXES
    shipped = {} if file_like else {file.stem: file for file in _shipped()}
    if (tag := pretrained.lower()) in shipped:
        return _resolve_shipped(name, config, shipped[tag])
    tag_config = None if file_like else _tag_config(name, pretrained)
    if tag_config is not None:
        tag = _registered_tag(name, pretrained)
        return _resolve_tag(name, tag, config, tag_config, config_file)
    path = as_path(pretrained)
    if path.is_file():
        return _resolve_file(requested, name, config, path, config_file)
    raise _no_weights(name, pretrained, path, file_like)


def local_configs(config_dir: str | None) -> dict[str, tuple[Path, Config]]:
    """Configs shipped here and in ``--model-config`` (a directory, or one file)."""
    configs = _read_configs(MODELS_DIR)
    if config_dir is None:
        return configs
    folder = as_path(config_dir)
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
        if set(config) >= NEEDED:
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


def _shipped() -> list[Path]:
    return [f.with_suffix(".safetensors") for f in MODELS_DIR.glob("*.json")]


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


def _registered_tag(name: str, tag: str) -> str:
    """A tag as open_clip writes it, of one in any case, with - for _."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name.removesuffix(QUICKGELU))
    spelled: dict[str, str] = {
        spelling.lower().replace("-", "_"): spelling for spelling in tags
    }
    return spelled.get(tag.lower().replace("-", "_"), tag)


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
    requested: str, name: str, config: Config, file: Path, config_file: Path | None
) -> ModelSource:
    origin, published = dict(origin_of(name, file)), published_for(name, config)
    notes: tuple[str, ...] = ()
    trainer = False
    if "quick_gelu" not in origin:
        with contextlib.suppress(WeightsError):  # told when it is loaded
            checkpoint = peek(file)
            trainer, notes = checkpoint.open_clip, checkpoint.notes
            if checkpoint.openai:
                origin = {**DEFAULT_PREPROCESS, **origin, "quick_gelu": True}
    if (quick := origin.get("quick_gelu")) is None:
        quick, note = assumed_activation(
            requested, name, config, config_file, published, trainer
        )
        notes += (f"{file.name} {note}",) if note else ()
    else:
        _refuse_gelu_weights(name, f"--pretrained {file}", quick)
        if quick and not config.get("quick_gelu") and requested not in OPENAI_NAMES:
            raise _needs_quickgelu(name, file, config_file)
    if quick and not config.get("quick_gelu"):
        name, config = _quickgelu_variant(name, config)
    preprocess, more = preprocess_of_file(config, origin, published, file)
    return ModelSource(
        *(name, file.name, config, preprocess, file, config_file),
        notes=(*notes, *more),
    )


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
    config_file, file, notes = schema_files(model)
    config = read_json(config_file)
    inner = config.get("model_cfg")
    if not isinstance(inner, dict) or not set(inner) >= NEEDED:
        raise WeightsError(
            f"--model {model}: {config_file} has no whole model_cfg ({_NEEDED_TEXT})"
        )
    own, published = told_by(config), published_for("", inner)
    preprocess, more = preprocess_of_file(inner, own, published, file)
    if model.startswith("local-dir:"):
        model = f"local-dir:{file.parent}"
    return ModelSource(
        model, file.name, inner, preprocess, file, asked=model, notes=(*notes, *more)
    )


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
