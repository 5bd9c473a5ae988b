"""What a round costs: images counted from the split, seconds read off the log.

A round of the authors' code encodes, with its default batch of 32 (a last batch of
one is skipped in training):

- training: every client's training images, and a caption for each of them;
- evaluation: every client's training, validation and test images, and the whole
  held-out domain; each such call also encodes the captions of all classes.

So  seconds = train x T + evaluate x E + call x C  with T training images, E evaluated
images and C calls (10 with four domains).  ``fit_rates`` reads the three rates off the
times at which the authors' lines appear.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

PACS = {"art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929}
BATCH = 32
EPOCH, SCORE = "============ Train epoch", "Acc:"


@dataclass(frozen=True)
class RoundWork:
    """Images of one round: trained on, and evaluated, call by call as printed."""

    train: int
    calls: tuple[int, ...]

    @property
    def encoded(self) -> int:
        """Image encodings of the round."""
        return self.train + sum(self.calls)


@dataclass(frozen=True)
class Rates:
    """Seconds per training image, per evaluated image, and per evaluation call."""

    train: float
    evaluate: float
    call: float

    def seconds(self, work: RoundWork) -> float:
        """A round's seconds."""
        evaluate = self.evaluate * sum(work.calls) + self.call * len(work.calls)
        return self.train * work.train + evaluate


def round_work(sizes: Mapping[str, int], target: str) -> RoundWork:
    """The authors' 60/20/20 split of all domains but ``target``, as image counts."""
    splits = {d: (int(n * 0.6), int(n * 0.2), int(n * 0.2)) for d, n in sizes.items()}
    calls = [n for d in sizes if d != target for n in splits[d][:2]]
    calls += [sizes[d] if d == target else splits[d][2] for d in sizes]
    trained = (splits[d][0] for d in sizes if d != target)
    return RoundWork(sum(n - (n % BATCH == 1) for n in trained), tuple(calls))


def round_steps(lines: Sequence[tuple[float, str]]) -> list[list[float]]:
    """Seconds between the lines of each round, from (time, line) pairs.

    The first step holds the training of all clients and the first evaluation.
    """
    rounds: list[list[float]] = []
    last = 0.0
    for when, line in lines:
        if line.startswith(EPOCH):
            rounds.append([])
        elif SCORE in line and line.startswith(" ") and rounds:
            rounds[-1].append(when - last)
        else:
            continue
        last = when
    return rounds


def fit_rates(steps: Sequence[float], work: RoundWork) -> Rates:
    """Least squares over the evaluation calls; training is what is left."""
    if len(steps) != len(work.calls):
        raise ValueError(f"{len(steps)} steps for {len(work.calls)} evaluation calls")
    evaluate, call = _line(work.calls[1:], steps[1:])
    train = steps[0] - evaluate * work.calls[0] - call
    return Rates(max(train, 0.0) / work.train, evaluate, call)


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope and intercept; through the origin where the intercept is negative."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / (spread or 1.0)
    intercept = mean_y - slope * mean_x
    if slope <= 0 or intercept < 0:
        return mean_y / mean_x, 0.0
    return slope, intercept


def typical(rounds: Sequence[Sequence[float]], choose: str) -> list[float]:
    """Step by step the ``min`` or the ``median`` over the rounds."""
    pick = min if choose == "min" else median
    return [float(pick(step)) for step in zip(*rounds)]


def longer(seconds: float, rounds: Mapping[str, Sequence[float]], wanted: int) -> float:
    """Seconds of a run of ours with ``wanted`` rounds, from one with fewer.

    To the whole run come its median round for each round that is missing.
    """
    missing = (median(r) * (wanted - len(r)) for r in rounds.values())
    return seconds + sum(missing)
