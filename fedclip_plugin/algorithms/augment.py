"""``--augment ggeur``: a method that trains on features trains on drawn ones too.

Ma et al. 2025, "Geometric Knowledge-Guided Localized Global Distribution Alignment for
Federated Learning", CVPR 2025, arXiv 2503.06457.  In the first round client ``i`` sends
of its raw features of class ``c`` their number, mean and covariance, and the server
puts together what all rows have, by the parallel-axis theorem::

    mu_c = sum_i n_ic mu_ic / n_c
    S_c  = sum_i n_ic (S_ic + (mu_ic - mu_c)(mu_ic - mu_c)') / n_c
         = sum_m lambda_m xi_m xi_m',   lambda_1 >= lambda_2 >= ...

From the second round on the factors ``lambda_m xi_m`` (C, R, D) and means (C, D) go
down beside the method's own state, and a client trains on rows drawn from its seed::

    x + sum_m eps_m lambda_m xi_m,   eps_m ~ N(0, 1)

as many a class as ``--augment-per-class`` says, for the classes that it has; and with
``--augment-prototypes`` around ``mu_c``, for all classes.  What goes up then is the
method's own.  Clients keep nothing: who comes late is served as all others are.

Two departures: ``R`` directions travel, not all ``D``; and the one prototype of a class
is its mean over all clients, not the mean of each other domain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import ConfigError
from ..wire.update import ClientUpdate, State
from .base import Algorithm, Client, RoundAlgorithm, Samples, Task, generator_of
from .statistics import packed, unpacked

OURS = "ggeur."  # before the names of what is not the method's
READY, FACTORS, MEANS = OURS + "ready", OURS + "factors", OURS + "means"
SPREAD, CUT = OURS + "spread", OURS + "cut"
SHARE, COVARIANCES = OURS + "share", OURS + "covariances"
LARGEST = 1 << 30  # bytes of covariances that a client sends
_DRAW = 0x66E  # keeps this draw apart from the sample orders


class Augmented(RoundAlgorithm):
    """A method, and around it the round that finds the classes' spread.

    State: the method's, and ``ggeur.ready`` (1,) int64, whether the spread is found,
    ``ggeur.factors`` (C, R, D), ``ggeur.means`` (C, D) and, on the server alone,
    ``ggeur.spread`` (C,) tr(S_c) and ``ggeur.cut`` (C,), what R directions leave of it.
    """

    averages = False

    def __init__(self, inner: Algorithm) -> None:
        _check(inner)
        self.inner = inner
        self.name, self.trains, self.source = inner.name, inner.trains, inner.source
        self.needs, self.needs_clip = inner.needs, inner.needs_clip
        self.transductive, self.personal = inner.transductive, inner.personal
        self.rows_at_once = inner.rows_at_once
        self.text_at_server = inner.text_at_server

    def init(self, task: Task) -> State:
        """The method's first state, and no spread yet."""
        if task.train.rounds < 2:
            raise ConfigError(
                "--augment ggeur takes the first round for the classes' spread: "
                "--rounds 2 at least"
            )
        classes, dim = task.text.shape
        if (size := 2 * classes * dim * (dim + 1)) > LARGEST:
            raise ConfigError(
                f"--augment ggeur: {classes:,} covariances of {dim:,} features are "
                f"{size / 2**30:.1f} GiB a client; at most {LARGEST / 2**30:g}"
            )
        new, rank = task.text.new_zeros, min(task.train.augment_rank, dim)
        return {
            **self.inner.init(task),
            READY: new(1, dtype=torch.int64),
            FACTORS: new(classes, rank, dim),
            MEANS: new(classes, dim),
            SPREAD: new(classes),
            CUT: new(classes),
        }

    def update_like(self, state: State) -> State:
        """The method's own and, once it is found, the spread."""
        sent = dict(self.inner.update_like(_inner(state)))
        if READY in state:
            ready = bool(state[READY])
            keys = (READY, FACTORS, MEANS) if ready else (READY,)
            sent |= {key: state[key] for key in keys}
        return sent

    def answer_like(self, sent: State, task: Task) -> State:
        """Moments of every class in the first round, then what the method answers."""
        if not _asks_for_moments(sent):
            return self.inner.answer_like(_inner(sent), task)
        classes, dim = task.text.shape
        new = task.text.new_zeros
        return {
            SHARE: new(classes),
            MEANS: new(classes, dim),
            COVARIANCES: new(classes, dim * (dim + 1) // 2),
        }

    def model_of(self, sent: State) -> State:
        """The method's own."""
        return self.inner.model_of(_inner(sent))

    def local_round(
        self, state: State, clients: Sequence[Client], task: Task, round_number: int
    ) -> list[ClientUpdate]:
        """One client after the other: drawn rows are many."""
        if _asks_for_moments(state):
            like = self.answer_like(state, task)
            return [_moments(client, like) for client in clients]
        own, train = _inner(state), self.inner.local_round
        updates = []
        for client in clients:
            if FACTORS in state:
                rows = augmented(client.train, client.index, state, task)
                client = replace(client, train=rows)
            updates += train(own, [client], task, round_number)
        return updates

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: State, task: Task
    ) -> State:
        """The spread over all clients, or the method's own step."""
        if _asks_for_moments(state):
            return {**state, **spread(updates, state, task)}
        return {**state, **self.inner.aggregate(updates, _inner(state), task)}

    def predict(self, state: State, x: Tensor, task: Task) -> Tensor:
        """The method's scores."""
        return self.inner.predict(_inner(state), x, task)

    def inputs(self, samples: Samples, task: Task) -> Tensor:
        """The method's."""
        return self.inner.inputs(samples, task)

    def client_state(self, state: State, client: Client) -> State:
        """The method's."""
        return self.inner.client_state(_inner(state), client)

    def target_states(self, state: State, clients: Sequence[Client]) -> list[State]:
        """The method's."""
        return self.inner.target_states(_inner(state), clients)

    def remarks(
        self, state: State, clients: Sequence[Client], task: Task
    ) -> Sequence[str]:
        """What is cut, and which classes have no spread."""
        lines = list(self.inner.remarks(_inner(state), clients, task))
        if not bool(state.get(READY, torch.zeros(1))):
            return lines
        total, cut = float(state[SPREAD].sum()), float(state[CUT].sum())
        if cut > 0.005 * total:
            rank = state[FACTORS].shape[1]
            lines.append(
                f"ggeur: {rank} directions a class hold {1 - cut / total:.1%} of the "
                "features' spread, the rest is cut: --augment-rank"
            )
        if alike := int((state[SPREAD] == 0).sum()):
            lines.append(
                f"ggeur: {alike:,} classes have no two unlike rows in the first round: "
                "nothing is drawn of them but copies"
            )
        return lines


def _check(inner: Algorithm) -> None:
    why = ""
    if not inner.communicates:
        why = "sends nothing to a server, which would find the classes' spread"
    elif not (inner.moves and inner.averages):
        why = "trains nothing on the clients"
    elif inner.needs == "images":
        why = "trains on images, of which no further ones can be drawn"
    if why:
        raise ConfigError(f"--augment ggeur: --alg {inner.name} {why}")


def _inner(state: State) -> State:
    return {key: v for key, v in state.items() if not key.startswith(OURS)}


def _asks_for_moments(sent: State) -> bool:
    return READY in sent and not bool(sent[READY])


def _moments(client: Client, like: State) -> ClientUpdate:
    """Share, mean and covariance of the client's rows of every class."""
    moments = {key: torch.zeros_like(value) for key, value in like.items()}
    x, y = client.train.x.double(), client.train.y
    for c in y.unique().tolist():
        part = x[y == c]
        gap = part - part.mean(dim=0)
        moments[SHARE][c] = len(part) / len(y)
        moments[MEANS][c] = part.mean(dim=0)
        moments[COVARIANCES][c] = packed(gap.t() @ gap / len(part))
    return ClientUpdate(client.name, moments, len(y))


def spread(updates: Sequence[ClientUpdate], state: State, task: Task) -> State:
    """What ``ggeur.`` keys become of the clients' moments; {} without any row."""
    ordered = sorted((u for u in updates if u.num_examples > 0), key=lambda u: u.client)
    if not ordered:
        return {}
    after = {key: torch.zeros_like(state[key]) for key in (FACTORS, MEANS, SPREAD, CUT)}
    rank = state[FACTORS].shape[1]
    for c in range(len(task.text)):
        counts = [float((u.num_examples * u.state[SHARE][c]).round()) for u in ordered]
        parts = [(n, u.state) for n, u in zip(counts, ordered) if n > 0]
        if not parts:
            continue
        mean, covariance = pooled(
            [n for n, _ in parts],
            [s[MEANS][c].double() for _, s in parts],
            [unpacked(s[COVARIANCES][c]) for _, s in parts],
        )
        values, vectors = torch.linalg.eigh(covariance)
        values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
        length = values if task.train.augment_scale == "eigenvalue" else values.sqrt()
        after[MEANS][c] = mean
        after[FACTORS][c] = (vectors * length)[:, :rank].t()
        after[SPREAD][c] = values.sum()
        after[CUT][c] = values[rank:].sum()
    return {**after, READY: torch.ones_like(state[READY])}


def pooled(
    counts: Sequence[float], means: Sequence[Tensor], covariances: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of all rows from those of parts; float64."""
    total, mean = sum(counts), torch.zeros_like(means[0])
    for n, part in zip(counts, means):
        mean += n / total * part
    covariance = torch.zeros_like(covariances[0])
    for n, part, own in zip(counts, means, covariances):
        covariance += n / total * (own + torch.outer(part - mean, part - mean))
    return mean, covariance


def augmented(own: Samples, place: int, state: State, task: Task) -> Samples:
    """The rows of a client and what it draws: a function of seed and ``place``."""
    generator = generator_of(task.seed, _DRAW, place)
    drawn = [(own.x, own.y), *_drawn(own, state, task, generator)]
    x, y = (torch.cat(parts) for parts in zip(*drawn))
    return Samples(x, y)


def _drawn(
    own: Samples, state: State, task: Task, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    per_class, beside = task.train.augment_per_class, task.train.augment_prototypes
    for c, factors in enumerate(state[FACTORS]):
        rows = own.x[own.y == c]
        if not bool(factors.any()) or (len(rows) == 0 and not beside):
            continue
        wanted = max(0, per_class - len(rows)) if len(rows) else 0
        turn = torch.arange(wanted, device=rows.device) % max(1, len(rows))
        start = torch.cat([rows[turn], state[MEANS][c].expand(beside, -1)])
        noise = torch.randn(len(start), len(factors), generator=generator)
        x = start + noise.to(start) @ factors
        yield x, torch.full((len(x),), c, dtype=own.y.dtype, device=own.y.device)
