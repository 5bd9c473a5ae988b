"""A job's options and a site's own, as settings of a run.

The job's are in the files of the job, those of a site in its ``local/fedclip.json``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ...config.fields import Section, option
from ...config.paths import read_object
from ...config.schema import RunConfig
from ...data.partition import NO_TARGET
from ...errors import ConfigError, did_you_mean
from ...settings.sources import Output, outside
from ..common import options as common
from ..common.options import LOCAL, OF_THE_NODE, OWN_DATA

SITE_FILE = "fedclip.json"
_SITE_KEYS = (*LOCAL, *OF_THE_NODE[:2])


@dataclass(frozen=True)
class Sampling(Section):
    """Which sites take part in a round, and how long the server waits for them."""

    min_sites: int = option(1, within="[1, inf)")  # to begin
    min_train_sites: int = option(1, within="[1, inf)")  # of a round
    start_timeout: int = option(3600, within="[1, inf)")  # seconds: to open, to encode
    round_timeout: int = option(3600, within="[1, inf)")  # seconds: for each phase


WORDS = common.Words(
    run="job", node=f"local/{SITE_FILE}", aliases={}, sampling=Sampling
)


def server_settings(
    options: Mapping[str, Any], run_directory: Path
) -> tuple[RunConfig, Output, Sampling]:
    """Configuration, output directory and sampling of a job, from its options.

    Results go to the job's own directory at the server, so that a download of the job
    brings them; an absolute ``out`` goes elsewhere.  Raises ConfigError.
    """
    config, out, sampling = common.server_settings(options, WORDS)
    written = str(options.get("out") or "")
    own = out.directory is None or not (written == "" or os.path.isabs(written))
    directory = run_directory / (written or "fedclip") if own else out.directory
    if out.resume and own:
        raise ConfigError(
            "resume needs the output directory of the run: a job's own is new: give an "
            "absolute out"
        )
    return config, out._replace(directory=directory), cast(Sampling, sampling)


def read_site_file(folder: Path, site: str) -> dict[str, Any]:
    """The options in ``folder``/fedclip.json; those in a table by the site's name win.

    Raises ConfigError for what is not JSON, and for a key that is not a site's.
    """
    path = folder / SITE_FILE
    values = read_object(path) or {}
    plain = {k: v for k, v in values.items() if not isinstance(v, dict)}
    own = values.get(site)
    found = {**plain, **(own if isinstance(own, dict) else {})}
    for key in found:
        if key not in _SITE_KEYS:
            raise ConfigError(
                f"{path}: unknown key {key!r}{did_you_mean(key, _SITE_KEYS)} (a site "
                f"sets {', '.join(_SITE_KEYS)}; all else is the same for all: it "
                "belongs to the job)"
            )
    return found


def client_settings(
    shared: str, job: Mapping[str, Any], site: Mapping[str, Any]
) -> tuple[RunConfig, bool]:
    """A site's configuration, and whether its data are its own.

    ``job`` has what all sites share by default, ``site`` what is this site's.  Data
    that only a variable of the site's process names (``FEDCLIP_ROOT``,
    ``FEDCLIP_FEATURES``) are its own where the job holds no domain out.
    """
    config = common.client_settings(shared, job, site, WORDS)
    own = common.has_own_data(site)
    return config, own or (not common.has_own_data(job) and _by_variable(config))


def _by_variable(config: RunConfig) -> bool:
    named = outside()
    own = any(key in named for key in OWN_DATA)
    return own and set(config.data.targets) <= {NO_TARGET}
