"""What does client-level privacy cost in accuracy?

    python -m benchmarks privacy --features DIR

A thousand iid clients of all domains but one, a tenth of them in each round, with more
and more noise; accuracy of the held-out domain and of the clients after the last round
against epsilon.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from benchmarks.accuracy.study import IidStudy, Place, Row, run_study, run_to_end
from benchmarks.command import measured_on, table
from fedclip_plugin.federation.evaluation import score_zero_shot
from fedclip_plugin.report.wording import percent, with_half
from fedclip_plugin.stats import ci95, mean

SHARE, CLIP = 0.1, 0.15
NOISE = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # 0: no clip, no noise


class Privacy(IidStudy):
    """A row for each noise and seed."""

    name = "privacy"
    rounds = 30
    clients = 1000

    def identity(self) -> Row:
        """With the clip and the share of clients in a round."""
        settings = super().identity()["settings"]
        return {"settings": {**settings, "share": SHARE, "clip": CLIP}}

    def grid(self) -> Iterator[tuple[Place, Callable[[], Row]]]:
        """Every noise with every seed."""
        for seed, noise in itertools.product(self.args.seeds, NOISE):
            yield ("runs", f"{noise:g} {seed}"), partial(self.row, noise, seed)

    def row(self, noise: float, seed: int) -> Row:
        """Scores after the last round, and epsilon."""
        options = {"participation": SHARE, "dp_noise_multiplier": noise}
        fed = self.dealt(seed, {**options, "dp_clip": CLIP if noise else 0.0})
        base: Row = score_zero_shot(fed.clients, fed.target, fed.task)
        result = run_to_end(fed).result
        return {
            "target": result.target,
            "clients": result.mean_test,
            "epsilon": result.epsilon,
            "zero_shot_target": base["target"],
            "zero_shot_clients": mean(base["clients"].values()),
        }

    @staticmethod
    def page(results: Row) -> str:
        """Noise down, epsilon and accuracies across."""
        s = results["settings"]

        def values(noise: float, name: str) -> list[float]:
            return [results["runs"][f"{noise:g} {seed}"][name] for seed in s["seeds"]]

        def cell(noise: float, name: str) -> str:
            scores = values(noise, name)
            return with_half(mean(scores), ci95(scores), " ± ")

        base = [mean(values(0.0, f"zero_shot_{k}")) for k in ("target", "clients")]
        body = [["zero-shot", "0", *map(percent, base)]]
        for noise in sorted(NOISE, reverse=True):
            epsilon = f"{values(noise, 'epsilon')[0]:.2f}" if noise else "no privacy"
            cells = [cell(noise, "target"), cell(noise, "clients")]
            body.append([f"{noise:g}", epsilon, *cells])
        lines = [
            "# Privacy of clients",
            "",
            f"`python -m benchmarks privacy` on {s['features']}, {s['target']} held "
            f"out: {s['clients']} iid clients of the other domains, {s['share']:.0%} "
            f"of them a round, {s['rounds']} rounds, preset best, `--dp-clip "
            f"{s['clip']}`, seeds {s['seeds']}; {measured_on(results['machine'])}.  "
            "Accuracy in per cent after the last round, ± the 95 % interval over "
            "seeds; epsilon at delta 1e-5, of all rounds together.  A client has one "
            "test image, so that column hangs on the seed's split.",
            "",
            *table(["noise multiplier", "epsilon", "held out", "clients"], body),
        ]
        return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    run_study(Privacy, __doc__, argv, clients=20)
