"""What a run in Flower tells in Flower's log."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...config.schema import RunConfig
from ...federation.rounds import RoundResult
from .options import Sampling
from .roster import Card

_log = logging.getLogger("flwr")


def describe(config: RunConfig, sampling: Sampling) -> None:
    """The configuration, in the form of Flower's own strategies."""
    c, server, s = config.train, config.server, sampling
    _log.info(
        "\t├── FedCLIP: lr %g, %d local epochs, batch size %d, %s weighting, seed %d",
        c.lr, c.local_epochs, c.batch_size, server.weighting, config.seeds[0],
    )  # fmt: skip
    _log.info(
        "\t└── Sampling: train %g of at least %d, evaluate %g; %d nodes needed",
        server.participation, s.min_train_nodes, s.fraction_evaluate,
        s.min_available_nodes,
    )  # fmt: skip


def greet(cards: Iterable[Card]) -> None:
    """Who takes part, with its rows and zero-shot accuracy."""
    cards = list(cards)
    for card in cards:
        _log.info(
            "fedclip: client %s: %d training rows, zero-shot %s",
            card.name, card.rows[0], _percent(card.shot),
        )  # fmt: skip
    whole = max(card.federation for card in cards)
    if whole > len(cards):
        _log.warning(
            "fedclip: the data make %d clients, %d take part: set the number of "
            "SuperNodes to %d",
            whole, len(cards), whole,
        )  # fmt: skip


def tell(result: RoundResult, cards: Iterable[Card], target: str | None) -> None:
    """A round: accuracies beside zero-shot, and bytes."""
    shots = {card.name: card.shot for card in cards}
    for name, score in result.clients.items():
        _log.info(
            "fedclip: client %s: val %s, test %s, zero-shot %s",
            name, _percent(score["val"]), _percent(score["test"]),
            _percent(shots.get(name)),
        )  # fmt: skip
    if result.target is not None:
        _log.info("fedclip: held-out %s: %s", target, _percent(result.target))
    _log.info(
        "fedclip: round %d: mean val %s, test %s; %d bytes up, %d down",
        result.round, _percent(result.mean_val if result.clients else None),
        _percent(result.mean_test), result.bytes_up, result.bytes_down,
    )  # fmt: skip


def conclude(summary: Mapping[str, Any], directory: Path | None) -> None:
    """The best round, and where the files are if there are any."""
    _log.info(
        "fedclip: best round %d: mean accuracy %s, zero-shot %s",
        summary["best_round"], _percent(summary["result"]["mean"]),
        _percent(summary["zero_shot"]["mean"]),
    )  # fmt: skip
    if directory is not None:
        _log.info("fedclip: results: %s", directory)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
