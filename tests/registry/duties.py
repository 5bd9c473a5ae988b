"""What a federation of several machines has to stand, host by host, and its tests.

``python -m tests.registry.duties`` prints the table of docs/hosts.md.
"""

from __future__ import annotations

from dataclasses import dataclass

DUTIES = {
    "private data": "each site opens data that only it has, the server none",
    "late joiner": "who comes after the first round takes part in the next",
    "leaver": "who goes for good is left out, the run ends without it",
    "dead client": "a process killed at work costs its own update alone",
    "slow client": "no answer in time: left out, named, back as soon as it answers",
    "lying client": "NaN, wrong shapes, far-off updates: left out, named, counted",
    "resume": "a server that was killed goes on, to the same bits",
    "wire bytes": "adapters travel and little more; what is counted is what is sent",
    "secure transport": "TLS both ways, each side with a certificate or key of its own",
}


@dataclass(frozen=True)
class No:
    """The host does not do it; why."""

    reason: str


Tests = tuple[str, ...]  # "folder/file.py::function", below tests/
_PROCESSES = "registry/processes.py::test_"
_CONTRACT = "registry/contract.py::test_"
_LIARS = f"{_CONTRACT}a_bad_update_is_left_out_named_and_counted"
_RESUMED = f"{_CONTRACT}a_run_is_made_longer_and_resumed_when_it_is_over"
_SAME = f"{_CONTRACT}the_adapter_is_that_of_the_embedded_engine"
_FEDML = "registry/fedml/test_"
_FLOWER = "registry/flower/test_"
_NVFLARE = "registry/nvflare/test_"
_PFL = "registry/personalizedfl/test_"
_OWN = f"{_FEDML}own_data.py::test_"
_STRANGER = f"{_OWN}a_stranger_is_refused_a_late_one_joins_and_a_killed_server_goes_on"
_OUTLIVES = f"{_FEDML}processes.py::test_cross_silo_outlives_its_clients"
_DEPLOYED = f"{_FLOWER}engines.py::test_a_node_that_dies_costs_only_its_update"
_SITES = f"{_NVFLARE}engines.py::test_a_trainer_and_a_site_that_die_end_no_rounds"
_ABORTED = (
    f"{_NVFLARE}engines.py::test_an_aborted_job_leaves_whole_rounds_and_another_goes_on"
)
_KILLED = f"{_NVFLARE}engines.py::test_a_killed_server_goes_on_with_its_sites"
_ANYTIME = "faults/test_kills.py::test_ended_at_any_moment_it_goes_on_to_the_same_bits"
_LATE = f"{_NVFLARE}server.py::test_a_late_site_is_left_out_and_asked_again"
_ONE = No("one process, which plays all clients")

TABLE: dict[str, dict[str, Tests | No]] = {
    "FedML": {
        "private data": (f"{_OWN}the_adapter_is_that_of_the_pooled_folder",),
        "late joiner": (_STRANGER,),
        "leaver": (_OUTLIVES,),
        "dead client": (
            _OUTLIVES,
            f"{_FEDML}processes.py::test_a_client_that_is_started_again_joins_in",
        ),
        "slow client": (_OUTLIVES,),
        "lying client": (
            f"{_PROCESSES}made_longer_it_goes_on_without_a_bad_update",
            _LIARS,
        ),
        "resume": (
            f"{_PROCESSES}the_rounds_before_are_left_as_they_were",
            _STRANGER,
            _ANYTIME,
        ),
        "wire bytes": (f"{_PROCESSES}the_run_is_that_of_the_embedded_engine",),
        "secure transport": (
            f"{_FEDML}wire.py::test_with_tls_each_rank_speaks_for_itself_alone",
            f"{_FEDML}wire.py::test_a_run_goes_on_under_attack",
            f"{_FEDML}roads.py::test_machines_behind_a_gateway_with_ipv6_and_tls_give_the_pooled_run",
        ),
    },
    "Flower": {
        "private data": (
            f"{_FLOWER}host.py::test_clients_with_data_of_their_own_train_the_same",
        ),
        "late joiner": (
            f"{_FLOWER}faults.py::test_a_restarted_client_takes_its_place_again",
        ),
        "leaver": (_DEPLOYED,),
        "dead client": (
            _DEPLOYED,
            f"{_FLOWER}engines.py::test_a_client_that_raises_or_dies_in_ray",
        ),
        "slow client": (
            f"{_FLOWER}faults.py::test_a_bad_client_is_named_and_left_out",
        ),
        "lying client": (
            f"{_FLOWER}faults.py::test_a_bad_client_is_named_and_left_out",
            _LIARS,
        ),
        "resume": (
            f"{_PROCESSES}the_rounds_before_are_left_as_they_were",
            _RESUMED,
            _ANYTIME,
        ),
        "wire bytes": (_SAME, f"{_FLOWER}host.py::test_only_the_adapter_travels"),
        "secure transport": (f"{_FLOWER}contract.py::test_the_nodes_speak_tls",),
    },
    "NVFlare": {
        "private data": (
            f"{_NVFLARE}engines.py::test_the_simulator_gives_the_run_of_the_embedded_engine",
            f"{_NVFLARE}server.py::test_sites_with_data_of_their_own_give_the_pooled_run",
        ),
        "late joiner": (
            f"{_NVFLARE}server.py::test_a_site_that_never_answers_ends_no_job",
            _LATE,
        ),
        "leaver": (_SITES,),
        "dead client": (_SITES,),
        "slow client": (_LATE,),
        "lying client": (_LIARS,),
        "resume": (_KILLED, _ABORTED, _RESUMED, _ANYTIME),
        "wire bytes": (_SAME,),
        "secure transport": (_SITES,),
    },
    "PersonalizedFL": {
        "private data": No("main.py opens the data of all clients"),
        "late joiner": _ONE,
        "leaver": _ONE,
        "dead client": _ONE,
        "slow client": _ONE,
        "lying client": (f"{_PFL}host.py::test_a_spoilt_model_is_left_out_and_named",),
        "resume": No("main.py begins with its first round"),
        "wire bytes": (f"{_PFL}host.py::test_only_adapters_go_to_and_fro",),
        "secure transport": No("it opens no port"),
    },
}


def table() -> str:
    """The table as Markdown: a row for each duty, a column for each host."""
    lines = ["| " + " | ".join(["", *TABLE]) + " |", "|---" * (len(TABLE) + 1) + "|"]
    for duty, meaning in DUTIES.items():
        cells = [f"**{duty}**: {meaning}"]
        for rows in TABLE.values():
            found = rows[duty]
            cells.append(f"no: {found.reason}" if isinstance(found, No) else "yes")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
