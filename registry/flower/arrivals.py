"""Replies of a round that memory does not hold: put on the disk as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Message

from ...wire.spool import AT_ONCE

Take = Callable[[Message], None]
_PAUSE = 1.0  # seconds between two looks for replies


class Arrivals:
    """A grid that hands over each reply as it comes, where ``taker`` gives a taker.

    Flower's own collects all replies of a round first.  All else is the grid's.
    """

    def __init__(self, grid: Any, taker: Callable[[], Take | None]) -> None:
        self._grid, self._taker = grid, taker

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """The replies; what was taken out of them is with the taker."""
        messages = list(messages)
        take = self._taker()
        if take is None:
            replies: Iterable[Message] = self._grid.send_and_receive(
                messages, timeout=timeout
            )
            return replies
        waiting = dict.fromkeys(i for i in self._grid.push_messages(messages) if i)
        end = None if timeout is None else time.monotonic() + timeout
        found: list[Message] = []
        while waiting and (end is None or time.monotonic() < end):
            before, ids = len(found), list(waiting)
            for start in range(0, len(ids), AT_ONCE):
                for reply in self._grid.pull_messages(ids[start : start + AT_ONCE]):
                    waiting.pop(reply.metadata.reply_to_message_id, None)
                    take(reply)
                    found.append(reply)
            if len(found) == before:
                time.sleep(_PAUSE)
        return found
