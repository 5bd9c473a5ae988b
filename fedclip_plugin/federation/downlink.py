"""The way down: what clients get of the server's state, in fewer bytes where asked.

The difference from the first state travels, which every client makes by itself from the
seed.  So nobody has to remember a round, and who was away misses nothing.  The server
keeps its own state whole: what rounding loses now goes down in a later round (error
feedback at the server: Tang et al. 2019, DoubleSqueeze, arXiv 1905.05957).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UpdateError
from ..wire import compression
from ..wire.codecs import CODECS
from ..wire.compression import PLAIN
from ..wire.update import State
from .build import Federation


@dataclass(frozen=True)
class Broadcast:
    """What goes down to every client of a round, and the state that they make of it.

    ``answer`` is what their updates are like, and are measured from.
    """

    payload: State
    seen: State
    answer: State


def broadcast(fed: Federation, state: State) -> Broadcast:
    """The server's ``state`` on its way down; the same for all clients."""
    sent = seen = payload(fed, state)
    codec = _codec(fed)
    if codec != PLAIN:
        seen = compression.decode(CODECS[codec], sent, _first_of(fed, codec, sent))
    return Broadcast(sent, seen, fed.algorithm.answer_like(seen, fed.task))


def payload(fed: Federation, state: State) -> State:
    """What travels of the server's ``state``."""
    shared = fed.algorithm.update_like(state)
    codec = _codec(fed)
    if codec == PLAIN:
        return shared
    first = {key: fed.first[key] for key in shared}
    return compression.encode(CODECS[codec], shared, first, {})[0]


def received(fed: Federation, sent: State) -> State:
    """The state that a client makes of a :func:`payload`, on the payload's device.

    Raises UpdateError for one that cannot be read.
    """
    codec = _codec(fed)
    if codec == PLAIN:
        return sent
    first = _first_of(fed, codec, sent)
    if wrong := compression.fault(codec, sent, first):
        raise UpdateError(f"what the server sent cannot be read: {wrong}")
    return compression.decode(CODECS[codec], sent, first)


def _first_of(fed: Federation, codec: str, sent: State) -> State:
    """The first state's tensors that a payload stands for: all, or some of them."""
    return {
        key: value
        for key, value in fed.first.items()
        if not sent.keys().isdisjoint(compression.payload_keys(codec, {key: value}))
    } or fed.first


def with_unsent(fed: Federation, after: State, state: State, sent: Broadcast) -> State:
    """``after``, made of what was ``sent``, with what that left out of ``state``."""
    if _codec(fed) == PLAIN:
        return after
    return {
        key: value + (state[key] - sent.seen[key])
        if key in sent.seen and value.is_floating_point()
        else value
        for key, value in after.items()
    }


def _codec(fed: Federation) -> str:
    return fed.task.wire.compress_down if fed.algorithm.communicates else PLAIN
