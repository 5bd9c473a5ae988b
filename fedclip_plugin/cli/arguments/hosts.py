"""The host frameworks: hosts, register, fedml, nvflare."""

from __future__ import annotations

import argparse

from .. import commands, nvflare
from .command import PATH, Commands, Parser, command

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


NVFLARE_EPILOG = """examples:
  fedclip nvflare job jobs/scan --dataset scan --rounds 20 --min-sites 3
  fedclip nvflare allow /opt/nvflare/site-1     at every site, and at the server
  nvflare job submit -j jobs/scan
"""


def add_nvflare(group: Commands) -> None:
    """``fedclip nvflare job`` and ``fedclip nvflare allow``."""
    text = "Jobs for NVFlare that run fedclip, and leave for its sites to run them."
    outer = group.add_parser(
        "nvflare", help=text, description=text, epilog=NVFLARE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    inner = outer.add_subparsers(
        dest="nvflare_command", metavar="COMMAND", required=True, parser_class=Parser
    )
    parser = command(
        inner, "job", nvflare.job, "Write the files of a job.", NVFLARE_EPILOG
    )
    add = parser.add_argument
    add("folder", metavar="DIR", type=PATH, help="the job's folder")
    add(
        "--name", default="fedclip", metavar="NAME", help="the job's (default: fedclip)"
    )
    add("--config", metavar="FILE.toml", type=PATH, help="options from a file")
    parser.fill = nvflare.add_job_options
    parser = command(
        inner, "allow", nvflare.allow,
        "Allow fedclip's classes at a site, at the server, or in a simulator's "
        "workspace; run it before they start.",
    )  # fmt: skip
    parser.add_argument(
        "folders", metavar="DIR", type=PATH, nargs="+",
        help="a startup kit, a folder of kits, or a simulator's workspace",
    )  # fmt: skip
