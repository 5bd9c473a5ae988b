"""What a site does with a request: it introduces itself, trains, measures.

``messages.py`` has the requests and the answers as bytes, whatever carries them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from ...algorithms import Client
from ...config.schema import RunConfig
from ...errors import ConfigError, FedClipError, UpdateError
from ...federation import downlink
from ...federation.evaluation import score_clients
from ...federation.rounds import train_clients
from ...federation.unseen import of_client
from ...runs.host_run import Setup, open_setup
from ...wire.message import pack, unpack
from ...wire.update import State, on_device
from . import messages
from .options import check_alignment, find_client
from .roster import make_card


def measure(setup: Setup, client: Client, state: State) -> dict[str, float | None]:
    """Accuracies of ``client``; with classes left out of training also on these."""
    fed = setup.fed
    scores = score_clients(fed.algorithm, state, [client], fed.task)[client.name]
    return scores | of_client(fed, setup.features, client, state)


class Site(ABC):
    """One site: its data are opened at the first request.

    ``own`` are the options of this site alone, ``no_place`` is what to say where
    nothing tells which client it is.
    """

    no_place: ClassVar[str]

    def __init__(self, name: str, own: Mapping[str, Any]) -> None:
        self.name = name
        self.own = own
        self._party: tuple[str, Setup, Client, bool] | None = None

    @abstractmethod
    def settings(self, shared: str) -> tuple[RunConfig, bool]:
        """The server's configuration with the site's own, and whose the data are.

        The latter is True where nobody else has them.
        """

    def answer(self, task: str, data: bytes, kept: bytes) -> tuple[bytes, bytes]:
        """The answer to a request, and what the client keeps for its next round.

        ``kept`` is what it kept before; b"" is nothing.
        """
        try:
            return self._answer(task, data, kept)
        except FedClipError as error:
            return messages.failure(str(error)), kept

    def _answer(self, task: str, data: bytes, kept: bytes) -> tuple[bytes, bytes]:
        sent, fields = unpack(data, "the server")
        try:
            shared, number = str(fields[messages.SHARED]), int(fields[messages.ROUND])
            sites = list(fields[messages.SITES])
        except (KeyError, TypeError, ValueError) as error:
            raise UpdateError(
                "what the server sent is not of this fedclip-plugin: install the same "
                "version everywhere"
            ) from error
        setup, client, own = self._open(shared, sites)
        if task == messages.INTRODUCE:
            return messages.card_bytes(make_card(setup, client, own)), kept
        fed = setup.fed
        before = unpack(kept, "kept")[0] if kept else {}
        device = fed.task.text.device
        client = replace(client, kept=on_device(before, device))
        state = downlink.received(fed, on_device(sent, device))
        if task == messages.VALIDATE:
            return messages.scores_bytes(measure(setup, client, state)), kept
        if task != messages.TRAIN:
            raise ConfigError(f"task {task!r}: a site does {', '.join(messages.TASKS)}")
        (update,) = train_clients(fed, state, [client], number)
        after: State = {**client.kept, **update.kept}
        return messages.update_bytes(update), pack(after, {}) if after else b""

    def _open(self, shared: str, sites: list[Any]) -> tuple[Setup, Client, bool]:
        """Opened once; anew for another configuration, such as more rounds."""
        if self._party is None or self._party[0] != shared:
            place = dict(self.own)
            if "partition-id" not in place and self.name in sites:
                place["partition-id"] = sites.index(self.name)
            config, own = self.settings(shared)
            check_alignment(config, own)
            setup = open_setup(config)
            if own and not {"partition-id", "client-name"} & self.own.keys():
                _check_alone(setup)
            client = find_client(setup, place, own, self.no_place)
            self._party = shared, setup, client, own
        return self._party[1:]


def _check_alone(setup: Setup) -> None:
    """Refuse a site whose own data are several clients, without a word which it is."""
    names = [client.name for client in setup.fed.clients]
    if len(names) > 1:
        raise ConfigError(
            f"its own data make {len(names)} clients ({', '.join(names[:6])}): set "
            "client-name to the one that it is, or name the data of one"
        )
