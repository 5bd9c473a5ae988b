"""A model and its weights, resolved but not loaded, and how they are downloaded."""

from __future__ import annotations

import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.paths import as_path
from ..errors import RunError, WeightsError, one_line, translate
from ..storage.hashes import cache_dir, home

HUB = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
CONFIG_NAME = "open_clip_config.json"
QUICKGELU = "-quickgelu"  # ends the name of a model with QuickGELU
WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
LOCAL_NAMES = (  # in the order in which open_clip prefers them
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors"),
    *("open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth"),
    *("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)

LOCAL_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")

OFFLINE_HINT = (
    "without network, give a local file with --pretrained FILE, or fill the Hugging "
    "Face cache elsewhere (HF_HOME) and set HF_HUB_OFFLINE=1"
)


@dataclass(frozen=True)
class ModelSource:
    """A model and its weights, resolved but not loaded."""

    name: str  # open_clip's, with -quickgelu where the weights need it
    tag: str  # the tag, or the file's name
    config: Mapping[str, Any]  # open_clip's model config, as it will be built
    preprocess: Mapping[str, Any]  # the fields of open_clip.PreprocessCfg
    file: Path | None = None  # None: on the hub, see weights_file
    config_file: Path | None = None  # None: open_clip knows the model
    asked: str = ""  # the name as the user meant it, in its one spelling
    notes: tuple[str, ...] = ()  # what was assumed of the weights

    @property
    def activation(self) -> str:
        """Of both towers."""
        return "QuickGELU" if self.config.get("quick_gelu") else "GELU"

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the encoder's input in pixels."""
        height, width = self.preprocess["size"]
        return int(height), int(width)


def weights_file(source: ModelSource) -> Path:
    """The checkpoint on this machine; downloads it through open_clip if need be.

    What a cache already holds is used without the network.  Raises WeightsError that
    says how to work offline.
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
            reason = str(translate(error) or one_line(error))
    if url and (_clip_cache(url).is_file() or reachable(url)):
        try:
            folder = str(_clip_cache(url).parent)
            return Path(download_pretrained(dict(entry), False, folder))
        except Exception as error:
            reason = str(translate(error) or one_line(error))
    raise WeightsError(
        f"cannot fetch the weights {source.tag} of {source.name} ({hub or url}): "
        f"{reason}; {OFFLINE_HINT}"
    )


def cached_file(source: ModelSource) -> Path | None:
    """The checkpoint if it is on this machine already; uses no network."""
    if source.file is not None:
        return source.file
    entry = _registered(source)
    hub, url = entry.get("hf_hub", ""), entry.get("url", "")
    if hub and (file := _hub_cached(*_hub_names(hub))):
        return file
    return _clip_cache(url) if url and _clip_cache(url).is_file() else None


def _registered(source: ModelSource) -> Mapping[str, Any]:
    """open_clip's registry entry: where the weights of a tag can be found."""
    from open_clip.pretrained import get_pretrained_cfg

    name = source.name.removesuffix(QUICKGELU)
    entry: Mapping[str, Any] = get_pretrained_cfg(name, source.tag)
    return entry


def _hub_names(hub: str) -> tuple[str, Sequence[str]]:
    """Repository and file names of a registry address ``org/name/[file]``."""
    repository, _, name = hub.rpartition("/")
    return repository, (name,) if name else WEIGHTS_NAMES


def schema_files(model: str) -> tuple[Path, Path, tuple[str, ...]]:
    """Config, weights and notes of a ``hf-hub:org/name`` or ``local-dir:PATH`` model.

    Raises WeightsError for what is not there.
    """
    schema, _, where = model.partition(":")
    if schema == "local-dir":
        return _local_files(model, as_path(where))
    try:
        return _from_hub(where, (CONFIG_NAME,)), _from_hub(where, WEIGHTS_NAMES), ()
    except Exception as error:
        reason = translate(error) or one_line(error)
        raise WeightsError(
            f"cannot fetch --model {model}: {reason}; {OFFLINE_HINT}"
        ) from error


def _local_files(model: str, folder: Path) -> tuple[Path, Path, tuple[str, ...]]:
    config = folder / CONFIG_NAME
    weights = sorted(
        (file for suffix in LOCAL_SUFFIXES for file in folder.glob(f"*{suffix}")),
        key=lambda file: (
            LOCAL_NAMES.index(file.name) if file.name in LOCAL_NAMES else 99,
            file.suffix != ".safetensors",
            file.name,
        ),
    )
    if not config.is_file() or not weights:
        raise WeightsError(
            f"--model {model}: expected {CONFIG_NAME} and {WEIGHTS_NAMES[0]}, or "
            f"another *{', *'.join(LOCAL_SUFFIXES)} there"
        )
    if len(weights) == 1 or weights[0].name in LOCAL_NAMES:
        return config, weights[0], ()
    note = f"of {len(weights)} checkpoints in {folder}, {weights[0].name} is used"
    return config, weights[0], (f"{note}; name yours {WEIGHTS_NAMES[0]} to choose it",)


def _hub_cached(repository: str, names: Sequence[str]) -> Path | None:
    """The first of ``names`` that the Hugging Face cache holds."""
    from open_clip import pretrained

    for name in names:
        try:
            cached = pretrained.hf_hub_download(
                repo_id=repository, filename=name, local_files_only=True
            )
            return Path(cached)
        except Exception:  # not cached, or no huggingface_hub: the download reports it
            continue
    return None


def _from_hub(repository: str, names: Sequence[str]) -> Path:
    """The first of ``names`` in a hub repository: cached, else downloaded."""
    from open_clip.pretrained import download_pretrained_from_hf

    if cached := _hub_cached(repository, names):
        return cached
    if not reachable(HUB):  # the hub's own retries take most of a minute
        raise ConnectionError(f"{HUB} cannot be reached")
    # Given its default name, open_clip tries the .safetensors before the .bin.
    return Path(download_pretrained_from_hf(repository, names[-1]))


def reachable(url: str) -> bool:
    """Whether a download is worth trying: not offline, and the port answers."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if urllib.request.getproxies():  # the proxy may reach what we cannot
        return True
    parts = urllib.parse.urlsplit(url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=5).close()
    except OSError:
        return False
    return True


def _clip_cache(url: str) -> Path:
    """Where OpenAI's own package, and open_clip, keep what this address holds.

    For a user without a home it is our cache.
    """
    try:
        folder = home() / ".cache" / "clip"
    except RunError:
        folder = cache_dir() / "clip"
    return folder / url.rsplit("/", 1)[-1]
