"""What travels: bytes of safetensors with a checksum, whatever carries them.

A request goes to all sites of a round alike; a site answers it, or says in one line why
it cannot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from ...errors import UpdateError
from ...federation.evaluation import SELECTION
from ...federation.rounds import Scores
from ...federation.unseen import ACCURACIES, ROWS
from ...wire.message import decode_update, encode_update, pack, size_limit, unpack
from ...wire.update import ClientUpdate, State
from .roster import MOST_TOLD, Card, read_card

INTRODUCE, TRAIN, VALIDATE = TASKS = ("fedclip_introduce", "train", "validate")
BYTES = "fedclip"  # the field of a Shareable
ROUND, SHARED, SITES = "round", "fedclip", "sites"
_ERROR, _CARD, _TEXT = "error", "card", "text"
_SPLITS = ("val", "test")
_MORE = (SELECTION, *ACCURACIES)  # where a run asks for it
_LONGEST = 400  # characters of a stranger's line


def request(state: State, number: int, shared: str, sites: list[str]) -> bytes:
    """What the server sends for round ``number``; ``shared`` is the configuration.

    ``sites`` are those of the job, by which a site that began anew finds its place.
    """
    return pack(state, {ROUND: number, SHARED: shared, SITES: sites})


def failure(line: str) -> bytes:
    """The answer of a site that cannot do what was asked."""
    return pack({}, {_ERROR: line})


def failure_in(data: bytes, where: str) -> str | None:
    """The line in such an answer; None for any other; UpdateError for what is torn."""
    _, fields = unpack(data, where)
    if fields.keys() != {_ERROR}:
        return None
    return shown(str(fields[_ERROR]))


def shown(text: str) -> str:
    """A stranger's text as one line that can be shown."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line)[:_LONGEST]


def card_bytes(card: Card) -> bytes:
    """A site's answer to who it is."""
    values = asdict(card)
    text = np.frombuffer(values.pop(_TEXT), np.uint8).copy()
    return pack({_TEXT: torch.from_numpy(text)}, {_CARD: values})


def card_in(data: bytes, where: str) -> Card:
    """The card in an answer; raises UpdateError."""
    state, fields = unpack(data, where)
    values, text = fields.get(_CARD), state.get(_TEXT)
    if not isinstance(values, dict) or text is None or text.dtype != torch.uint8:
        raise UpdateError(
            f"{where}: its answer is not that of this fedclip-plugin: install the same "
            "version everywhere"
        )
    return read_card({**values, _TEXT: text.numpy().tobytes()})


def update_in(data: bytes, client: str, like: State, codec: str) -> ClientUpdate:
    """The update of ``client`` in an answer to what is ``like`` that was sent.

    What cannot be read is left for the screening.  Raises nothing.
    """
    try:
        update = decode_update(data, client, like)
    except UpdateError:
        return ClientUpdate(client, {}, -1)
    return replace(update, client=client, codec=codec)


def scores_bytes(scores: Mapping[str, float | None]) -> bytes:
    """A site's accuracies."""
    more = {name: scores[name] for name in (*_MORE, ROWS) if name in scores}
    return pack({}, {**{split: scores[split] for split in _SPLITS}, **more})


def scores_in(answers: Mapping[str, bytes]) -> Scores:
    """Accuracies by client; None for what was not measured, or is not an accuracy."""
    return {client: _scores(data, client) for client, data in answers.items()}


def _scores(data: bytes, client: str) -> dict[str, float | None]:
    try:
        _, fields = unpack(data, client, size_limit({}))
    except UpdateError:
        fields = {}
    found = {split: _within(fields.get(split)) for split in _SPLITS}
    found |= {name: _within(fields[name]) for name in _MORE if name in fields}
    if ROWS in fields:
        found[ROWS] = _within(fields[ROWS], MOST_TOLD)
    return found


def _within(value: Any, most: float = 1) -> float | None:
    """A number from 0 to ``most``; None for anything else."""
    sound = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if sound and 0 <= value <= most else None


update_bytes = encode_update
