"""A run's checkpoint: one atomic file a round, from which it goes on bit for bit.

Nothing random is stored: every random draw is a function of seed, round and client.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import RunError
from ..storage.files import remove_leftovers
from ..storage.shapes import count, fields, number, several
from ..storage.tensors import DamagedFileError, read_tensors, write_tensors
from ..wire.codec import misfit
from ..wire.update import State

DURABLE_SECONDS = 5.0  # power loss may cost this much; kill -9 costs nothing


@dataclass(frozen=True)
class Progress:
    """Where a run stands after ``round``; totals over all rounds so far.

    ``releases`` is what privacy is accounted for, see ``privacy.py``.
    """

    round: int = 0
    best_round: int = 0
    best_score: float = -1.0
    bytes_up: int = 0
    bytes_down: int = 0
    quarantined: int = 0
    train_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    releases: tuple[tuple[int, int, int], ...] = ()
    epsilon: float | None = None


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
        self.path = directory / "checkpoint" / "last.safetensors"
        self.identity = identity
        self._synced = 0.0

    def save(self, progress: Progress, state: State, best: State) -> None:
        """Write both states in one step; once where the last round is the best."""
        tensors = {f"state/{k}": v for k, v in state.items()}
        if progress.best_round != progress.round:
            tensors |= {
                # safetensors refuses a tensor under two names
                f"best/{k}": v.clone() if v is state.get(k) else v
                for k, v in best.items()
            }
        durable = time.monotonic() - self._synced > DURABLE_SECONDS
        meta = {"progress": json.dumps(asdict(progress)), "identity": self.identity}
        write_tensors(self.path, tensors, meta, durable=durable)
        if durable:
            self._synced = time.monotonic()

    def load(self, like: State) -> tuple[Progress, State, State] | None:
        """Progress, current and best state; None where there is no checkpoint.

        ``like`` is what a run begins with: both states have its keys, shapes and dtypes
        (CPU), beside what clients keep.  Raises RunError for a damaged file, one of
        another run, or one that was made to look like this run's.
        """
        for directory in self.path.parents[:2]:
            remove_leftovers(directory)
        try:
            tensors, meta = read_tensors(self.path)
            progress = _progress(meta)
        except FileNotFoundError:
            return None
        except (
            *(DamagedFileError, KeyError, TypeError, ValueError, RecursionError),
        ) as error:
            raise self._damaged(error) from error
        if meta.get("identity") != self.identity:
            raise RunError(
                f"checkpoint {self.path} belongs to a run with another configuration "
                "or other features; use its own options, or another --out"
            )
        state = _part(tensors, "state/")
        best = _part(tensors, "best/") or dict(state)
        if wrong := _misfit(state, like) or _misfit(best, like):
            raise self._damaged(wrong)
        return progress, state, best

    def _damaged(self, why: object) -> RunError:
        return RunError(
            f"checkpoint {self.path} is damaged ({why}); delete it to start again"
        )


def _progress(meta: Mapping[str, str]) -> Progress:
    told = json.loads(meta["progress"])
    if wrong := _PROGRESS(told):
        raise ValueError(wrong)
    told["releases"] = tuple(map(tuple, told.get("releases", ())))
    return Progress(**told)


def _part(tensors: State, prefix: str) -> State:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def _misfit(state: State, like: State) -> str | None:
    """How ``state`` differs from ``like`` in keys, shapes or dtypes, if it does.

    What a client keeps, ``<client>/<key>``, is checked where ``like`` has such a key.
    """
    if missing := like.keys() - state.keys():
        return f"it has no {min(missing)}"
    for key, value in state.items():
        client, _, name = key.rpartition("/")
        if name not in like and not client:
            return f"{key} is no part of this run"
        wanted = like.get(name, value)
        if odd := misfit(key, value, wanted.dtype, wanted.shape):
            return odd
    return None
