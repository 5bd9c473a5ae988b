"""The hosts: what is supported, what is installed, and how to select fedclip there."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ..errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Host:
    """A framework; ``package`` is its distribution, None for a repository to clone.

    ``registers``: fedclip has to be made selectable there first.
    """

    name: str
    title: str
    package: str | None
    supported: str
    install: str
    select: str
    registers: bool = True

    def version(self) -> str | None:
        """The installed version; None where it is absent or unknown."""
        if self.package is None:
            return None
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None


HOSTS = {
    host.name: host
    for host in (
        Host(
            "fedml",
            "FedML",
            "fedml",
            "0.9.6 (Python 3.10 and 3.11)",
            "pip install 'fedclip-plugin[fedml]'",
            "fedclip fedml --cf fedml_config.yaml, or federated_optimizer: FedCLIP "
            'after fedclip_plugin.registry.register("fedml")',
        ),
        Host(
            "personalizedfl",
            "PersonalizedFL",
            None,
            "its main.py as of July 2023, the newest (441670e)",
            "git clone https://github.com/microsoft/PersonalizedFL",
            "fedclip register personalizedfl DIR, then python main.py --alg fedclip",
        ),
        Host(
            "flower",
            "Flower",
            "flwr",
            "1.41 and later (Python 3.11 and later)",
            "pip install 'fedclip-plugin[flower]'",
            "serverapp = fedclip_plugin.registry.flower_host:server_app, clientapp = "
            "fedclip_plugin.registry.flower_host:client_app in the app's "
            "pyproject.toml, then flwr run .",
            registers=False,
        ),
        Host(
            "nvflare",
            "NVFlare",
            "nvflare",
            "2.9 (Python 3.10 and later, Linux)",
            "pip install 'fedclip-plugin[nvflare]'",
            "fedclip nvflare allow KIT at every site and the server, then fedclip "
            "nvflare job DIR and nvflare job submit -j DIR",
            registers=False,
        ),
    )
}


def get_host(name: str) -> Host:
    """The host called ``name`` in any case; raises ConfigError listing them."""
    host = HOSTS.get(name.lower())
    if host is None:
        near = did_you_mean(name, HOSTS)
        raise ConfigError(f"unknown host {name!r}{near} (known: {', '.join(HOSTS)})")
    return host


def register(name: str, path: str | Path | None = None, undo: bool = False) -> str:
    """Make ``fedclip`` selectable in a host; returns one line that tells what was done.

    FedML: for this process.  PersonalizedFL: in the repository at ``path``, until
    ``undo``.  Flower and NVFlare need none.  Idempotent.  Raises ConfigError for an
    unknown host, a missing or needless ``path``, or a host that does not fit.
    """
    host = get_host(name)
    if not host.registers:
        raise ConfigError(f"{host.title} needs no registration: {host.select}")
    if host.package is None and path is None:
        raise ConfigError(
            f"{host.title} is registered in its repository: name its folder"
        )
    if host.package is not None and path is not None:
        raise ConfigError(f"{host.title} is registered for one process, not in {path}")
    module = importlib.import_module(f"{__package__}.{host.name}_host")
    done: str = (
        module.register() if path is None else module.register(Path(path), undo=undo)
    )
    return done
