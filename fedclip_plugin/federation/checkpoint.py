"""A run's checkpoint: one atomic file a round, from which it goes on bit for bit.

Nothing random is stored: every random draw is a function of seed, round and client.

Its tensors are ``state/<key>``, ``memory/<slot>/<key>`` of the server,
``kept/<client>/<key>`` and, where the best round is not the last, ``best/<key>`` and
``best-kept/<client>/<key>``.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from ..errors import RunError
from ..ops.kernels import computes_with
from ..server import adjustment, optimizer
from ..storage.files import remove_leftovers
from ..storage.shapes import count, fields, number, several
from ..storage.tensors import DamagedFileError, read_tensors, write_tensors
from ..wire.codec import misfit
from ..wire.compression import RESIDUAL
from ..wire.update import State, flatten, on_device, unflatten
from .build import Federation
from .engine import Progress, RunState, final

_log = logging.getLogger("fedclip")

DURABLE_SECONDS = 5.0  # power loss may cost this much; kill -9 costs nothing
_FORMAT = "4"

_PROGRESS = fields(
    dict.fromkeys(("round", "best_round", "bytes_up", "bytes_down"), count),
    {
        **dict.fromkeys(("best_score", "train_seconds", "evaluate_seconds"), number),
        "quarantined": count,
        "releases": several(several(count)),
    },
)


class Checkpoint:
    """Reads and writes ``<directory>/checkpoint/last.safetensors``.

    ``identity`` tells what is being run (configuration and features); a checkpoint of
    another run is refused.
    """

    def __init__(self, directory: Path, identity: str) -> None:
        self.path = _file(directory)
        self.identity = identity
        self._synced = 0.0

    def save(self, now: RunState, device: torch.device | None = None) -> None:
        """Write a run in one step; the best state once where it is the last.

        With ``device``, also what computed it.
        """
        tensors = _named("state/", now.state) | _named("kept/", flatten(now.kept))
        tensors |= _named("memory/", now.memory)
        progress = now.progress
        if progress.best_round != progress.round:
            best = _named("best/", now.best)
            best |= _named("best-kept/", flatten(now.best_kept))
            there = {id(value) for value in tensors.values()}
            # safetensors refuses a tensor under two names
            tensors |= {k: v.clone() if id(v) in there else v for k, v in best.items()}
        durable = time.monotonic() - self._synced > DURABLE_SECONDS
        meta = {"progress": json.dumps(asdict(progress)), "identity": self.identity}
        if device is not None:
            meta["computed"] = _computes_with(device)
        write_tensors(self.path, tensors, meta | {"format": _FORMAT}, durable=durable)
        if durable:
            self._synced = time.monotonic()

    def load(self, fed: Federation) -> RunState | None:
        """The run to go on with, where ``fed`` computes; None without a checkpoint.

        Its states have the keys, shapes and dtypes of ``fed``'s first.  Raises RunError
        for a damaged file, one of another run or of an earlier version, or one that was
        made to look like this run's.  Warns where something else computed it, as the
        bits may then differ from those of an undisturbed run.
        """
        if (found := self._accept()) is None:
            return None
        tensors, meta, progress = found
        here = _computes_with(fed.task.text.device)
        if (former := meta.get("computed", here)) != here:
            _log.warning(
                "resumed on %s; its rounds so far were computed on %s: the result may "
                "differ in the last bits",
                *(here, former),
            )
        for directory in self.path.parents[:2]:
            remove_leftovers(directory)
        tensors = on_device(tensors, fed.task.text.device)
        state, kept = _part(tensors, "state/"), _part(tensors, "kept/")
        best = _part(tensors, "best/") or state
        best_kept, memory = _part(tensors, "best-kept/"), _part(tensors, "memory/")
        model = fed.algorithm.model_of
        for part, first in ((state, fed.first), (model(best), model(fed.first))):
            if wrong := _state_misfit(part, first):
                raise _damaged(self.path, wrong)
        for part in (kept, best_kept):
            if wrong := _kept_misfit(part, fed.first):
                raise _damaged(self.path, wrong)
        if wrong := optimizer.misfit(memory, fed.first) or adjustment.misfit(memory):
            raise _damaged(self.path, wrong)
        clients, own = unflatten(kept), unflatten(best_kept)
        now = RunState(
            progress, state, best, kept=clients, best_kept=own, memory=memory
        )
        if progress.best_round == progress.round:  # it is in the file once
            best, own = final(fed, now)
            now = replace(now, best=best, best_kept=own)
        return now

    def accept(self) -> tuple[State, Progress] | None:
        """What the file holds, if it is this run's; changes nothing.

        None without a file.  Raises RunError as :meth:`load` does.
        """
        found = self._accept()
        return found and (found[0], found[2])

    def _accept(self) -> tuple[State, dict[str, str], Progress] | None:
        if (found := _read(self.path)) is None:
            return None
        if found[1].get("identity") != self.identity:
            raise RunError(
                f"checkpoint {self.path} belongs to a run with another configuration "
                "or other features; use its own options, or another --out"
            )
        return found


def saved_progress(directory: Path) -> Progress | None:
    """How far the run in ``directory`` is; None without a checkpoint.

    Raises RunError for a damaged file, or one of an earlier version.
    """
    found = _read(_file(directory))
    return found[2] if found else None


def _file(directory: Path) -> Path:
    return directory / "checkpoint" / "last.safetensors"


def _read(path: Path) -> tuple[State, dict[str, str], Progress] | None:
    try:
        tensors, meta = read_tensors(path)
        progress = _progress(meta)
    except FileNotFoundError:
        return None
    except (
        *(DamagedFileError, KeyError, TypeError, ValueError, RecursionError),
    ) as error:
        raise _damaged(path, error) from error
    if meta.get("format") != _FORMAT:
        raise RunError(
            f"checkpoint {path} was written by another version of "
            "fedclip-plugin; delete it to start again, or finish the run with that"
        )
    return tensors, meta, progress


def _computes_with(device: torch.device) -> str:
    return f"{computes_with(device)}, PyTorch {torch.__version__}"


def _damaged(path: Path, why: object) -> RunError:
    return RunError(f"checkpoint {path} is damaged ({why}); delete it to start again")


def _progress(meta: Mapping[str, str]) -> Progress:
    values = json.loads(meta["progress"])
    if wrong := _PROGRESS(values):
        raise ValueError(wrong)
    values["releases"] = tuple(map(tuple, values.get("releases", ())))
    return Progress(**values)


def _named(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def _part(tensors: State, prefix: str) -> State:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def _state_misfit(state: State, first: State) -> str | None:
    """How ``state`` differs from ``first`` in keys, shapes or dtypes, if it does."""
    if missing := first.keys() - state.keys():
        return f"it has no {min(missing)}"
    if extra := state.keys() - first.keys():
        return f"{min(extra)} is not part of this run"
    wrong = (misfit(k, state[k], v.dtype, v.shape) for k, v in first.items())
    return next(filter(None, wrong), None)


def _kept_misfit(kept: State, first: State) -> str | None:
    """How what clients keep of the state's own keys differs from them, if it does."""
    for name, value in kept.items():
        client, _, key = name.rpartition("/")
        if not client:
            return f"{name} belongs to no client"
        like = first.get(key.removeprefix(RESIDUAL), value)
        if odd := misfit(name, value, like.dtype, like.shape):
            return odd
    return None
