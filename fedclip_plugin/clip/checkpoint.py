"""A checkpoint, however it was saved, as one state dict with plain names.

Files are told by their first bytes, not by their names, and read as data, never as
programs: safetensors, ``torch.load`` with ``weights_only=True``, and OpenAI's
TorchScript archives for their tensors alone.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..errors import WeightsError, one_line, translate

State = dict[str, Tensor]
OPENAI_INTEGERS = ("input_resolution", "context_length", "vocab_size")
AGAIN = "is it truncated? download it again"
EXPECTED = "expected PyTorch's, safetensors or big_vision's .npz"

# Where trainers put a model beside its optimizer, in the order of preference.
_WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "module")
_WRAPPED = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_SCALE = "logit_scale"  # every CLIP has one: what stands before it is a prefix
_OPEN_CLIP_TRAINER = {"epoch", "name", "state_dict", "optimizer"}

_FOREIGN = (  # first bytes, what they are, what to do
    (b"version https://git-lfs", "a Git LFS pointer", "fetch it with `git lfs pull`"),
    (b"<!doctype", "a web page", "download it again"),
    (b"<html", "a web page", "download it again"),
    (b"<?xml", "a web page", "download it again"),
    (b"{", "JSON text", "give the weights; shards that it lists have to be merged"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it first"),
    (b"bzh", "compressed by bzip2", "unpack it first"),
    (b"\xfd7zxz", "compressed by xz", "unpack it first"),
    (b"(\xb5/\xfd", "compressed by zstd", "unpack it first"),
    (b"\x89hdf", "an HDF5 file of Keras or TensorFlow", EXPECTED),
    (b"gguf", "a GGUF file", EXPECTED),
    (b"\x93numpy", "a single NumPy array", EXPECTED),
)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file; of big_vision's none, open_clip reads them itself.

    ``openai`` and ``open_clip`` say whether it tells that their code saved it;
    ``notes`` are lines on what was passed over.
    """

    kind: str  # safetensors, torch, torchscript or big_vision
    state: State
    openai: bool = False
    open_clip: bool = False
    notes: tuple[str, ...] = ()


def kind_of(file: Path) -> str:
    """``safetensors``, ``torch``, ``torchscript`` or ``big_vision``.

    Raises WeightsError that names what else the file is, and what to do.
    """
    try:
        with open(file, "rb") as stream:
            head = stream.read(512)
    except OSError as error:
        raise WeightsError(f"cannot read {file}: {error.strerror}") from error
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(file)
    start = head.lstrip().lower()
    if head[8:9] == b"{":  # after the length of the header
        return "safetensors"
    for magic, what, remedy in _FOREIGN:
        if start.startswith(magic):
            raise WeightsError(f"{file} is {what}, not the weights: {remedy}")
    if head[257:262] == b"ustar":
        raise WeightsError(f"{file} is a tar archive: unpack it first")
    if head.startswith(b"\x80"):  # a pickle: PyTorch before 1.6
        return "torch"
    raise WeightsError(f"{file} is not a checkpoint ({EXPECTED}): {AGAIN}")


def _kind_of_zip(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        reason = one_line(error)
        raise WeightsError(f"{file} is damaged ({reason}): {AGAIN}") from error
    for ending, kind in (
        ("constants.pkl", "torchscript"),
        ("data.pkl", "torch"),
        (".npy", "big_vision"),
    ):
        if any(name.endswith(ending) for name in names):
            return kind
    raise WeightsError(f"{file} is a zip archive of other files: unpack it first")


def read_checkpoint(file: Path) -> Checkpoint:
    """The state dict in ``file``: unwrapped, without prefixes, still of any dtype.

    Tensors stay on the disk until they are used.  Raises WeightsError, in one line,
    for what is damaged, would run code, or is in another library's format.
    """
    kind = kind_of(file)
    if kind == "big_vision":
        return Checkpoint(kind, {})
    try:
        loaded = _load(file, kind)
    except WeightsError:
        raise
    except Exception as error:  # torch and safetensors raise anything
        raise translate(error) or _unreadable(file, error) from error
    states = list(_states(loaded)) or list(_states(loaded, mark=""))[:1]
    if not states:
        raise WeightsError(f"{file} holds no CLIP: {_contents(loaded)}")
    where, raw = states[0]
    notes: tuple[str, ...] = ()
    if len(states) > 1:
        others = ", ".join(name for name, _ in states[1:])
        notes = (f"{file.name} holds several models: {where} is used, not {others}",)
    names = {str(key).rpartition(".")[2] for key in raw}
    openai = kind == "torchscript" or names.issuperset(OPENAI_INTEGERS)
    ours = isinstance(loaded, dict) and loaded.keys() >= _OPEN_CLIP_TRAINER
    return Checkpoint(kind, _plain(file, raw), openai, ours, notes)


def peek(file: Path) -> Checkpoint:
    """:func:`read_checkpoint`, but for the tensors of a TorchScript archive."""
    if kind_of(file) == "torchscript":
        return Checkpoint("torchscript", {}, openai=True)
    return read_checkpoint(file)


def _load(file: Path, kind: str) -> Any:
    if kind == "safetensors":
        return safetensors.torch.load_file(file)
    if kind == "torchscript":
        _refuse_programs(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated
            archive: Any = torch.jit.load(str(file), map_location="cpu")
        return archive.state_dict()
    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    if zipfile.is_zipfile(file) and file.suffix != ".safetensors":
        return torch.load(file, mmap=True, **options)
    with open(file, "rb") as stream:  # of a path, torch would believe the suffix
        return torch.load(stream, **options)


def _refuse_programs(file: Path) -> None:
    """Of a TorchScript archive only ``__setstate__`` would run while it is loaded."""
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            if name.endswith(".py") and b"__setstate__" in archive.read(name):
                raise WeightsError(
                    f"{file} holds code that would run ({name}), unlike OpenAI's "
                    "files, and is refused; save its state_dict as .safetensors"
                )


def _unreadable(file: Path, error: BaseException) -> WeightsError:
    if "weights_only" in str(error).lower() or "Weights only" in str(error):
        return WeightsError(
            f"{file} holds pickled Python objects, which could run any code, and is "
            "refused; save its state_dict as .safetensors first"
        )
    return WeightsError(f"cannot read {file} ({one_line(error)}): {AGAIN}")


def _states(
    value: Any, where: str = "", depth: int = 3, mark: str = _SCALE
) -> Iterator[tuple[str, Any]]:
    """The mappings of names to tensors in ``value``, the preferred one first.

    Only those with a name that ends in ``mark``.
    """
    if not isinstance(value, Mapping):
        return
    if any(str(k).endswith(mark) and isinstance(v, Tensor) for k, v in value.items()):
        yield where, value
        return
    for key in (*_WRAPPERS, *(k for k in value if k not in _WRAPPERS)):
        if depth and key in value:
            yield from _states(value[key], f"{where}.{key}".strip("."), depth - 1, mark)


def _contents(loaded: Any) -> str:
    if not isinstance(loaded, Mapping):
        return f"it is a {type(loaded).__name__}; save the model's state_dict"
    keys = ", ".join(map(str, list(loaded)[:4]))
    return f"its keys are {keys}, ...; expected the weights of a whole model"


def _plain(file: Path, raw: Mapping[str, Any]) -> State:
    """Without what compilers and trainers put before the names."""
    state = {_WRAPPED.sub("", k): v for k, v in raw.items() if isinstance(v, Tensor)}
    scales = (key for key in state if f".{key}".endswith(f".{_SCALE}"))
    prefixes = sorted({key.removesuffix(_SCALE) for key in scales})
    if len(prefixes) > 1 and prefixes[0]:
        raise WeightsError(
            f"{file} holds several models ({', '.join(prefixes)}): save one of them"
        )
    prefix = prefixes[0] if prefixes else ""
    state = {key.removeprefix(prefix): value for key, value in state.items()}
    _refuse_other_names(file, state)
    return {key: v for key, v in state.items() if key not in OPENAI_INTEGERS}


def _refuse_other_names(file: Path, state: State) -> None:
    if any(key.startswith(("vision_model.", "text_model.")) for key in state):
        raise WeightsError(
            f"{file} has the names of transformers (vision_model..., text_model...): "
            "expected open_clip's; give the same model's tag with --pretrained, such "
            "as openai, or convert it"
        )
    if lora := next((key for key in state if "lora_" in key), None):
        raise WeightsError(
            f"{file} holds LoRA's matrices apart ({lora}): merge them "
            "(merge_and_unload of peft) and save the model's state_dict"
        )
