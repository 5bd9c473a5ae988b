"""What travels: states, updates and accuracies as Flower's records, and back."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from ...errors import UpdateError
from ...federation.evaluation import SELECTION
from ...federation.rounds import Scores
from ...federation.unseen import ROWS as UNSEEN_ROWS
from ...storage.tensors import MAX_DIMS
from ...wire.update import ClientUpdate, State
from ..common.roster import MOST_TOLD

ARRAYS, METRICS, CONFIG = "arrays", "metrics", "config"  # as Flower's strategies say
ROUND = "server-round"
SHARED = "fedclip"  # the run's configuration, as JSON
KEPT = "fedclip-kept"  # what a client keeps for itself between rounds
ROWS = "num-examples"
_NPY = "numpy.ndarray"  # Flower's name of NumPy's format
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
SPLITS = {"val": "val-accuracy", "test": "test-accuracy"}
MEASURES = {
    **SPLITS,
    SELECTION: "val-selection",
    "local": "local-accuracy",
    "novel": "novel-accuracy",
    "zero_local": "zero-shot-local-accuracy",
    "zero_novel": "zero-shot-novel-accuracy",
    UNSEEN_ROWS: "novel-examples",
}


def to_arrays(state: State) -> ArrayRecord:
    """A state as the one ArrayRecord of a message."""
    return ArrayRecord({k: Array(v.detach().cpu().numpy()) for k, v in state.items()})


def to_state(
    content: RecordDict | ArrayRecord | None, like: State | None = None
) -> State:
    """The state in a message, on the device of ``like``; {} where there is none.

    Raises UpdateError for bytes that are not arrays.
    """
    if isinstance(content, RecordDict):
        content = next(iter(content.array_records.values()), None)
    state: State = {}
    device = next((value.device for value in (like or {}).values()), None)
    for key, array in (content or {}).items():
        value = torch.from_numpy(read_array(key, array))
        state[key] = value if device is None else value.to(device)
    return state


def read_array(key: str, array: Array) -> np.ndarray:
    """The numbers in ``array``, copied; raises UpdateError for anything else.

    Flower's own reader sets memory aside for what the bytes declare, and fails in
    other ways on a header that is made to.
    """
    stream = io.BytesIO(array.data)
    try:
        reader = _HEADERS[np.lib.format.read_magic(stream)]
        shape, by_columns, dtype = reader(stream)
        start = stream.tell()
        if dtype.kind not in "biuf" or len(shape) > MAX_DIMS or array.stype != _NPY:
            raise TypeError
        if math.prod(shape) * dtype.itemsize != len(array.data) - start:
            raise ValueError
        view: np.ndarray = np.ndarray(
            shape, dtype, array.data, start, order="F" if by_columns else "C"
        )
        return np.array(view, dtype.newbyteorder("="), order="C")
    except Exception as error:  # a header is Python's own syntax: it can do anything
        raise UpdateError(f"{key} is not an array ({type(error).__name__})") from error


def to_update(
    client: str, content: RecordDict, like: State, codec: str = "none"
) -> ClientUpdate:
    """The update in a reply; what is missing or torn is left for the screening.

    ``like`` was sent; ``codec`` is how the clients of the run encode their answers.
    """
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
    count = int(values.pop(ROWS, -1))
    return ClientUpdate(client, state, count, values, codec=codec)


def to_scores(content: RecordDict) -> dict[str, float | None]:
    """Validation and test accuracy in a reply; None for an empty split.

    And what the best round is chosen by, where that is something else, and what base to
    novel is made of.
    """
    scores: dict[str, float | None] = {}
    for split, key in MEASURES.items():
        values = [r[key] for r in content.metric_records.values() if key in r]
        value = values[0] if values else None
        most = MOST_TOLD if split == UNSEEN_ROWS else 1
        ok = isinstance(value, (int, float)) and 0 <= value <= most
        if split in SPLITS or ok:
            scores[split] = float(value) if ok else None  # type: ignore[arg-type]
    return scores


def client_metrics(scores: Scores) -> dict[str, float | None]:
    """Every client's accuracies, as ``<name>/val-accuracy`` and ``/test-accuracy``."""
    return {
        f"{name}/{MEASURES[split]}": value
        for name, both in scores.items()
        for split, value in both.items()
    }


def to_metrics(values: Mapping[str, float | None]) -> MetricRecord:
    """A MetricRecord of what there is."""
    return MetricRecord({k: v for k, v in values.items() if v is not None})


def count_bytes(messages: Iterable[Message]) -> int:
    """Bytes of the records in messages: arrays, metrics and configuration."""
    return sum(
        _count_bytes(record)
        for message in messages
        if message.has_content()
        for record in message.content.values()
    )


def _count_bytes(record: Any) -> int:
    """Flower's count, which fails for empty texts and lists."""
    try:
        return int(record.count_bytes())
    except (ValueError, IndexError):
        return sum(len(key) + _size(value) for key, value in record.items())


def _size(value: Any) -> int:
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value) if isinstance(value, (str, bytes)) else 8
