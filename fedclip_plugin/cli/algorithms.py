"""What ``fedclip algorithms`` tells of each, from its class and its first state."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace

import torch

from ..algorithms import ALGORITHMS, Algorithm, Task, algorithm_class
from ..config.schema import TrainConfig
from ..errors import ConfigError, whole_line
from ..report.wording import human_bytes
from ..wire.codecs import CODECS
from ..wire.compression import PLAIN, encode
from ..wire.message import state_bytes
from ..wire.update import State

DIM = 512  # of the features where nothing else is said
Facts = dict[str, str]


def list_algorithms(task: Task) -> Iterator[tuple[str, Facts]]:
    """Name and facts of every algorithm, those of other packages included.

    What travels is told for the classes and the width of the ``task``, and where it has
    a CLIP, for those that need one.
    """
    for name in ALGORITHMS.names():
        try:
            yield name, facts(algorithm_class(name), task)
        except Exception as error:  # code of others: anything may come
            yield name, {"broken": whole_line(error)}


def task_of(
    classes: int, dim: int | None, model: str | None, config_dir: str | None
) -> Task:
    """Zeros in the shapes of a run: of ``classes``, and of a width or a CLIP.

    Raises ConfigError for sizes that there are not, or that contradict each other.
    """
    for flag, value in (("--classes", classes), ("--dim", dim)):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} {value}: expected at least 1")
    if model is None:
        if config_dir is not None:
            raise ConfigError("--model-config needs --model, the name of a CLIP in it")
        return Task(torch.zeros(classes, dim or DIM), 100.0)
    from ..clip.outline import outline  # needs open_clip

    clip, width = outline(model, classes, config_dir)
    if dim not in (None, width):
        raise ConfigError(
            f"--dim {dim}: the features of --model {model} have {width}; leave it out"
        )
    return Task(torch.zeros(classes, width), 100.0, clip=clip)


def facts(cls: type[Algorithm], task: Task) -> Facts:
    """Label -> text; without a source, where the class names none."""
    rounds = cls.defaults.get("rounds", TrainConfig.rounds)
    found = {
        "trained": cls.trains or (inspect.getdoc(cls) or "?").partition("\n")[0],
        "travels": _travels(cls(), task),
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


def _travels(algorithm: Algorithm, task: Task) -> str:
    if not algorithm.communicates:
        return "nothing"
    if algorithm.needs_clip and task.clip is None:
        return "what is trained; how much depends on the CLIP: --model NAME"
    task = replace(task, params=algorithm.Params())
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
