"""A pool of rows cut into the parts of clients: by chance, by label or by size.

`flwr-datasets` has such partitioners, too, but of a Hugging Face `Dataset`, which it
would bring into every environment; what is cut here are the rows of a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..config.fields import MOST_WHOLE
from ..config.inputs import DataConfig
from ..errors import ConfigError

Rows = npt.NDArray[np.int64]


def random_state(*seed: int) -> np.random.RandomState:
    """A generator of its own; raises ConfigError for a seed that NumPy cannot take."""
    try:
        return np.random.RandomState(seed[0] if len(seed) == 1 else list(seed))
    except ValueError as error:
        raise ConfigError(
            f"--seed {seed[0]}: expected an integer from 0 to {MOST_WHOLE}"
        ) from error


def cut(
    pool: Rows, y: Rows, clients: int, data: DataConfig, random: np.random.RandomState
) -> list[Rows]:
    """`pool` (n,) in `clients` parts, each sorted; `y` (n,) are its rows' labels.

    Raises ConfigError for what `data.partition` cannot make of it, such as more clients
    than rows.
    """
    if clients > len(pool):
        flag = "--clients" if data.clients else "--clients-per-domain"
        raise ConfigError(f"{flag} {clients}: only {len(pool)} images to distribute")
    if data.partition == "dirichlet":
        sizes = [len(part) for part in np.array_split(pool, clients)]
        return _skewed(pool, y, sizes, data.alpha, random)
    if data.partition == "classes":
        parts = _by_classes(pool, y, clients, data.classes_per_client or 1, random)
    elif data.partition == "shards":
        parts = _by_shards(pool, y, clients, data.shards_per_client, random)
    elif data.partition == "quantity":
        ends = np.cumsum(_quantities(len(pool), clients, data.alpha, random))
        parts = np.split(random.permutation(pool), ends[:-1])
    else:
        parts = np.array_split(random.permutation(pool), clients)
    if empty := sum(not len(part) for part in parts):
        raise ConfigError(
            f"--partition {data.partition} leaves {empty} of {clients} clients without "
            "an image; use fewer clients"
        )
    return [np.sort(part) for part in parts]


def _by_classes(
    pool: Rows,
    y: Rows,
    clients: int,
    each: int,
    random: np.random.RandomState,
) -> list[Rows]:
    """`each` classes a client; those of several clients are shared out evenly.

    The classes are shuffled and dealt round and round, so that no class has more than
    one client more than another, and none is shared where `clients * each` are no more
    than there are.
    """
    classes = np.unique(y)
    if each > len(classes):
        raise ConfigError(
            f"--classes-per-client {each}: there are only {len(classes)} classes"
        )
    if clients * each < len(classes):
        raise ConfigError(
            f"--classes-per-client {each}: {clients} clients would hold "
            f"{clients * each} of {len(classes)} classes; use at least "
            f"{-(-len(classes) // clients)}, more clients, or fewer --classes"
        )
    dealt = np.resize(random.permutation(classes), clients * each)
    holder = np.repeat(np.arange(clients), each)
    parts: list[list[Rows]] = [[] for _ in range(clients)]
    for label in classes:
        holders = holder[dealt == label]
        rows = random.permutation(pool[y == label])
        for client, part in zip(holders, np.array_split(rows, len(holders))):
            parts[client].append(part)
    return [np.concatenate(part) for part in parts]


def _by_shards(
    pool: Rows,
    y: Rows,
    clients: int,
    each: int,
    random: np.random.RandomState,
) -> list[Rows]:
    """`each` shards a client of the rows sorted by class (McMahan et al. 2017)."""
    count = clients * each
    if count > len(pool):
        raise ConfigError(
            f"--shards-per-client {each}: {clients} clients need {count} shards, but "
            f"there are only {len(pool)} images"
        )
    order = random.permutation(len(pool))
    order = order[np.argsort(y[order], kind="stable")]
    shards = np.array_split(pool[order], count)
    dealt = random.permutation(count).reshape(clients, each)
    return [np.concatenate([shards[i] for i in mine]) for mine in dealt]


def _quantities(
    rows: int, clients: int, alpha: float, random: np.random.RandomState
) -> Rows:
    """(clients,) sizes >= 1 that sum to `rows`, their shares drawn from a Dirichlet."""
    even = np.full(clients, 1 / clients)
    shares = _dirichlet(np.full(clients, alpha), even, random)
    sizes = 1 + random.multinomial(rows - clients, shares / shares.sum())
    return np.asarray(sizes, np.int64)


def long_tail(
    parts: Sequence[Rows], y: Rows, imbalance: float, random: np.random.RandomState
) -> list[Rows]:
    """The training rows of all clients thinned to a long tail over the classes.

    Of class c of C, `n_max * imbalance ** (-c / (C - 1))` rows stay, at most those that
    there are and at least one (Cui et al. 2019, arXiv 1901.05555); `y` (N,) are the
    labels of all rows.  The first class is the most frequent one.
    """
    rows = np.concatenate(parts)
    classes, counts = np.unique(y[rows], return_counts=True)
    steps = np.arange(len(classes)) / max(len(classes) - 1, 1)
    wanted = np.rint(counts.max(initial=0) * imbalance**-steps).astype(np.int64)
    shuffled = random.permutation(rows)
    kept = [
        shuffled[y[shuffled] == label][: max(1, int(count))]
        for label, count in zip(classes, wanted)
    ]
    left = np.concatenate([*kept, np.empty(0, np.int64)])
    return [part[np.isin(part, left)] for part in parts]


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
    """(C,) proportions; one alone where a tiny alpha underflows."""
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
