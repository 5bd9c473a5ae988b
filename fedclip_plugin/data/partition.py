"""Who holds which rows: the paper's split, and other ways to make clients.

Rows are counted over the concatenation of all domains in the order of the data set, the
held-out one included, so that they index one feature matrix.  All draws come from a
`RandomState` of their own: NumPy guarantees its stream, and the global one stays
untouched.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..config.schema import DataConfig
from ..errors import ConfigError, did_you_mean, spelling_key

Rows = npt.NDArray[np.int64]
NO_TARGET = "none"
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
    _random(seed).shuffle(order)
    return order


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
    labels: Mapping[str, Rows], data: DataConfig, target: str | None, seed: int
) -> tuple[ClientRows, ...]:
    """The clients of a run in which `target` is held out.

    `labels` are (N_d,) int64 for each domain, in order.  By `data.partition`:

    - `domain`: every other domain is a client (the paper);
    - `iid`: the other domains' rows, shuffled, in `data.clients` equal parts;
    - `dirichlet`: parts of equal size; each client draws its class proportions from
      a Dirichlet around the shares of the pool (Hsu et al. 2019, arXiv 1909.06335),
      `data.alpha` being the mean concentration per class; once a class is used up,
      its share goes to the others.

    Each client's rows are then split by `paper_split`; `data.shots` keeps the first
    rows of each class in the shuffled training part.  A small client may have an empty
    part.  Raises ConfigError on an unknown target, and with more clients than rows.
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
    if data.partition == "domain":
        parts = [(n, i, rows_of[n]) for i, n in enumerate(labels) if n != target]
    else:
        pool = np.concatenate(
            [rows for name, rows in rows_of.items() if name != target]
        )
        pooled = _pooled(pool, y[pool], data, seed)
        digits = max(3, len(str(len(pooled) - 1)))  # names sort as the clients do
        parts = [(f"client-{i:0{digits}d}", i, rows) for i, rows in enumerate(pooled)]
    return tuple(_client(*part, y, data.shots, seed) for part in parts)


def _random(*seed: int) -> np.random.RandomState:
    try:
        return np.random.RandomState(seed[0] if len(seed) == 1 else list(seed))
    except ValueError as error:
        raise ConfigError(
            f"--seed {seed[0]}: expected an integer from 0 to 4294967295"
        ) from error


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


def _client(
    name: str, index: int, rows: Rows, y: Rows, shots: int | None, seed: int
) -> ClientRows:
    split = paper_split(len(rows), seed)
    train = rows[split.train]
    if shots is not None:
        train = train[_first_of_each(y[train], shots)]
    return ClientRows(name, index, train, rows[split.val], rows[split.test])


def _first_of_each(labels: Rows, shots: int) -> npt.NDArray[np.bool_]:
    """(n,) mask of the first `shots` rows of each class, in the given order."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    rank = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    mask = np.zeros(len(labels), dtype=np.bool_)
    mask[order[rank < shots]] = True
    return mask


def _pooled(pool: Rows, y: Rows, data: DataConfig, seed: int) -> list[Rows]:
    """`pool` in `data.clients` parts, each sorted; `y` are the labels of its rows."""
    clients = data.clients or 1
    if clients > len(pool):
        raise ConfigError(f"--clients {clients}: only {len(pool)} images to distribute")
    random = _random(seed, clients)
    if data.partition == "iid":
        return [np.sort(p) for p in np.array_split(random.permutation(pool), clients)]
    sizes = [len(part) for part in np.array_split(pool, clients)]
    return _skewed(pool, y, sizes, data.alpha, random)


def _skewed(
    pool: Rows,
    y: Rows,
    sizes: Sequence[int],
    alpha: float,
    random: np.random.RandomState,
) -> list[Rows]:
    classes, of_class, counts = np.unique(y, return_inverse=True, return_counts=True)
    queues = [random.permutation(pool[of_class == c]) for c in range(len(classes))]
    shares = counts / len(y)  # (C,)
    concentration = alpha * len(classes) * shares  # its mean is alpha
    used = np.zeros_like(counts)
    parts = []
    for size in sizes:
        proportions = _dirichlet(concentration, shares, random)
        taken = _draw(size, proportions, counts - used, random)
        rows = [q[u : u + t] for q, u, t in zip(queues, used, taken)]
        parts.append(np.sort(np.concatenate(rows)))
        used += taken
    return parts


def _dirichlet(
    alpha: npt.NDArray[np.float64],
    shares: npt.NDArray[np.float64],
    random: np.random.RandomState,
) -> npt.NDArray[np.float64]:
    """(C,) class proportions; one class alone where a tiny alpha underflows."""
    drawn = np.asarray(random.dirichlet(alpha))
    if np.isfinite(drawn).all() and drawn.sum() > 0:
        return drawn
    alone = np.zeros_like(shares)
    alone[random.choice(len(shares), p=shares)] = 1.0
    return alone


def _draw(
    size: int,
    proportions: npt.NDArray[np.float64],
    left: Rows,
    random: np.random.RandomState,
) -> Rows:
    """(C,) counts that sum to `size`: `proportions` as far as `left` allows."""
    taken = np.zeros_like(left)
    while (missing := size - int(taken.sum())) > 0:
        open_ = np.where(left > taken, proportions, 0.0)
        if open_.sum() <= 0:  # what was drawn is used up: go on with what there is
            open_ = (left - taken).astype(np.float64)
        drawn = random.multinomial(missing, open_ / open_.sum())
        taken = np.minimum(taken + drawn, left)
    return taken
