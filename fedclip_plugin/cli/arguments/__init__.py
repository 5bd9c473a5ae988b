"""The commands' arguments, in the order of ``fedclip --help``."""

from __future__ import annotations

from . import hosts, runs, states, tools

ADD_COMMANDS = (
    runs.add_run,
    runs.add_sweep,
    runs.add_features,
    runs.add_data,
    runs.add_report,
    states.add_predict,
    states.add_evaluate,
    states.add_export,
    states.add_members,
    tools.add_algorithms,
    hosts.add_hosts,
    hosts.add_register,
    hosts.add_fedml,
    hosts.add_nvflare,
    tools.add_bench,
    tools.add_doctor,
)
