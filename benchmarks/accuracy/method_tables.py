"""Which methods are compared, and on what data: the rows and tables of ``methods``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from fedclip_plugin.algorithms import ALGORITHMS, Algorithm, algorithm_class

Options = dict[str, Any]  # of ``fedclip run``: {"local_epochs": 2}
NEEDS = ("features", "text tower", "images")  # each has what is before it

AROUND_PROTOTYPES: Options = {
    "augment": "ggeur",
    "augment_per_class": 200,
    "augment_prototypes": 100,
    "augment_scale": "deviation",
}
VARIANTS: tuple[Options, ...] = (
    {"alg": "linear", "linear_init": "text"},
    {"alg": "gda", "rounds": 2},
    {"alg": "fedclip", "preset": "best"},
    {"alg": "fedclip", "preset": "best", "server_ema": 0.9},
    {"alg": "linear", "server_ema": 0.9},
    {"alg": "linear", "weighting": "gap"},
    {"alg": "linear", "augment": "ggeur", "augment_per_class": 200},
    {"alg": "linear", **AROUND_PROTOTYPES},
    {"alg": "fedclip", **AROUND_PROTOTYPES},
    {"alg": "fedot", "fedot_block_size": 32},
    {"alg": "fedavg-lora", "lora_mean": "products"},
)
"""What is compared beside every algorithm with its own defaults."""


class Table(NamedTuple):
    """Data, how they become clients, rounds, and which methods can run on them.

    ``needs`` is the most of a CLIP that its methods may need; ``only`` names the
    algorithms of a table that has not all; ``fewer`` has the rounds of those that cost
    most by the processor, by label.
    """

    about: str
    data: str  # features, images or digits
    rounds: int
    options: Options
    needs: str = "features"
    only: frozenset[str] = frozenset()
    fewer: Mapping[str, int] = MappingProxyType({})


SKEWED: Options = {"partition": "dirichlet", "clients": 20, "alpha": 0.1}
DEAR = ("faa-clip --transductive", "facmic --transductive", "fedmedclip", "fedot")
LONG = frozenset({"zeroshot", "local", "linear", "fedclip", "promptfl"})
TABLES = {
    "features": Table(
        "a domain a client", "features", 100, {}, fewer=dict.fromkeys(DEAR, 10)
    ),
    "skewed": Table(
        "20 clients, Dirichlet of 0.1",
        "features",
        20,
        SKEWED,
        fewer=dict.fromkeys(DEAR, 10),
    ),
    "few-shot": Table("4 images a class and client", "features", 50, {"shots": 4}),
    "images": Table("a domain a client", "images", 10, {}, "text tower"),
    "digits": Table("a domain a client", "digits", 20, {}, "images"),
    "digits-long": Table("a domain a client", "digits", 200, {}, "text tower", LONG),
}


def methods_of(table: Table) -> dict[str, Options]:
    """Label -> options of every method that can run on the table's data.

    Zero-shot comes first; a label is what follows ``fedclip run --alg``.
    """
    own = [_row_of(name) for name in _own_algorithms()]
    rows = sorted([*own, *VARIANTS], key=lambda row: _order(row["alg"]))
    return {label_of(row): row for row in rows if _fits(table, row["alg"])}


def label_of(options: Mapping[str, Any]) -> str:
    """``fedclip --preset best``."""
    more = {f"--{k.replace('_', '-')}": v for k, v in options.items() if k != "alg"}
    words = [flag if v is True else f"{flag} {v}" for flag, v in more.items()]
    return " ".join([options["alg"], *words])


def _row_of(name: str) -> Options:
    """With the leave that a held-out domain needs where the algorithm looks at it."""
    seen = {"transductive": True} if algorithm_class(name).transductive else {}
    return {"alg": name, **seen}


def rounds_of(options: Mapping[str, Any], table: Table, rounds: int) -> int:
    """Of a method, where the table's run for ``rounds``.

    Its own where it says so, such as one, or where the table gives it fewer.
    """
    most = min(rounds, table.fewer.get(label_of(options), rounds))
    own = algorithm_class(options["alg"]).defaults.get("rounds", most)
    return int(options.get("rounds", own))


def _own_algorithms() -> Iterator[str]:
    """Those of this package, not of other packages that are installed here."""
    package = Algorithm.__module__.rpartition(".")[0]
    for name in ALGORITHMS.names():
        if algorithm_class(name).__module__.startswith(f"{package}."):
            yield name


def _order(name: str) -> tuple[int, Sequence[str]]:
    cls = algorithm_class(name)
    first = 0 if name == "zeroshot" else 1 + NEEDS.index(cls.needs)
    return first, name


def _fits(table: Table, name: str) -> bool:
    able = NEEDS.index(algorithm_class(name).needs) <= NEEDS.index(table.needs)
    return able and (not table.only or name in table.only)
