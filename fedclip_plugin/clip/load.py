"""Build an open_clip model and give it the weights of a checkpoint."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..errors import WeightsError, one_line, translate
from .checkpoint import AGAIN, Checkpoint, State, read_checkpoint
from .download import ModelSource
from .tokenizer import text_config

POSITIONS = (
    *("positional_embedding", "visual.positional_embedding"),
    *("text.positional_embedding", "visual.trunk.pos_embed"),
)

_BUILDING = threading.Lock()  # what is built is silent, and the log is all threads'


def build_model(source: ModelSource, file: Path) -> nn.Module:
    """The open_clip model with its weights: fp32, on the CPU, in eval mode, frozen.

    Raises WeightsError naming the file when it does not fit the model, MachineError
    where the machine is at fault.
    """
    checkpoint = read_checkpoint(file)
    _refuse_openai_elsewhere(source, file, checkpoint)
    try:
        model = without_weights(source, torch.device("cpu"))
    except WeightsError:
        raise
    except Exception as error:  # open_clip's builders raise anything
        reason = f"--model {source.name} cannot be built: {one_line(error)}"
        raise translate(error) or WeightsError(reason) from error
    try:
        _fill(source, file, model, checkpoint)
    except WeightsError:
        raise
    except Exception as error:
        raise translate(error) or _load_error(source, file, error) from error
    return model.float().eval().requires_grad_(False)


def open_clip_name(source: ModelSource) -> str:
    """The name under which open_clip builds this model; registers local configs."""
    import open_clip

    if ":" in source.name and source.file is not None:
        return f"local-dir:{source.file.parent}"  # the snapshot: no network again
    registered = open_clip.get_model_config
    if source.config_file is not None and registered(source.name) != source.config:
        open_clip.add_model_config(source.config_file)
    return source.name


def without_weights(source: ModelSource, device: torch.device) -> nn.Module:
    """The open_clip model with random weights, or with shapes alone on ``meta``.

    What its builders raise is anything.
    """
    import open_clip

    with _BUILDING, device:
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # of random weights: they do not stay
        try:
            model: nn.Module = open_clip.create_model(
                open_clip_name(source),
                device=device,
                load_weights=False,
                pretrained_text=False,
                text_cfg=text_config(source),
                force_quick_gelu=bool(source.config.get("quick_gelu", False)),
                force_preprocess_cfg=dict(source.preprocess),
            )
        finally:
            logging.disable(before)
    return model


def _refuse_openai_elsewhere(source: ModelSource, file: Path, of: Checkpoint) -> None:
    config = source.config
    other = config.get("custom_text") or "timm_model_name" in config["vision_cfg"]
    if of.openai and other:
        raise WeightsError(
            f"--pretrained {file} is an OpenAI checkpoint and does not fit --model "
            f"{source.name}; use the model it was made for, such as --model ViT-B/32"
        )


def _fill(
    source: ModelSource, file: Path, model: nn.Module, checkpoint: Checkpoint
) -> None:
    """Load the weights as ``open_clip.load_checkpoint`` does, but for other sizes.

    It would interpolate position embeddings of a user's file without a word.
    """
    from open_clip import convert
    from open_clip import model as clip_model

    if checkpoint.kind == "big_vision":
        _refuse_without_trunk(source, file, model)
        convert.load_big_vision_weights(model, str(file))
        return
    state: State = convert.convert_state_dict(model, dict(checkpoint.state))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = clip_model.convert_to_custom_text_state_dict(state)
    own = model.state_dict()
    if "logit_bias" in own:  # of a model that was trained without
        state.setdefault("logit_bias", torch.zeros_like(own["logit_bias"]))
    for key in {"logit_scale", "logit_bias"} & own.keys() & state.keys():
        state[key] = state[key].reshape(own[key].shape)  # a scalar, or one value
    position_ids = "text.transformer.embeddings.position_ids"  # of old transformers
    if position_ids not in own:
        state.pop(position_ids, None)
    if source.file is None:
        clip_model.resize_pos_embed(state, model)
        clip_model.resize_text_pos_embed(state, model)
    else:
        _refuse_other_sizes(source, file, state, own)
    model.load_state_dict(state)


def _refuse_without_trunk(source: ModelSource, file: Path, model: nn.Module) -> None:
    if not hasattr(getattr(model, "visual", None), "trunk"):
        raise WeightsError(
            f"{file} is a checkpoint of big_vision and does not fit --model "
            f"{source.name}; use the SigLIP model it was made for, such as "
            "--model ViT-B-16-SigLIP"
        )


def _refuse_other_sizes(
    source: ModelSource, file: Path, state: State, own: State
) -> None:
    for key in POSITIONS:
        if key in state and key in own and state[key].shape != own[key].shape:
            raise WeightsError(
                f"{file} does not fit --model {source.name}: {key} "
                f"{list(state[key].shape)} in the file, expected "
                f"{list(own[key].shape)}; use the model of the same image size"
            )


def _load_error(source: ModelSource, file: Path, error: BaseException) -> WeightsError:
    """One line on why a checkpoint could not be loaded."""
    mismatch = _state_dict_mismatch(str(error))
    if mismatch or isinstance(error, (AssertionError, AttributeError, KeyError)):
        return WeightsError(
            f"{file} does not fit --model {source.name}: "
            f"{mismatch or one_line(error)}; check --model and --model-config"
        )
    return WeightsError(
        f"cannot load {file} into --model {source.name} ({one_line(error)}): "
        f"is it another model's? check --model; {AGAIN}"
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
