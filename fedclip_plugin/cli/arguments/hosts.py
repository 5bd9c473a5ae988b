"""The host frameworks: hosts, register, fedml."""

from __future__ import annotations

from .. import commands
from .command import PATH, Commands, command

FEDML_EPILOG = """examples:
  fedclip fedml --cf fedml_config.yaml --offline                        simulation
  fedclip fedml --cf fedml_config.yaml --rank 0 --role server           cross-silo
  fedclip fedml --cf fedml_config.yaml --rank 1 --role client
"""


def add_hosts(group: Commands) -> None:
    """``fedclip hosts``."""
    command(
        group,
        "hosts",
        commands.hosts,
        "List the host frameworks, and how to select fedclip.",
    )


def add_register(group: Commands) -> None:
    """``fedclip register``."""
    parser = command(
        group,
        "register",
        commands.register,
        "Make --alg fedclip known to a PersonalizedFL checkout; --undo takes it back.",
        "example:\n  fedclip register personalizedfl ~/PersonalizedFL",
    )
    parser.add_argument("host", metavar="HOST", help="personalizedfl")
    parser.add_argument("path", metavar="PATH", type=PATH, nargs="?")
    parser.add_argument("--undo", action="store_true", help="restore every byte")


def add_fedml(group: Commands) -> None:
    """``fedclip fedml``."""
    parser = command(
        group,
        "fedml",
        commands.fedml,
        "Run FedML from its own fedml_config.yaml, with FedCLIP as the algorithm.",
        FEDML_EPILOG,
    )
    parser.add_argument(
        "--cf", metavar="FILE", type=PATH, required=True, help="fedml_config.yaml"
    )
    parser.add_argument("--rank", type=int, metavar="N", help="cross-silo: 0 = server")
    parser.add_argument("--role", choices=("server", "client"), help="cross-silo")
    parser.add_argument("--run-id", metavar="ID", help="cross-silo: the same for all")
    parser.add_argument(
        "--alg", dest="algorithm", default="fedclip", metavar="NAME",
        help="algorithm (default: fedclip)",
    )  # fmt: skip
    parser.add_argument(
        "--offline", action="store_true", help="ask no server for configuration"
    )
    parser.add_argument(
        "--resume", action="store_true",
        help="go on with the run in fedclip_out; it begins where there is none",
    )  # fmt: skip
