"""``gda`` in one private release: how noise is split, and what the noisy sums become.

Example-level differential privacy by the Gaussian mechanism; neighbours are federations
of which one has a training row more.  A row ``x`` of unit length and label ``y`` adds
``e_y`` to the counts, ``e_y x'`` to the sums and ``x x'`` to the second moment, each of
length 1.  What is released is ``(a counts, b sums, c second)`` with ``a^2 + b^2 + c^2 =
1`` plus N(0, z^2) in every coordinate: sensitivity 1.  Of the symmetric ``second`` the
coordinates are those of an isometry, off-diagonals times sqrt(2) in the packed triangle
(Dwork et al. 2014, "Analyze Gauss", has them plain), so that the noise there is smaller
by as much.  ``z`` is that of Balle and Wang 2018, arXiv 1805.06530.

**Split.**  The rule is ridge regression of labels on rows, ``second B = sums'``, up to
a rescaling.  To first order noise changes ``B`` by ``second^-1 (d sums' - d second
B)``: column by column of the bracket a variance of ``z^2 / b^2`` and ``z^2 |B_c|^2 /
(2 c^2)`` in each of D coordinates, and one of ``z^2 / a^2`` in the one that belongs to
the intercept.  Their sum is least for ``a^2 : b^2 : c^2 = 1 / sqrt(D) : 1 : |B_c| /
sqrt(2)``.  ``|B_c|`` is 1 where classes are orthogonal, and sqrt(D / C) where the C of
them lie no further apart than directions of isotropic rows: the geometric mean stands
for it, ``(D / C)^(1/4)``.  The number of rows cancels.

**After noise**, all from the noisy release and text (C, D), which costs no privacy:

- counts are at least their noise's standard deviation; their sum stands for N;
- class means shrink towards ``m + k (t_c - t)``, the common mean and the centred text
  features on the scale ``k`` of least squares, by the empirical-Bayes ratio ``v / (v +
  r_c^2)`` of what noise of known variance ``r_c^2`` leaves unexplained (Morris 1983);
- the covariances in ``W`` of the direction of ``m`` and the others, which the noise of
  ``m`` spoils most, shrink by James and Stein's ratio;
- ``W`` gets the eigenvalues that are best for its noisy eigenvectors (Bun, Allez,
  Bouchaud and Potters 2016, arXiv 1502.06736, sec. V): ``w_i - 2 s^2 sum_j (w_i - w_j)
  / ((w_i - w_j)^2 + s^2)`` with ``s`` the noise off the diagonal, made monotone by
  isotonic regression and at least ``s sqrt(D)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..server import privacy
from ..wire.update import State
from .base import Task
from .statistics import Statistics, unpacked

LEAST_COUNT = 1e-12  # of a class, where noise is none


@dataclass(frozen=True)
class Noise:
    """Standard deviations: of a count, in a sum, and off the diagonal of ``second``."""

    counts: float
    sums: float
    second: float


def epsilon_of(task: Task) -> float | None:
    """What was asked for; methods that build on ``gda`` may not know of it."""
    epsilon: float | None = getattr(task.params, "epsilon", None)
    return epsilon


def cost(task: Task) -> float | None:
    """The epsilon of the one release, by the accountant from its noise."""
    if (epsilon := epsilon_of(task)) is None:
        return None
    delta = task.privacy.dp_delta
    multiplier = privacy.multiplier_for(epsilon, delta)
    return float(privacy.accountant().get_epsilon_gaussian(multiplier, delta))


def check(task: Task) -> None:
    """Refuse what one row could change by more, or more often, than noise hides.

    Raises ConfigError, which names the option.
    """
    if (epsilon := epsilon_of(task)) is None:
        return
    if task.privacy.private:
        raise ConfigError(
            "--gda-epsilon hides examples, --dp-noise-multiplier clients: choose one"
        )
    needed = [
        ("rounds", task.train.rounds, 1),
        ("weighting", task.server.weighting, "examples"),
        ("aggregation", task.server.aggregation, "mean"),
        ("compress", task.wire.compress, "none"),
    ]
    for name, value, allowed in needed:
        if value != allowed:
            raise ConfigError(
                f"--{name} {value} does not go with --gda-epsilon (docs/privacy.md "
                f"tells why): expected {allowed}"
            )
    privacy.multiplier_for(epsilon, task.privacy.dp_delta)


def released(mean: State, rows: float, task: Task, epsilon: float) -> tuple[State, int]:
    """The state that the noisy sums behind a ``mean`` over ``rows`` call for; and the
    number of rows that it tells."""
    exact = Statistics(
        rows,
        (mean["share"].double() * rows).round(),
        mean["sums"].double() * rows,
        unpacked(mean["second"]) * rows,
    )
    config, text = task.privacy, task.text.double()
    classes, dim = text.shape
    noise = noise_of(classes, dim, privacy.multiplier_for(epsilon, config.dp_delta))
    noisy = release(exact, noise, privacy.noise_entropy(config, task.seed, 1))
    plausible = denoised(noisy, noise, text)
    return plausible.to_state(mean), int(plausible.rows)


def hiding_clients(noisy: State, cohort: int, task: Task) -> State:
    """What lies behind the ``noisy`` mean of a cohort.

    How many rows there are, and what is chosen by them, is not known of it.
    """
    found = Statistics(
        cohort,
        noisy["share"].double() * cohort,
        noisy["sums"].double() * cohort,
        unpacked(noisy["second"]) * cohort,
    )
    of_sums = cohort * privacy.noise_scale(task.privacy, cohort)
    plausible = denoised(found, Noise(of_sums, of_sums, of_sums), task.text.double())
    after = plausible.to_state(noisy)
    of_rows = ("hits", "row_weight", "chosen")
    return {k: torch.zeros_like(v) if k in of_rows else v for k, v in after.items()}


def split(classes: int, dim: int) -> tuple[float, float, float]:
    """a, b and c of the module's docstring; their squares add up to 1."""
    slope = max(1.0, dim / classes) ** 0.25
    parts = (dim**-0.5, 1.0, slope / math.sqrt(2))
    a, b, c = (math.sqrt(part / sum(parts)) for part in parts)
    return a, b, c


def noise_of(classes: int, dim: int, multiplier: float) -> Noise:
    """The noise of a release, ``multiplier`` times its sensitivity."""
    a, b, c = split(classes, dim)
    return Noise(multiplier / a, multiplier / b, multiplier / (c * math.sqrt(2)))


def release(
    exact: Statistics, noise: Noise, entropy: Sequence[int] | None
) -> Statistics:
    """``exact`` sums and the noise; ``entropy`` seeds it, None: the system's."""
    row, column = torch.triu_indices(*exact.second.shape)
    like = {"counts": exact.counts, "sums": exact.sums, "second": row}
    drawn = {
        k: v.to(exact.sums) for k, v in privacy.standard_normal(like, entropy).items()
    }
    upper = torch.zeros_like(exact.second)
    upper[row, column] = drawn["second"]
    off = upper.triu(1)
    symmetric = off + off.t() + math.sqrt(2) * upper.diagonal().diag()
    counts = exact.counts + noise.counts * drawn["counts"]
    return Statistics(
        float(counts.sum()),
        counts,
        exact.sums + noise.sums * drawn["sums"],
        exact.second + noise.second * symmetric,
    )


def denoised(noisy: Statistics, noise: Noise, text: Tensor) -> Statistics:
    """Plausible statistics behind ``noisy`` ones, by the module's docstring.

    ``text`` (C, D) are the features of the class names.  Counts and all else scale
    together: means over rows serve as well as sums.  Without noise nothing changes.
    """
    counts = noisy.counts.clamp_min(max(noise.counts, LEAST_COUNT))
    total = counts.sum()
    share = counts / total
    means = noisy.sums / counts[:, None]
    means = means / means.norm(dim=1, keepdim=True).clamp_min(1)  # of unit rows
    variance = (noise.sums / counts).square()  # (C,) of a coordinate of a mean
    within = noisy.second / total - (means.t() * share) @ means
    within = within + (share * variance).sum() * torch.eye(len(within)).to(within)
    per_mean = math.sqrt(len(counts)) * noise.sums / float(total)
    within = _without_cross(within, share @ means, per_mean, noise.second / total)
    means, left = _shrunk_means(means, counts, variance, text.to(means))
    within = shrunk_covariance(within, noise.second / float(total))
    within.diagonal().add_((share * left).sum())
    second = within + (means.t() * share) @ means
    rows = float(max(1, round(float(total))))
    return Statistics(rows, counts, counts[:, None] * means, total * second)


def _without_cross(
    within: Tensor, mean: Tensor, of_mean: float, of_second: Tensor
) -> Tensor:
    """``within`` with its covariances of ``mean``'s direction and the others shrunk.

    Features lie in a cone: ``mean`` (D,) is long, and noise in it, whose square is
    subtracted, is what most spoils ``within``.  Positive-part James-Stein;
    ``of_mean`` and ``of_second`` are the noise's standard deviations.
    """
    length = mean.norm().clamp_min(LEAST_COUNT)
    along = mean / length
    cross = within @ along
    own = along @ cross
    cross = cross - own * along  # (D,), orthogonal to along
    noisy = len(mean) * ((of_mean * length).square() + of_second.square())
    ratio = 1 - noisy / cross.square().sum().clamp_min(1e-300)
    both = torch.outer(along, cross)
    cleaned: Tensor = within - (1 - ratio.clamp(0, 1)) * (both + both.t())
    return cleaned


def _shrunk_means(
    means: Tensor, counts: Tensor, variance: Tensor, text: Tensor
) -> tuple[Tensor, Tensor]:
    """Posterior means (C, D) of the classes, and variance (C,) of a coordinate."""
    weight = counts.square() / counts.square().sum()  # by precision
    centre = (counts / counts.sum()) @ means
    named = text - (counts / counts.sum()) @ text
    length = (weight * named.square().sum(dim=1)).sum().clamp_min(LEAST_COUNT)
    scale = (weight * ((means - centre) * named).sum(dim=1)).sum() / length
    least = ((weight.square() * variance * named.square().sum(dim=1)).sum()).sqrt()
    prior = centre + torch.maximum(scale, least / length) * named
    rest = means - prior
    excess = rest.square().mean(dim=1) - variance
    between = (weight * excess).sum().clamp_min(0)
    both = between + variance
    ratio = torch.where(both > 0, between / both.clamp_min(1e-300), 1.0)
    return prior + ratio[:, None] * rest, ratio * variance


def shrunk_covariance(noisy: Tensor, noise: float) -> Tensor:
    """What lies behind a ``noisy`` (D, D) covariance, where it is ``noise`` off it.

    Its eigenvectors stay.  The least eigenvalue is the root mean square of those of the
    noise alone, ``noise sqrt(D)``, unless their mean is less: what is best on average
    over directions that noise has mixed is far too small for the wider ones of them,
    and a rule that trusts it falls apart on rows of a domain that it has not seen.
    """
    if noise <= 0:
        return noisy.clone()
    values, vectors = torch.linalg.eigh(noisy)
    apart = values[:, None] - values
    pull = (apart / (apart.square() + noise**2)).sum(dim=1)
    values = isotonic(values - 2 * noise**2 * pull)
    mean = float(values.mean())
    floor = noise * math.sqrt(len(values))
    values = values.clamp_min(min(floor, mean) if mean > 0 else floor)
    nearer: Tensor = (vectors * values) @ vectors.t()
    return nearer


def isotonic(values: Tensor) -> Tensor:
    """The non-decreasing (N,) nearest to ``values``: max over i <= k of min over j >= k
    of the means of ``values[i..j]``."""
    at = torch.arange(len(values), device=values.device)
    sums = torch.cat([values.new_zeros(1), values.cumsum(0)])
    means = (sums[None, 1:] - sums[:-1, None]) / (at[None] - at[:, None] + 1)
    means = torch.where(at[None] >= at[:, None], means, math.inf)
    least = means.flip(1).cummin(dim=1).values.flip(1)  # over j >= k
    least = torch.where(at[None] >= at[:, None], least, -math.inf)
    nearest: Tensor = least.cummax(dim=0).values.diagonal().clone()
    return nearest
