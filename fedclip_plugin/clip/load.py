"""Build an open_clip model from its checkpoint file.

Files are read as data, never as programs: safetensors, ``torch.load`` with
``weights_only=True``, and OpenAI's TorchScript archives for their tensors alone.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from ..errors import WeightsError, one_line
from .download import ModelSource
from .resolve import is_jit_archive

POSITIONS = {"visual.positional_embedding", "positional_embedding"}
_OPENAI_ATTRIBUTES = ("input_resolution", "context_length", "vocab_size")


def build_model(source: ModelSource, file: Path) -> nn.Module:
    """The open_clip model with its weights: fp32, on the CPU, in eval mode, frozen.

    Raises WeightsError naming the file when it does not fit the model.
    """
    _check_header(file)
    try:
        if is_jit_archive(file):
            model = _from_openai(source, file)
        else:
            model = _from_open_clip(source, file)
            if source.file is not None:
                _refuse_other_sizes(source, file, model)
    except WeightsError:
        raise
    except Exception as error:  # open_clip's builders raise anything
        raise _load_error(source, file, error) from error
    return model.float().eval().requires_grad_(False)


def open_clip_name(source: ModelSource) -> str:
    """The name under which open_clip builds this model; registers local configs."""
    import open_clip

    if source.name.startswith("hf-hub:") and source.file is not None:
        return f"local-dir:{source.file.parent}"  # the snapshot: no network again
    registered = open_clip.get_model_config
    if source.config_file is not None and registered(source.name) != source.config:
        open_clip.add_model_config(source.config_file)
    return source.name


def _from_open_clip(source: ModelSource, file: Path) -> nn.Module:
    import open_clip

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="QuickGELU mismatch")
        model: nn.Module = open_clip.create_model(
            open_clip_name(source),
            pretrained=None if ":" in source.name else str(file),
            force_quick_gelu=bool(source.config.get("quick_gelu", False)),
            force_preprocess_cfg=dict(source.preprocess),
        )
    return model


def _from_openai(source: ModelSource, file: Path) -> nn.Module:
    """A model of OpenAI's architecture with the tensors of its TorchScript archive."""
    import open_clip

    config = dict(source.config)
    vision = config["vision_cfg"]
    if config.pop("custom_text", False) or "timm_model_name" in vision:
        raise WeightsError(
            f"--pretrained {file} is an OpenAI checkpoint and does not fit --model "
            f"{source.name}; use the model it was made for, such as --model ViT-B/32"
        )
    _refuse_programs(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; OpenAI's is not
        archive: Any = torch.jit.load(str(file), map_location="cpu")
    state = archive.state_dict()
    for key in _OPENAI_ATTRIBUTES:
        state.pop(key, None)
    model: nn.Module = open_clip.CLIP(**config)
    model.load_state_dict(state)
    open_clip.model.set_model_preprocess_cfg(model, dict(source.preprocess))
    return model


def _refuse_programs(file: Path) -> None:
    """Of a TorchScript archive only ``__setstate__`` would run while it is loaded."""
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name.endswith(".py") and b"__setstate__" in archive.read(name):
                raise WeightsError(
                    f"{file} holds code that would run ({name}), unlike OpenAI's "
                    "files, and is refused; save its state_dict as .safetensors"
                )


def _refuse_other_sizes(source: ModelSource, file: Path, model: nn.Module) -> None:
    """open_clip would silently interpolate position embeddings; we do not."""
    wanted = {k: list(v.shape) for k, v in model.state_dict().items() if k in POSITIONS}
    for key, shape in _position_shapes(file).items():
        if shape != wanted.get(key, shape):
            raise WeightsError(
                f"{file} does not fit --model {source.name}: {key} {shape} in the "
                f"file, expected {wanted[key]}; use the model of the same image size"
            )


def _position_shapes(file: Path) -> dict[str, list[int]]:
    """Shapes of the position embeddings in a checkpoint that has just been loaded."""
    if file.suffix == ".safetensors":
        with safetensors.safe_open(file, framework="pt") as tensors:
            names = POSITIONS & set(tensors.keys())
            return {key: tensors.get_slice(key).get_shape() for key in names}
    if not zipfile.is_zipfile(file):
        return {}  # older than PyTorch 1.6, or numpy's: not cheap to inspect
    state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    state = state.get("state_dict", state)
    tensors = {key.removeprefix("module."): value for key, value in state.items()}
    return {key: list(tensors[key].shape) for key in POSITIONS & set(tensors)}


def _check_header(file: Path) -> None:
    try:
        with open(file, "rb") as stream:
            head = stream.read(64).lstrip().lower()
    except OSError as error:
        raise WeightsError(f"cannot read {file}: {error.strerror}") from error
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{file} is a Git LFS pointer, not the weights: fetch them with `git lfs "
            "pull`, or download the file itself"
        )
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(f"{file} is a web page, not a checkpoint: download it again")


def _load_error(source: ModelSource, file: Path, error: BaseException) -> WeightsError:
    """One line on why a checkpoint could not be loaded."""
    text = str(error)
    mismatch = _state_dict_mismatch(text)
    if mismatch:
        return WeightsError(
            f"{file} does not fit --model {source.name}: {mismatch}; "
            "check --model and --model-config"
        )
    if "weights_only" in text.lower() or "Weights only load failed" in text:
        return WeightsError(
            f"{file} holds pickled Python objects, which could run any code, and is "
            "refused; save its state_dict as .safetensors first"
        )
    if isinstance(error, ImportError) or "pip install" in text:
        return WeightsError(f"--model {source.name}: {one_line(error)}")
    return WeightsError(
        f"cannot load {file} into --model {source.name} ({one_line(error)}): "
        "is it truncated, or another model's? download it again, or check --model"
    )


def _state_dict_mismatch(text: str) -> str:
    """'3 missing keys (visual.proj, ..), 1 wrong shape (..)', or ''."""
    problems = []
    for kind in ("Missing", "Unexpected"):
        listed = re.search(rf"{kind} key\(s\) in state_dict: (.*)", text)
        if listed:
            keys = re.findall(r'"([^"]+)"', listed[1])
            problems.append(f"{len(keys)} {kind.lower()} keys ({_some(keys)})")
    shapes = re.findall(
        r"size mismatch for (\S+): .*?torch\.Size\(\[(.*?)\]\) from checkpoint, "
        r"the shape in current model is torch\.Size\(\[(.*?)\]\)",
        text,
    )
    if shapes:
        name, got, want = shapes[0]
        problems.append(
            f"{len(shapes)} wrong shapes ({name}: got [{got}], expected [{want}])"
        )
    return ", ".join(problems)


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:2]) + (", ..." if len(keys) > 2 else "")
