"""Errors that a user can cause and fix.

The command line prints the message of a :class:`FedClipError` as one line and exits
with code 2.  Say what was got, what was expected, and how to fix it; name the file or
the flag.  Any other exception is a fault of ours and exits with code 1.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


class FedClipError(Exception):
    """Base class: bad input, explained in one line with its remedy."""


class ConfigError(FedClipError):
    """An unknown name, a malformed TOML file, or a value out of range."""


class DataError(FedClipError):
    """A missing, empty, inconsistent or unreadable image folder or data set."""


class WeightsError(FedClipError):
    """An unknown model or tag, or a checkpoint that does not fit the model."""


class FeaturesError(FedClipError):
    """A feature directory that is missing, damaged, or of another format."""


class UpdateError(FedClipError):
    """A client update with wrong keys, shapes, dtypes or non-finite values."""


class RunError(FedClipError):
    """An output directory or checkpoint that cannot be used as requested."""


class MachineError(FedClipError):
    """Memory, a GPU, an installed library or the hub that fails; see `translate`."""


class GpuMemoryError(MachineError):
    """The memory of the GPU is full."""


def reason(error: BaseException) -> str:
    """Why a file cannot be read, without its path: the message names that itself."""
    return (error.strerror if isinstance(error, OSError) else "") or str(error)


def did_you_mean(
    name: str, names: Iterable[str], most: int = 1, cutoff: float = 0.6
) -> str:
    """``; did you mean X?``, or nothing: the end of an error about an unknown name.

    Case, spaces and punctuation do not count.  At most ``most`` names, none of them
    less similar than ``cutoff`` (0 to 1, see :func:`difflib.get_close_matches`).
    """
    keys = {spelling_key(item): item for item in names}
    close = difflib.get_close_matches(spelling_key(name), keys, most, cutoff)
    return f"; did you mean {' or '.join(keys[key] for key in close)}?" if close else ""


def spelling_key(name: str) -> str:
    """What is left of a name when case, spaces and punctuation do not count."""
    return "".join(char for char in name.casefold() if char.isalnum())


def one_line(error: BaseException) -> str:
    """The message of another library's error, as part of one line of ours."""
    return whole_line(error)[:200] or type(error).__name__


def whole_line(error: BaseException) -> str:
    """All of a message of ours, in one line."""
    return " ".join(str(error).split())


_FOREIGN: tuple[tuple[str, type[MachineError], str], ...] = (
    (
        r"(cuda|hip)\b.*out of memory|OutOfMemoryError|(CUBLAS|CUDNN)_STATUS_ALLOC",
        GpuMemoryError,
        "the GPU's memory is full: free it (nvidia-smi shows whose it is), or give "
        "--device cpu, or --device cuda:N for another; what was encoded is kept",
    ),
    (
        r"MemoryError|can't allocate memory|not enough memory|"
        r"Cannot allocate memory|bad_alloc",
        MachineError,
        "the main memory is full: close other programs, take a smaller --model, or "
        "run from a feature directory (--features); what was encoded is kept",
    ),
    (
        r"no kernel image|not compatible with the current PyTorch|CUDA driver|"
        r"NVIDIA driver|CUDA error: (initialization|invalid device|unknown|all CUDA)|"
        r"(CUBLAS|CUDNN)_STATUS",
        MachineError,
        "this PyTorch cannot use the GPU: give --device cpu, or install a PyTorch for "
        "its driver",
    ),
    (
        r"torchvision::|(module|named|name) 'torchvision",
        MachineError,
        "torchvision does not fit this torch: install both together, from the same "
        "index (pip install -U torch torchvision)",
    ),
    (
        r"No module named|pip install|undefined symbol|cannot open shared object",
        MachineError,
        "a library is missing or broken: install it again",
    ),
    (r"No space left", MachineError, "the disk is full: free some space"),
    (
        r"determine home directory",
        MachineError,
        "this user has no home directory: set HOME to a folder of yours",
    ),
    (
        r"GatedRepo|40[13] Client Error|HTTP Error 40[13]",
        MachineError,
        "the hub gives it to accounts with access only: ask for it on the model's "
        "page, and set HF_TOKEN",
    ),
    (
        r"RepositoryNotFound|404 Client Error|HTTP Error 404",
        MachineError,
        "the hub has no such repository or file: check the name",
    ),
    (
        r"429 Client Error|Too Many Requests",
        MachineError,
        "the hub takes no more requests now: wait some minutes, or set HF_TOKEN",
    ),
    (
        r"SSLError|CERTIFICATE_VERIFY",
        MachineError,
        "the hub's certificate is not trusted here: set REQUESTS_CA_BUNDLE to your "
        "network's",
    ),
)


def translate(error: BaseException) -> FedClipError | None:
    """What went wrong with the machine, a library or the hub, and the remedy.

    None for an error that says nothing of the kind: a file's, a user's or ours.
    """
    if isinstance(error, FedClipError):
        return error
    kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
    text = f"{kinds}: {error}"
    for pattern, kind, remedy in _FOREIGN:
        if re.search(pattern, text, re.IGNORECASE | re.DOTALL):
            return kind(f"{remedy} ({one_line(error)})")
    return None
