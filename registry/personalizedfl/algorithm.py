"""PersonalizedFL: ``main.py --alg fedclip`` in the repository, or without touching it.

    fedclip register personalizedfl DIR     # then: python main.py --alg fedclip
    python -m fedclip_plugin.registry.personalizedfl_host DIR/main.py --alg fedclip ...

The host owns the loop, the split and the tables; see docs/personalizedfl.md.
"""

from __future__ import annotations

import argparse
import atexit
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from torch import nn

from ...algorithms import Algorithm, Client, Samples, Task, get_algorithm
from ...errors import ConfigError
from ...federation.build import Federation, check_together
from ...federation.downlink import broadcast
from ...federation.engine import Round
from ...federation.evaluation import score_rows, zero_shot_labels
from ...federation.metrics import accuracy
from ...federation.rounds import as_sent, measured
from ...report.console import print_table
from ...runs.host_run import HostRun, Setup
from ...wire.update import ClientUpdate, State
from .images import open_images
from .repository import register
from .start import clear_errors, fit, run_main, say, settings_of

__all__ = ["PersonalizedFedClip", "main", "prepare", "register"]


@dataclass
class _Local:
    """A client in the current round: where it started and what it came to."""

    start: State
    epochs: int
    update: ClientUpdate


class _Site:
    """The loaders of a client, known only by the calls that bring them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.train: Any = None
        self.others: list[Any] = []  # in the order of their evaluation: val, test

    def saw(self, loader: Any) -> None:
        """Keep a loader that came to be evaluated."""
        if len(self.others) < 3 and not any(loader is known for known in self.others):
            self.others.append(loader)

    def parts(self) -> list[Any]:
        """Loaders of training, validation and test images, None where unknown."""
        rest = [loader for loader in self.others if loader is not self.train]
        return [self.train, *rest, None, None][:3]


class PersonalizedFedClip:
    """PersonalizedFL's contract: it trains, aggregates and evaluates when told to.

    ``client_model`` (a list) and ``server_model`` are adapters alone, with the authors'
    keys; the frozen CLIP is loaded once, for the images that are not in the cache.
    """

    @clear_errors()
    def __init__(self, args: argparse.Namespace) -> None:
        config, out, log = settings_of(args)
        self._images = open_images(args, config)
        features, device = self._images.features, self._images.y.device
        algorithm = get_algorithm(config.algorithm)
        check_together(config, algorithm)
        if config.train.augment != "none" or (
            type(algorithm).answer_like is not Algorithm.answer_like
        ):
            raise ConfigError(
                "PersonalizedFL's clients pass on models alone, and neither the "
                "Gaussians of fedpft nor the moments of --augment are one: use "
                "`fedclip run`"
            )
        text = features.class_text.to(device)
        params, scale = algorithm.Params(), features.logit_scale
        task = Task.of(config, params, text, scale, config.seeds[0])
        fed = Federation(algorithm, task, (), None)
        self.run = HostRun(Setup(config, features, fed, None), out, log=log)
        names = getattr(args, "domains", None)
        self._sites = [
            _Site(names[i] if names else f"client-{i:03d}")
            for i in range(args.n_clients)
        ]
        self._summary: dict[str, Any] | None = None  # {} once it is printed
        self._round: int | None = None
        self._locals: dict[int, _Local] = {}
        self._opened: Round | None = None  # not yet aggregated
        self._pending: Round | None = None  # not yet evaluated
        self._awaited: set[int] = set()  # clients not yet validated in this round
        self._empty: set[str] = set()
        self.server_model = self._adapter(self.run.state)
        self.client_model = [self._adapter(self.run.state) for _ in self._sites]
        self._tell_zero_shot()
        atexit.register(self._print_results)

    def _adapter(self, state: State) -> nn.Module:
        fed = self.run.fed
        return fed.algorithm.module(state, fed.task)

    def _tell_zero_shot(self) -> None:
        """The frozen CLIP on all images of each domain, before any training."""
        features, start, lines = self._images.features, 0, []
        for domain in features.domains:
            rows = slice(start, start + len(features.label[domain]))
            part = Samples(self._images.x[rows], self._images.y[rows])
            labels = zero_shot_labels(part, self.run.fed.task)
            lines.append(f"{domain} {accuracy(labels, part.y) or 0:.4f}")
            start = rows.stop
        print(f"Zero-shot CLIP, all images: {', '.join(lines)}", flush=True)

    # -- the host's calls --------------------------------------------------------------

    @clear_errors()
    def client_train(
        self, c_idx: int, dataloader: Any, round: int
    ) -> tuple[float, float]:
        """One more local epoch of a client; its loss (the paper's) and accuracy.

        The w-th call of a round trains w epochs from the round's start, so that the
        optimizer's state lasts over them, as in ``--local-epochs w``.
        """
        if round != self._round:
            self._close_round()
            self._round, self._locals = round, {}
            self._opened = self.run.open_round()
        self._sites[c_idx].train = dataloader
        client, fed = self._client(c_idx), self.run.fed
        before = self._locals.get(c_idx)
        start = before.start if before else self._start(c_idx)
        epochs = before.epochs + 1 if before else 1
        train = replace(fed.task.train, local_epochs=epochs)
        task = replace(fed.task, train=train)
        client = client.with_kept(self.run.now.kept)
        (update,) = fed.algorithm.local_round(start, [client], task, round + 1)
        self._locals[c_idx] = _Local(start, epochs, update)
        self.client_model[c_idx].load_state_dict(update.state)
        client = replace(client, kept={**client.kept, **update.kept})
        own = fed.algorithm.client_state(dict(update.state), client)
        _, right = score_rows(fed, own, client.train)
        return update.metrics.get("loss", math.nan), right

    def _start(self, c_idx: int) -> State:
        """What a client trains from: its model, unless that is an average of rounds."""
        if self._opened is not None and self.run.fed.task.server.server_ema:
            return {key: v.clone() for key, v in self._opened.sent.seen.items()}
        return state_of(self.client_model[c_idx])

    @clear_errors()
    def server_aggre(self) -> None:
        """The mean of the sound adapters, to the server and to every client."""
        self._close_round()
        trained = sorted(self._locals.items())
        updates = [
            replace(local.update, state=state_of(self.client_model[i]))
            for i, local in trained
        ]
        names = [local.update.client for _, local in trained]
        run, opened = self.run, self._opened or self.run.open_round()
        clients = [self._client(i).with_kept(opened.kept) for i, _ in trained]
        updates = measured(run.fed, opened.sent.seen, clients, updates)
        updates = as_sent(run.fed, opened.sent.seen, updates, opened.kept)
        run.aggregate(opened, updates, names)
        self._opened, self._pending, self._locals = None, opened, {}
        self._awaited = set(range(len(self._sites)))
        state = broadcast(run.fed, run.judged(opened)).seen
        self.server_model.load_state_dict(state)
        damaged = {bad.client for bad in opened.screened.quarantined}
        for i, site in enumerate(self._sites):
            if site.name in damaged:  # whatever stands there now is not an adapter
                self.client_model[i] = self._adapter(state)
            self.client_model[i].load_state_dict(state)

    @clear_errors()
    def client_eval(self, c_idx: int, dataloader: Any) -> tuple[float, float]:
        """Mean cross-entropy over the classes, and accuracy, of a client's adapter.

        The host validates all clients after each round, and shows the loaders of the
        test images with the first round that is the best so far: then all is known.
        NaN for a loader without rows; 0 for an empty validation split, which would
        otherwise keep the host from ever choosing a best round.
        """
        site = self._sites[c_idx]
        site.saw(dataloader)
        loss, right = self._score(self._own_state(c_idx), dataloader)
        validation = dataloader is site.parts()[1]
        if validation:
            self._awaited.discard(c_idx)
        if not self._awaited and self._know_all_loaders():
            self._close_round()
        if math.isnan(right):
            self._warn_empty(site.name)
            return (0.0, 0.0) if validation else (loss, right)
        return loss, right

    def _know_all_loaders(self) -> bool:
        return all(None not in site.parts() for site in self._sites)

    @clear_errors()
    def server_eval(self, dataloader: Any) -> tuple[float, float]:
        """The same of the server's adapter."""
        return self._score(state_of(self.server_model), dataloader)

    def _own_state(self, c_idx: int) -> State:
        """What a client predicts with: its model, and what it keeps if that does."""
        kept = self._pending.kept if self._pending else self.run.now.kept
        client = self._client(c_idx).with_kept(kept)
        return self.run.fed.algorithm.client_state(
            state_of(self.client_model[c_idx]), client
        )

    def _score(self, state: State, loader: Any) -> tuple[float, float]:
        return score_rows(self.run.fed, state, self._images.samples(loader))

    def _warn_empty(self, name: str) -> None:
        if name not in self._empty:
            hint = "" if self._empty else (
                " (of image folders, --datapercent above 0.4 leaves too few to test on)"
            )  # fmt: skip
            say(f"warning: no image in a split of {name}: accuracy unknown{hint}")
            self._empty.add(name)

    # -- what is written down ----------------------------------------------------------

    def _client(self, c_idx: int) -> Client:
        parts = [self._samples(loader) for loader in self._sites[c_idx].parts()]
        return Client(self._sites[c_idx].name, c_idx, *parts)

    def _samples(self, loader: Any) -> Samples:
        if loader is None:
            return Samples(self._images.x[:0], self._images.y[:0])
        return self._images.samples(loader)

    def _close_round(self) -> None:
        """Record a round, and write the results after the last one."""
        if self._pending is None:
            return
        clients = tuple(self._client(i) for i in range(len(self._sites)))
        self.run.fed = replace(self.run.fed, clients=clients)
        opened, self._pending = self._pending, None
        summary, self._summary = self._summary, {}  # nothing is left to say of an error
        self.run.close_round(opened)
        if self.run.done == self.run.fed.task.train.rounds:
            summary = self.run.finish()
        self._summary = summary

    @clear_errors()
    def finish(self) -> None:
        """Write what is left to write, and print zero-shot beside the result."""
        self._close_round()
        if self._summary is None and self.run.done:
            self._summary = self.run.finish()
        self._print_results()

    def _print_results(self) -> None:
        """At exit, after the host's last line; once.

        Nothing is computed here: at exit no library can be loaded any more.
        """
        atexit.unregister(self._print_results)
        summary, self._summary = self._summary, {}
        if summary:
            print_table(Console(), [summary])
        elif summary is None and self.run.done:
            rounds = self.run.fed.task.train.rounds
            say(f"ended before round {rounds} was evaluated: no summary")
        if summary and self.run.directory is not None:
            say(f"results: {self.run.directory}")


def state_of(model: nn.Module) -> State:
    """A copy of a module's tensors."""
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def prepare() -> None:
    """What alg/fedclip.py calls before main.py looks for its algorithm."""
    fit(PersonalizedFedClip)


def main(argv: Sequence[str]) -> None:
    """Run a ``main.py`` that need not know fedclip; exits with code 2 on bad input."""
    with clear_errors():
        for value in run_main(argv, PersonalizedFedClip).values():
            if isinstance(value, PersonalizedFedClip):
                value.finish()
