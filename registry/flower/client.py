"""The ClientApp: a client's rows and its local training, for any Flower strategy."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import (
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from ...algorithms import Client, algorithm_class
from ...errors import ConfigError, FedClipError
from ...federation import downlink
from ...federation.rounds import train_clients
from ...runs.host_run import Setup, open_setup
from ..common.options import check_alignment, find_client, has_own_data
from ..common.roster import make_card
from ..common.site import measure
from . import records
from .options import NO_PLACE, client_settings

_log = logging.getLogger("flwr")
Work = Callable[["Party", Message], RecordDict]


@dataclass(frozen=True)
class Party:
    """Who answers a message: the data's setup, and this node's client in it.

    ``kept`` is what Flower keeps for the node between the messages of a run.
    """

    setup: Setup
    client: Client
    own_data: bool
    round: int
    kept: RecordDict


def make_client_app(mods: Sequence[Any] = ()) -> ClientApp:
    """The ClientApp, with Flower's mods around each of its functions."""
    app = ClientApp(mods=list(mods))
    for register, work in (
        (app.query, introduce),
        (app.train, train),
        (app.evaluate, evaluate),
    ):
        register()(functools.partial(_answer, work))
    return app


def introduce(party: Party, message: Message) -> RecordDict:
    """What the client is: classes, model, rows; no data."""
    card = make_card(party.setup, party.client, party.own_data)
    return RecordDict({records.CONFIG: ConfigRecord(card.as_dict())})


def train(party: Party, message: Message) -> RecordDict:
    """Local training from the adapter in the message; what is sent back, and its loss.

    What the client keeps for its next round never leaves the node.
    """
    fed = party.setup.fed
    state = downlink.received(fed, records.to_state(message.content, fed.first))
    client = _with_kept(party)
    (update,) = train_clients(fed, state, [client], party.round)
    if kept := {**client.kept, **update.kept}:
        party.kept[records.KEPT] = records.to_arrays(kept)
    metrics = MetricRecord({records.ROWS: update.num_examples, **update.metrics})
    return RecordDict(
        {records.ARRAYS: records.to_arrays(update.state), records.METRICS: metrics}
    )


def evaluate(party: Party, message: Message) -> RecordDict:
    """Accuracy on the client's rows of the adapter in the message and what it keeps."""
    fed, client = party.setup.fed, _with_kept(party)
    state = downlink.received(fed, records.to_state(message.content, fed.first))
    scores = measure(party.setup, client, state)
    metrics = MetricRecord({records.ROWS: len(client.test)})
    for split, key in records.MEASURES.items():
        if scores.get(split) is not None:
            metrics[key] = scores[split]
    return RecordDict({records.METRICS: metrics})


def _with_kept(party: Party) -> Client:
    kept = party.kept.array_records.get(records.KEPT)
    return replace(party.client, kept=records.to_state(kept, party.setup.fed.first))


def _answer(work: Work, message: Message, context: Context) -> Message:
    """A reply; the user's mistakes go back as one line, not as a traceback."""
    try:
        return Message(work(_open(message, context), message), reply_to=message)
    except FedClipError as error:
        place = context.node_config.get("partition-id", "none")
        _log.error("fedclip: %s", error)
        return Message(
            Error(
                ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"partition-id {place}: {error}"
            ),
            reply_to=message,
        )


def _open(message: Message, context: Context) -> Party:
    sent: dict[str, Any] = {}
    for record in message.content.config_records.values():
        sent.update(record)
    node = context.node_config
    config = client_settings(
        str(sent.get(records.SHARED, "")), context.run_config, node
    )
    own = has_own_data(node)
    check_alignment(config, own)
    algorithm = algorithm_class(config.algorithm)
    if not (algorithm.averages or sent.get(records.SHARED)):
        raise ConfigError(
            f"--alg {config.algorithm} needs its own server: name "
            "fedclip_plugin.registry.flower_host:server_app, not another strategy"
        )
    setup = open_setup(config)
    number = int(sent.get(records.ROUND, 1))
    return Party(
        setup, find_client(setup, node, own, NO_PLACE), own, number, context.state
    )


client_app = make_client_app()
