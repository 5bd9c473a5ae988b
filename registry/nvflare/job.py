"""The files of a job, and leave for a site to run what they name.

Neither needs NVFlare, but for the classes that it allows by itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...config.paths import read_object
from ...errors import ConfigError
from ...storage.files import write_json
from ..common import messages
from ..common.options import LOCAL, OWN_DATA
from .options import server_settings

_HOME = __name__.rpartition(".")[0]
ALLOWED = f"{_HOME}."  # a prefix, as NVFlare takes it
_LIST = "class_allow_list"


def write_job(
    folder: Path, options: Mapping[str, Any], name: str = "fedclip"
) -> list[Path]:
    """Write the three files of a job with ``options`` to ``folder``; their paths.

    Raises ConfigError for a wrong option, and for a folder that is not a job's.
    """
    _, _, sampling = server_settings(options, Path("run"))
    meta = folder / "meta.json"
    if folder.exists() and not (meta.is_file() or _is_empty(folder)):
        raise ConfigError(
            f"{folder} is there, and no NVFlare job: choose another folder"
        )
    chosen = {
        key: os.path.abspath(value) if key in OWN_DATA else value
        for key, value in options.items()
    }
    theirs = {key: value for key, value in chosen.items() if key in LOCAL}
    config = folder / "app" / "config"
    files = {
        meta: {
            "name": name,
            "resource_spec": {},
            "min_clients": sampling.min_sites,
            "deploy_map": {"app": ["@ALL"]},
        },
        config / "config_fed_server.json": _server(chosen),
        config / "config_fed_client.json": _client(theirs),
    }
    try:
        config.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {config}: {error.strerror}") from error
    for path, values in files.items():
        write_json(path, values)
    return list(files)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _server(options: Mapping[str, Any]) -> dict[str, Any]:
    controller = {
        "id": "fedclip",
        "path": f"{_HOME}.controller.FedClipController",
        "args": {"options": dict(options)},
    }
    return {
        "format_version": 2,
        "server": {"task_request_interval": 0.2},  # seconds; else sites ask every two
        "workflows": [controller],
        "components": [],
        "task_data_filters": [],
        "task_result_filters": [],
    }


def _client(options: Mapping[str, Any]) -> dict[str, Any]:
    executor = {
        "path": f"{_HOME}.executor.FedClipExecutor",
        "args": {"options": dict(options)},
    }
    return {
        "format_version": 2,
        "executors": [{"tasks": list(messages.TASKS), "executor": executor}],
        "components": [],
        "task_data_filters": [],
        "task_result_filters": [],
    }


def allow(folder: Path) -> list[str]:
    """Let every kit in ``folder`` run our classes; a line for each.

    ``folder`` is the startup kit of a site or server, a folder of kits, or a workspace
    for the simulator.  NVFlare ends a job whose classes a site does not allow, and
    tells why in that site's log alone.
    """
    kits = _kits(folder)
    if not kits:
        if (
            folder.exists()
            and not _is_empty(folder)
            and not (folder / "local").is_dir()
        ):
            raise ConfigError(
                f"{folder}: no startup kit (a folder with startup and local), and none "
                "in it; a simulator's workspace is empty or not there yet"
            )
        kits = [folder]
    return [_allow(kit / "local") for kit in kits]


def _kits(folder: Path) -> list[Path]:
    """The kits of sites and servers at or below ``folder``, at most three down."""
    for pattern in ("startup", "*/startup", "*/*/startup", "*/*/*/startup"):
        found = [path.parent for path in sorted(folder.glob(pattern))]
        if kits := [kit for kit in found if _runs_jobs(kit)]:
            return kits
    return []


def _runs_jobs(kit: Path) -> bool:
    """Whether a kit is not that of an administrator."""
    parts = (kit / "startup" / f"fed_{part}.json" for part in ("client", "server"))
    return (kit / "local").is_dir() and any(map(Path.is_file, parts))


def _allow(local: Path) -> str:
    path = local / "resources.json"
    values = read_object(path) or read_object(f"{path}.default") or {}
    listed = values.get(_LIST)
    if not isinstance(listed, list):
        listed = _nvflares_own()
    if ALLOWED in listed:
        return f"{path}: allows {ALLOWED} already"
    try:
        local.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make {local}: {error.strerror}") from error
    write_json(path, {"format_version": 2, **values, _LIST: [*listed, ALLOWED]})
    return f"{path}: now allows {ALLOWED}; restart what runs there"


def _nvflares_own() -> list[str]:
    """The classes that NVFlare allows where a site says nothing."""
    try:
        from nvflare.app_common.default_component_policy import (
            DEFAULT_CLASS_ALLOW_LIST,
        )
    except ImportError as error:
        raise ConfigError(
            f"NVFlare 2.9 cannot be imported ({error}): "
            "pip install 'fedclip-plugin[nvflare]'"
        ) from error
    return list(DEFAULT_CLASS_ALLOW_LIST)
