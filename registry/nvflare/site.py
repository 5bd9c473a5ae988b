"""What a site does with a request: it introduces itself, trains, measures.

Imports no NVFlare: this runs in a process of its own (``worker.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...algorithms import Client
from ...errors import ConfigError, FedClipError, UpdateError
from ...federation import downlink
from ...federation.evaluation import score_clients
from ...federation.rounds import train_clients
from ...runs.host_run import Setup, open_setup
from ...wire.message import pack, unpack
from ...wire.update import State, on_device
from ..common.options import check_alignment, find_client
from ..common.roster import make_card
from . import messages
from .options import SITE_FILE, client_settings

_NO_PLACE = (
    f"no partition-id: the server does not list this site; set it in local/{SITE_FILE}"
)


class Site:
    """One site: its data are opened at the first request.

    ``job`` are the options that the job has for all sites, ``own`` this site's.
    """

    def __init__(
        self, name: str, job: Mapping[str, Any], own: Mapping[str, Any]
    ) -> None:
        self.name = name
        self._job, self._own = job, own
        self._party: tuple[Setup, Client, bool] | None = None

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
            scores = score_clients(fed.algorithm, state, [client], fed.task)
            return messages.scores_bytes(scores[client.name]), kept
        if task != messages.TRAIN:
            raise ConfigError(f"task {task!r}: a site does {', '.join(messages.TASKS)}")
        (update,) = train_clients(fed, state, [client], number)
        after: State = {**client.kept, **update.kept}
        return messages.update_bytes(update), pack(after, {}) if after else b""

    def _open(self, shared: str, sites: list[Any]) -> tuple[Setup, Client, bool]:
        if self._party is None:
            place = dict(self._own)
            if "partition-id" not in place and self.name in sites:
                place["partition-id"] = sites.index(self.name)
            config, own = client_settings(shared, self._job, self._own)
            check_alignment(config, own)
            setup = open_setup(config)
            self._party = setup, find_client(setup, place, own, _NO_PLACE), own
        return self._party
