"""A resolved model: bring its weights onto this machine, and build it from them.

Files are read as data, never as programs: safetensors, ``torch.load`` with
``weights_only=True``, and OpenAI's TorchScript archives for their tensors alone.
"""

from __future__ import annotations

import json
import os
import re
import socket
import urllib.parse
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import WeightsError
from .files import QUICKGELU, is_jit_archive

HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
OFFLINE_HINT = (
    "without network, give a local file with --pretrained FILE, or fill the Hugging "
    "Face cache elsewhere (HF_HOME) and set HF_HUB_OFFLINE=1"
)
_OPENAI_ATTRIBUTES = ("input_resolution", "context_length", "vocab_size")


@dataclass(frozen=True)
class ModelSource:
    """A model and its weights, resolved but not loaded."""

    name: str  # open_clip's, with -quickgelu where the weights need it
    tag: str  # the tag, or the file's name
    config: Mapping[str, Any]  # open_clip's model config, as it will be built
    preprocess: Mapping[str, Any]  # the fields of open_clip.PreprocessCfg
    file: Path | None = None  # None: on the hub, see weights_file
    config_file: Path | None = None  # None: open_clip knows the model

    @property
    def preprocess_id(self) -> str:
        """Canonical JSON of what happens to an image before the encoder."""
        return json.dumps(self.preprocess, sort_keys=True)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the encoder's input in pixels."""
        height, width = self.preprocess["size"]
        return int(height), int(width)


def weights_file(source: ModelSource) -> Path:
    """The checkpoint on this machine; downloads it through open_clip if need be.

    What a cache already holds is used without asking the network.  Raises WeightsError
    with the way to work offline.
    """
    if source.file is not None:
        return source.file
    from open_clip.pretrained import download_pretrained

    entry = _registered(source)
    hub, url = entry.get("hf_hub", ""), entry.get("url", "")
    reason = "it has no download address"
    if hub:
        try:
            return _from_hub(*_hub_names(hub))
        except Exception as error:  # hub, HTTP and OS errors have no common base
            reason = _first_line(error)
    if url and (_clip_cache(url).is_file() or reachable(url)):
        try:
            return Path(download_pretrained(dict(entry), prefer_hf_hub=False))
        except Exception as error:
            reason = _first_line(error)
    raise WeightsError(
        f"cannot fetch the weights {source.tag} of {source.name} ({hub or url}): "
        f"{reason}; {OFFLINE_HINT}"
    )


def cached_file(source: ModelSource) -> Path | None:
    """The checkpoint if it is on this machine already; asks no network."""
    if source.file is not None:
        return source.file
    entry = _registered(source)
    hub, url = entry.get("hf_hub", ""), entry.get("url", "")
    if hub and (file := _hub_cached(*_hub_names(hub))):
        return file
    return _clip_cache(url) if url and _clip_cache(url).is_file() else None


def _registered(source: ModelSource) -> Mapping[str, Any]:
    """open_clip's registry entry: where the weights of a tag can be had."""
    from open_clip.pretrained import get_pretrained_cfg

    name = source.name.removesuffix(QUICKGELU)
    entry: Mapping[str, Any] = get_pretrained_cfg(name, source.tag)
    return entry


def _hub_names(hub: str) -> tuple[str, Sequence[str]]:
    """Repository and file names of a registry address ``org/name/[file]``."""
    repository, _, name = hub.rpartition("/")
    return repository, (name,) if name else WEIGHTS_NAMES


def schema_files(model: str) -> tuple[Path, Path]:
    """Config and weights of a ``hf-hub:org/name`` or ``local-dir:PATH`` model."""
    schema, _, where = model.partition(":")
    if schema == "local-dir":
        folder = Path(where).expanduser()
        found = [folder / name for name in WEIGHTS_NAMES if (folder / name).is_file()]
        if not (folder / CONFIG_NAME).is_file() or not found:
            raise WeightsError(
                f"--model {model}: expected {CONFIG_NAME} and {WEIGHTS_NAMES[0]} there"
            )
        return folder / CONFIG_NAME, found[0]
    try:
        return _from_hub(where, (CONFIG_NAME,)), _from_hub(where, WEIGHTS_NAMES)
    except Exception as error:
        raise WeightsError(
            f"cannot fetch --model {model}: {_first_line(error)}; {OFFLINE_HINT}"
        ) from error


def _hub_cached(repository: str, names: Sequence[str]) -> Path | None:
    """The first of ``names`` that the Hugging Face cache holds."""
    from open_clip import pretrained

    for name in names:
        try:
            cached = pretrained.hf_hub_download(
                repo_id=repository, filename=name, local_files_only=True
            )
            return Path(cached)
        except Exception:  # not cached, or no huggingface_hub: told by the download
            continue
    return None


def _from_hub(repository: str, names: Sequence[str]) -> Path:
    """The first of ``names`` in a hub repository: cached, else downloaded."""
    from open_clip.pretrained import download_pretrained_from_hf

    if cached := _hub_cached(repository, names):
        return cached
    if not reachable(HUB):  # the hub's own retries take most of a minute
        raise ConnectionError(f"{HUB} cannot be reached from here")
    # Given its default name, open_clip tries the .safetensors before the .bin.
    return Path(download_pretrained_from_hf(repository, names[-1]))


def reachable(url: str) -> bool:
    """Whether a download is worth trying: not told offline, and the port answers."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if urllib.request.getproxies():  # the proxy reaches what we cannot
        return True
    parts = urllib.parse.urlsplit(url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except OSError:
        return False
    return True


def _clip_cache(url: str) -> Path:
    """Where OpenAI's own package, and open_clip, keep what this address holds."""
    return Path("~/.cache/clip").expanduser() / url.rsplit("/", 1)[-1]


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
    except WeightsError:
        raise
    except Exception as error:  # open_clip's builders raise what they please
        raise _load_error(source, file, error) from error
    return model.float().eval().requires_grad_(False)


def open_clip_name(source: ModelSource) -> str:
    """The name under which open_clip builds this model; registers local configs."""
    import open_clip

    if source.name.startswith("hf-hub:") and source.file is not None:
        return f"local-dir:{source.file.parent}"  # the snapshot: no network again
    known = open_clip.get_model_config
    if source.config_file is not None and known(source.name) != source.config:
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
            f"{file} holds pickled Python objects, which could run any program, and is "
            "refused; save its state_dict as .safetensors first"
        )
    if isinstance(error, ImportError) or "pip install" in text:
        return WeightsError(f"--model {source.name}: {_first_line(error)}")
    return WeightsError(
        f"cannot load {file} into --model {source.name} ({_first_line(error)}): "
        "truncated or not a checkpoint? download it again, or check --model"
    )


def _state_dict_mismatch(text: str) -> str:
    """'3 missing keys (visual.proj, ..), 1 wrong shape (..)', or ''."""
    found = []
    for kind in ("Missing", "Unexpected"):
        listed = re.search(rf"{kind} key\(s\) in state_dict: (.*)", text)
        if listed:
            keys = re.findall(r'"([^"]+)"', listed[1])
            found.append(f"{len(keys)} {kind.lower()} keys ({_some(keys)})")
    shapes = re.findall(
        r"size mismatch for (\S+): .*?torch\.Size\(\[(.*?)\]\) from checkpoint, "
        r"the shape in current model is torch\.Size\(\[(.*?)\]\)",
        text,
    )
    if shapes:
        name, got, want = shapes[0]
        found.append(
            f"{len(shapes)} wrong shapes ({name}: [{got}] in the file, [{want}] wanted)"
        )
    return ", ".join(found)


def _some(keys: Sequence[str]) -> str:
    return ", ".join(keys[:2]) + (", ..." if len(keys) > 2 else "")


def _first_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__
