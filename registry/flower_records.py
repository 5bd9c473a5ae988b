"""What travels: states, updates and accuracies as Flower's records, and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from ..errors import UpdateError
from ..federation import Scores
from ..update import ClientUpdate, State

ARRAYS, METRICS, CONFIG = "arrays", "metrics", "config"  # as Flower's strategies say
ROUND = "server-round"
SHARED = "fedclip"  # the run's configuration, as JSON
ROWS = "num-examples"
SPLITS = {"val": "val-accuracy", "test": "test-accuracy"}


def to_arrays(state: State) -> ArrayRecord:
    """A state as the one ArrayRecord of a message."""
    return ArrayRecord({k: Array(v.detach().cpu().numpy()) for k, v in state.items()})


def to_state(content: RecordDict | ArrayRecord, like: State | None = None) -> State:
    """The state in a message, on the devices of ``like``; {} where there is none.

    Raises UpdateError for bytes that are no arrays.
    """
    if isinstance(content, RecordDict):
        content = next(iter(content.array_records.values()), ArrayRecord())
    state: State = {}
    for key, array in content.items():
        try:
            value = torch.from_numpy(np.array(array.numpy()))
        except (ValueError, TypeError, OSError, EOFError) as error:
            raise UpdateError(f"{key} is no array ({error})") from error
        state[key] = value.to(like[key].device) if like and key in like else value
    return state


def to_update(client: str, content: RecordDict, like: State) -> ClientUpdate:
    """The update in a reply; what is missing or torn is left for the screening."""
    values = {
        key: value
        for record in content.metric_records.values()
        for key, value in record.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
    try:
        state = to_state(content, like)
    except UpdateError:
        state = {}
    return ClientUpdate(client, state, int(values.pop(ROWS, -1)), values)


def to_scores(content: RecordDict) -> dict[str, float | None]:
    """Validation and test accuracy in a reply; None for an empty split."""
    found: dict[str, float | None] = {}
    for split, key in SPLITS.items():
        values = [r[key] for r in content.metric_records.values() if key in r]
        value = values[0] if values else None
        ok = isinstance(value, (int, float)) and 0 <= value <= 1
        found[split] = float(value) if ok else None  # type: ignore[arg-type]
    return found


def client_metrics(scores: Scores) -> dict[str, float | None]:
    """Every client's accuracies, as ``<name>/val-accuracy`` and ``/test-accuracy``."""
    return {
        f"{name}/{SPLITS[split]}": value
        for name, both in scores.items()
        for split, value in both.items()
    }


def to_metrics(values: Mapping[str, float | None]) -> MetricRecord:
    """A MetricRecord of what there is."""
    return MetricRecord({k: v for k, v in values.items() if v is not None})


def count_bytes(messages: Iterable[Message]) -> int:
    """Bytes of the records in messages: arrays, metrics and configuration."""
    return sum(
        record.count_bytes()
        for message in messages
        if message.has_content()
        for record in message.content.values()
    )
