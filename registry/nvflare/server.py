"""The server of a job: ``registry/common/server.py``'s rounds, by the job's options.

Imports no NVFlare: ``controller.py`` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common import server as common
from ..common.log import Log
from .options import server_settings


class Server(common.Server):
    """``options`` are the job's, ``directory`` is its own at the server."""

    def __init__(
        self,
        options: Mapping[str, Any],
        directory: Path,
        sites: common.Sites,
        log: Log,
    ) -> None:
        super().__init__(*server_settings(options, directory), sites, log)
