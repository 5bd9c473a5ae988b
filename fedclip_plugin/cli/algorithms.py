"""What ``fedclip algorithms`` tells of each, from its class and its first state."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch

from ..algorithms import ALGORITHMS, Algorithm, Task, algorithm_class
from ..config.schema import TrainConfig
from ..errors import whole_line
from ..report.wording import human_bytes
from ..wire.codecs import CODECS
from ..wire.compression import PLAIN, encode
from ..wire.message import state_bytes
from ..wire.update import State

Facts = dict[str, str]


def list_algorithms(classes: int, dim: int) -> Iterator[tuple[str, Facts]]:
    """Name and facts of every algorithm, those of other packages included.

    What travels is told for ``classes`` classes and features of ``dim`` numbers.
    """
    for name in ALGORITHMS.names():
        try:
            yield name, facts(algorithm_class(name), classes, dim)
        except Exception as error:  # code of others: anything may come
            yield name, {"broken": whole_line(error)}


def facts(cls: type[Algorithm], classes: int, dim: int) -> Facts:
    """Label -> text; without a source, where the class names none."""
    rounds = cls.defaults.get("rounds", TrainConfig.rounds)
    found = {
        "trained": cls.trains or (inspect.getdoc(cls) or "?").partition("\n")[0],
        "travels": _travels(cls(), classes, dim),
        "rounds": f"{rounds} by default",
        "needs": cls.needs,
        "transductive": "yes: sees unlabelled held-out images, with --transductive"
        if cls.transductive
        else "no",
        "personal": "yes: each client keeps a part that predicts for it alone"
        if cls.personal
        else "",
        "source": cls.source,
    }
    return {label: text for label, text in found.items() if text}


def _travels(algorithm: Algorithm, classes: int, dim: int) -> str:
    if not algorithm.communicates:
        return "nothing"
    if algorithm.needs_clip:
        return "what is trained; how much depends on the CLIP"
    task = Task(torch.zeros(classes, dim), 100.0, params=algorithm.Params())
    sent = algorithm.update_like(algorithm.init(task))
    answer = algorithm.answer_like(sent, task)
    codec = algorithm.defaults.get("compress", PLAIN)
    if answer is sent and codec == PLAIN:
        return f"{_amount(sent)}, each way between server and client in a round"
    up = _amount(answer, codec)
    return f"{_amount(sent)} down to each client in a round, {up} up"


def _amount(state: State, codec: str = PLAIN) -> str:
    """Of a state that travels by ``codec``."""
    count = sum(value.numel() for value in state.values())
    travels, how = state, ""
    if codec != PLAIN:
        zeros = {key: torch.zeros_like(value) for key, value in state.items()}
        travels, _ = encode(CODECS[codec], zeros, zeros, {})
        how = f" in {codec}"
    return f"{count:,} numbers{how}, {human_bytes(state_bytes(travels))}"
