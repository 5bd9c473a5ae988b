"""The mean that every stage uses; None, what could not be measured, is left out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import stdev


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None when there is none."""
    present = [v for v in values if v is not None]
    return sum(present) / len(present) if present else None


def harmonic_mean(values: Iterable[float | None]) -> float | None:
    """Harmonic mean of values >= 0; None where one is None, or where there is none."""
    numbers: list[float] = []
    for value in values:
        if value is None:
            return None
        numbers.append(value)
    if not numbers or min(numbers) <= 0:
        return 0.0 if numbers else None
    return len(numbers) / sum(1 / number for number in numbers)


def ci95(values: Iterable[float | None]) -> float | None:
    """Half-width of the mean's 95 % confidence interval; None with fewer than 2."""
    present = [v for v in values if v is not None]
    if len(present) < 2:
        return None
    from scipy.special import stdtrit  # slow to import, and seldom needed

    quantile = float(stdtrit(len(present) - 1, 0.975))  # of Student's t
    return quantile * stdev(present) / math.sqrt(len(present))
