"""Who holds which rows: the paper's split, and other ways to make clients.

How a pool of rows is cut into clients is told in `pools.py`.

Rows are counted over the concatenation of all domains in the order of the data set, the
held-out one included, so that they index one feature matrix.  All draws come from a
`RandomState` of their own: NumPy guarantees its stream, and the global one stays
untouched.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ..config.inputs import DataConfig
from ..errors import ConfigError, did_you_mean, spelling_key
from .pools import Rows, cut, long_tail, random_state
from .split_file import PARTS, WHOLE, read_split

NO_TARGET = "none"  # the target of a run without a held-out domain
MAX_NAME = 255  # characters of a domain's name


@dataclass(frozen=True)
class Split:
    """Row indices, each (n,) int64, without a row in common."""

    train: Rows
    val: Rows
    test: Rows


@dataclass(frozen=True)
class ClientRows:
    """The rows of one client.

    With one client per domain, `index` is the domain's position in the data set: a
    client is the same one whichever domain is held out.
    """

    name: str
    index: int
    train: Rows
    val: Rows
    test: Rows


def paper_split(n: int, seed: int) -> Split:
    """60/20/20 of `n` rows, exactly as in the authors' `prepare_data_dg_clip.py`.

    Each part is rounded down, so up to 2 rows are in none of them.
    """
    order = _shuffled(n, seed).copy()
    train, part = int(n * 0.6), int(n * 0.2)
    return Split(
        order[:train], order[train : train + part], order[train + part :][:part]
    )


@functools.lru_cache(maxsize=16)
def _shuffled(n: int, seed: int) -> Rows:
    """Cached: thousands of clients have one or two sizes."""
    order = np.arange(n, dtype=np.int64)
    random_state(seed).shuffle(order)
    return order


def resolve_target(domains: Sequence[str], target: str) -> str | None:
    """The held-out domain of a server that may have no other; see resolve_targets."""
    check_names(domains)
    return _resolve(domains, target)


def resolve_targets(
    domains: Sequence[str], targets: Sequence[str]
) -> tuple[str | None, ...]:
    """The held-out domains of the runs to do, one run each; None = nothing held out.

    () is every domain in turn.  A target is a domain's name in any case and spelling,
    its position ("0", as in the authors' `--test_envs`), or "none".  Raises ConfigError
    on another, on domains whose names will not do (:func:`check_names`), and where
    holding one out would leave no client.
    """
    check_names(domains)
    wanted = [_resolve(domains, target) for target in targets or domains]
    if len(domains) < 2 and any(target is not None for target in wanted):
        raise ConfigError(
            f"the data set has only the domain {', '.join(domains)}: holding it out "
            f"leaves no client; use --target {NO_TARGET}"
        )
    return tuple(dict.fromkeys(wanted))


def check_names(domains: Sequence[str]) -> None:
    """Refuse names of domains that no run could show, or tell from no domain.

    Raises ConfigError.
    """
    for name in domains:
        wrong = None
        if name.casefold() == NO_TARGET:
            wrong = f"--target {NO_TARGET} means that no domain is held out"
        elif not name.strip() or not name.isprintable() or len(name) > MAX_NAME:
            wrong = f"expected up to {MAX_NAME} printable characters"
        if wrong:
            raise ConfigError(f"domain {name[:60]!a}: {wrong}; rename it")


def partition_clients(
    labels: Mapping[str, Rows],
    data: DataConfig,
    target: str | None,
    seed: int,
    files: Mapping[str, Sequence[str]] | None = None,
) -> tuple[ClientRows, ...]:
    """The clients of a run in which `target` is held out.

    `labels` are (N_d,) int64 for each domain, in order.  By `data.partition`:

    - `domain`: every other domain is a client (the paper);
    - `iid`: the other domains' rows, shuffled, in `data.clients` equal parts;
    - `dirichlet`: parts of equal size; each client draws its class proportions from
      a Dirichlet around the shares of the pool (Hsu et al. 2019, arXiv 1909.06335),
      `data.alpha` being the mean concentration per class; once a class is used up,
      its share goes to the others;
    - `classes`: `data.classes_per_client` classes each;
    - `shards`: `data.shards_per_client` shards each of the rows sorted by class;
    - `quantity`: alike but for their sizes, whose shares are drawn from a symmetric
      Dirichlet of `data.alpha`;
    - `long-tail`: as `iid`, the training rows thinned by `data.imbalance` from the
      first class to the last.

    With `data.clients_per_domain`, the rows of each domain are cut by themselves.
    Each client's rows are then split by `paper_split`, or as `data.split` has it, for
    which `files` names the images; `data.shots` keeps the first rows of each class in
    the shuffled training part.  A small client may have an empty part.  Raises
    ConfigError on an unknown target, and for what a partition cannot meet, such as
    more clients than rows.
    """
    if target is not None:
        target = _resolve(tuple(labels), target)
    starts = np.cumsum([0, *(len(y) for y in labels.values())])
    if all(name == target for name in labels):
        raise ConfigError(f"holding out {target} leaves no client; use --target none")
    y = np.concatenate([np.asarray(part, np.int64) for part in labels.values()])  # (N,)
    rows_of = {
        name: np.arange(starts[i], starts[i + 1], dtype=np.int64)
        for i, name in enumerate(labels)
    }
    if data.split is None:
        parts = _parts(rows_of, y, data, target, seed)
        clients = [_client(*part, seed) for part in parts]
    else:
        split = read_split(data.split, files or {}, y)
        clients = _clients_of_split(split, rows_of, y, data, target, seed)
    if data.shots is not None:
        clients = [_few(client, y, data.shots) for client in clients]
    if data.partition == "long-tail":
        random = random_state(seed, len(clients), _LONG_TAIL)
        trains = long_tail([c.train for c in clients], y, data.imbalance, random)
        clients = [replace(c, train=train) for c, train in zip(clients, trains)]
    return tuple(clients)


_LONG_TAIL = 0x7A11  # keeps this draw apart from that of the parts


def _parts(
    rows_of: Mapping[str, Rows],
    y: Rows,
    data: DataConfig,
    target: str | None,
    seed: int,
) -> list[tuple[str, int, Rows]]:
    """Name, index and rows of every client; an index is one whatever is held out."""
    held = {n: (i, rows) for i, (n, rows) in enumerate(rows_of.items()) if n != target}
    if data.partition == "domain":
        return [(name, i, rows) for name, (i, rows) in held.items()]
    if count := data.clients_per_domain:
        return [
            (f"{domain}-{k:0{len(str(count - 1))}d}", i * count + k, part)
            for domain, (i, rows) in held.items()
            for k, part in enumerate(
                cut(rows, y[rows], count, data, random_state(seed, count, i))
            )
        ]
    pool = np.concatenate([rows for _, rows in held.values()])
    clients = data.clients or 1
    pooled = cut(pool, y[pool], clients, data, random_state(seed, clients))
    digits = max(3, len(str(len(pooled) - 1)))  # names sort as the clients do
    return [(f"client-{i:0{digits}d}", i, rows) for i, rows in enumerate(pooled)]


def _clients_of_split(
    split: Mapping[str, Mapping[str, Rows]],
    rows_of: Mapping[str, Rows],
    y: Rows,
    data: DataConfig,
    target: str | None,
    seed: int,
) -> list[ClientRows]:
    """The clients of a split file; or those of the partition, split as in the file."""
    if WHOLE in split:
        whole = split[WHOLE]
        return [
            ClientRows(
                name, i, *(whole[part][np.isin(whole[part], rows)] for part in PARTS)
            )
            for name, i, rows in _parts(rows_of, y, data, target, seed)
        ]
    if data.partition != "domain":
        raise ConfigError(
            f"--split {data.split} names the clients itself: leave out --partition"
        )
    held_out = rows_of[target] if target is not None else np.empty(0, np.int64)
    clients = []
    for index, (name, parts) in enumerate(split.items()):
        mine = [parts[part][~np.isin(parts[part], held_out)] for part in PARTS]
        if any(map(len, mine)):  # else all that it has is held out
            clients.append(ClientRows(name, index, *mine))
    if not clients:
        raise ConfigError(f"holding out {target} leaves no client; use --target none")
    check_names([client.name for client in clients])
    return clients


def _resolve(domains: Sequence[str], target: str) -> str | None:
    if target in domains:
        return target
    same = [d for d in domains if spelling_key(d) == spelling_key(target)]
    if len(same) == 1:
        return same[0]
    if target.strip().lower() == NO_TARGET:
        return None
    if target.isdecimal() and int(target) < len(domains):
        return domains[int(target)]
    raise ConfigError(
        f"--target {target}: no such domain{did_you_mean(target, domains)} "
        f"(known: {', '.join(domains)}, or {NO_TARGET})"
    )


def _client(name: str, index: int, rows: Rows, seed: int) -> ClientRows:
    split = paper_split(len(rows), seed)
    return ClientRows(name, index, rows[split.train], rows[split.val], rows[split.test])


def _few(client: ClientRows, y: Rows, shots: int) -> ClientRows:
    train = client.train
    return replace(client, train=train[_first_of_each(y[train], shots)])


def _first_of_each(labels: Rows, shots: int) -> npt.NDArray[np.bool_]:
    """(n,) mask of the first `shots` rows of each class, in the given order."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    rank = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    mask = np.zeros(len(labels), dtype=np.bool_)
    mask[order[rank < shots]] = True
    return mask
