"""What an NVFlare site does with a request, by the job's options and its own.

Imports no NVFlare: this runs in a process of its own (``worker.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...config.schema import RunConfig
from ..common import site as common
from .options import SITE_FILE, client_settings


class Site(common.Site):
    """``job`` are the options that the job has for all sites, ``own`` this site's."""

    no_place = (
        "no partition-id: the server does not list this site; set it in "
        f"local/{SITE_FILE}"
    )

    def __init__(
        self, name: str, job: Mapping[str, Any], own: Mapping[str, Any]
    ) -> None:
        super().__init__(name, own)
        self._job = job

    def settings(self, shared: str) -> tuple[RunConfig, bool]:
        """The server's configuration with the site's own, and whose the data are."""
        return client_settings(shared, self._job, self.own)
