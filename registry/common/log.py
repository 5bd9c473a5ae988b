"""What a run tells in the log of its host, line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

from ...federation.rounds import RoundResult
from .roster import Card

Log = Callable[[int, str], None]  # level and line, as ``logging.Logger.log`` takes them


def greet(log: Log, cards: Iterable[Card], remedy: str) -> None:
    """Who takes part, with its rows and zero-shot accuracy.

    ``remedy`` is what to raise where clients of the data are missing.
    """
    cards = list(cards)
    for card in cards:
        line = f"fedclip: client {card.name}: {card.rows[0]} training rows"
        log(INFO, f"{line}, zero-shot {_percent(card.shot)}")
    whole = max(card.federation for card in cards)
    if whole > len(cards):
        line = f"fedclip: the data make {whole} clients, {len(cards)} take part"
        log(WARNING, f"{line}: set {remedy} to {whole}")


def tell(
    log: Log, result: RoundResult, cards: Iterable[Card], target: str | None
) -> None:
    """A round: accuracies beside zero-shot, and bytes."""
    shots = {card.name: card.shot for card in cards}
    for name, score in result.clients.items():
        log(
            INFO,
            f"fedclip: client {name}: val {_percent(score['val'])}, test "
            f"{_percent(score['test'])}, zero-shot {_percent(shots.get(name))}",
        )
    if result.target is not None:
        log(INFO, f"fedclip: held-out {target}: {_percent(result.target)}")
    val = _percent(result.mean_val if result.clients else None)
    log(
        INFO,
        f"fedclip: round {result.round}: mean val {val}, test "
        f"{_percent(result.mean_test)}; {result.bytes_up} bytes up, "
        f"{result.bytes_down} down",
    )


def conclude(log: Log, summary: Mapping[str, Any], directory: Path | None) -> None:
    """The best round, and where the files are if there are any."""
    log(
        INFO,
        f"fedclip: best round {summary['best_round']}: mean accuracy "
        f"{_percent(summary['result']['mean'])}, zero-shot "
        f"{_percent(summary['zero_shot']['mean'])}",
    )
    if directory is not None:
        log(INFO, f"fedclip: results: {directory}")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
