"""The tokenizer of a CLIP, and the config of a text tower of transformers'.

CLIP's own comes with open_clip.  SigLIP, BiomedCLIP and others bring theirs: it is read
from beside the weights or the config where it lies there, else from the hub.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import WeightsError, one_line, translate
from ..storage.hashes import file_sha256
from .download import HUB, ModelSource, reachable

Tokenizer = Callable[[list[str]], Tensor]

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("vocab.txt", "vocab.json"),
)
TEXT_CONFIG = "config.json"


def tokenizer_folder(source: ModelSource) -> Path | None:
    """Where the tokenizer lies on this machine; None for CLIP's, or one on the hub."""
    name = source.config["text_cfg"].get("hf_tokenizer_name")
    return _beside(source, str(name), TOKENIZER_FILES) if name else None


def tokenizer_hash(source: ModelSource) -> str:
    """SHA-256 (hex) of a tokenizer that lies beside the weights; "" of any other."""
    folder = tokenizer_folder(source)
    if folder is None:
        return ""
    (file, *_) = (folder / n for n in TOKENIZER_FILES if (folder / n).is_file())
    return file_sha256(file)


def load_tokenizer(source: ModelSource) -> Tokenizer:
    """The model's tokenizer: captions -> (C, context) int64; raises WeightsError."""
    import open_clip
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer

    text = source.config["text_cfg"]
    name = text.get("hf_tokenizer_name")
    context = text.get("context_length", DEFAULT_CONTEXT_LENGTH)
    more: dict[str, Any] = dict(text.get("tokenizer_kwargs") or {})
    tokenizer: Tokenizer
    if not name:
        tokenizer = open_clip.SimpleTokenizer(context_length=context, **more)
        return tokenizer
    folder = tokenizer_folder(source)
    if folder is None and not reachable(HUB):
        more["local_files_only"] = True  # the hub's own retries take most of a minute
    try:
        tokenizer = HFTokenizer(
            str(folder or name),
            context_length=context,
            tokenizer_mode=text.get("tokenizer_mode"),
            **more,
        )
    except Exception as error:  # transformers is missing, or its files are
        files = f"{TOKENIZER_FILES[0]} and tokenizer_config.json of {name}"
        raise _missing(source, "tokenizer", files, folder, error) from error
    return tokenizer


def text_config(source: ModelSource) -> dict[str, Any]:
    """``text_cfg`` as open_clip builds it; a tower of transformers' by a local config.

    Raises WeightsError where that config is neither beside the weights nor on the hub.
    """
    text = dict(source.config["text_cfg"])
    name = text.get("hf_model_name")
    if not name:
        return text
    folder = _beside(source, str(name), (TEXT_CONFIG,))
    if folder is None:
        try:
            folder = _cached_config(str(name)).parent
        except Exception as error:
            files = f"{TEXT_CONFIG} of {name}"
            raise _missing(source, "text tower's config", files, None, error) from error
    return text | {"hf_model_name": str(folder), "hf_model_pretrained": False}


def _cached_config(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    offline = not reachable(HUB)
    return Path(hf_hub_download(name, TEXT_CONFIG, local_files_only=offline))


def _beside(source: ModelSource, name: str, files: tuple[str, ...]) -> Path | None:
    """The folder of one of ``files``: named, that of the weights or of the config."""
    places = [file.parent for file in (source.file, source.config_file) if file]
    for folder in (*(place / name for place in places), *places):
        if any((folder / file).is_file() for file in files):
            return folder
    return None


def _missing(
    source: ModelSource, what: str, files: str, folder: Path | None, error: Exception
) -> WeightsError:
    """One line on a tokenizer, or a config, that cannot be had."""
    if isinstance(error, ImportError):
        reason = str(translate(error) or one_line(error))
        return WeightsError(f"no {what} for {source.name}: {reason}")
    if folder is not None:
        return WeightsError(
            f"no {what} for {source.name}: {folder} holds one that transformers "
            f"cannot read ({one_line(error)}); put {files} there"
        )
    where = source.file.parent if source.file else "a checkpoint given by --pretrained"
    return WeightsError(
        f"no {what} for {source.name}: it is not on this machine, nor can {HUB} be "
        f"reached; put {files} beside the weights ({where}), or fill the Hugging Face "
        "cache elsewhere (HF_HOME)"
    )
