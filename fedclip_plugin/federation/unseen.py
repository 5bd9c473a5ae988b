"""Base to novel: accuracy on the classes that were trained on, and on unseen ones.

CoOp's protocol (Zhou et al. 2022, "Conditional Prompt Learning", table 2) with the
columns of federated prompt learning (Qiu et al. 2024, arXiv 2310.06123, section 4.1):

- local: each client's test images among the classes that it holds, mean over clients;
- base: the same images among all classes that were trained on;
- novel: all images of the unseen classes in the clients' domains, among these classes;
- harmonic: the harmonic mean of the three.

Of a held-out domain: base and novel, and their harmonic mean.  Where the data are with
the clients, each measures its own (:func:`of_client`), and the server makes the columns
of that (:func:`of_clients`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..algorithms import Algorithm, Client, Samples, Task, get_algorithm
from ..clip.prompts import captions
from ..features.feature_set import FeatureSet
from ..stats import harmonic_mean, mean
from ..wire.update import State
from .build import Federation
from .evaluation import all_scores, score_parts, score_target
from .metrics import accuracy

Columns = dict[str, float | None]
ACCURACIES = ("local", "novel", "zero_local", "zero_novel")
ROWS = "novel_rows"
"""What a client measures beside validation and test: accuracies, and how many images of
unseen classes they are of."""


def base_to_novel(
    fed: Federation, features: FeatureSet, target: str | None, state: State
) -> dict[str, Columns]:
    """The columns of ``zero_shot`` and of the ``result``; ``features`` have unseen."""
    unseen = features.unseen
    assert unseen is not None
    device = fed.task.text.device
    clients = _samples(unseen, [d for d in unseen.domains if d != target], device)
    held_out = None if target is None else _samples(unseen, [target], device)
    methods: dict[str, tuple[Algorithm, State]] = {
        "zero_shot": (get_algorithm("zeroshot"), {}),
        "result": (fed.algorithm, state),
    }
    return {
        name: _columns(fed, *method, unseen, clients, held_out)
        for name, method in methods.items()
    }


def cannot(algorithm: Algorithm) -> str | None:
    """Why ``algorithm`` has no accuracy on unseen classes, in a line; or None."""
    if not algorithm.open_vocabulary:
        return (
            f"--alg {algorithm.name} predicts only the classes that it was trained on: "
            "it has no accuracy on novel ones"
        )
    if algorithm.needs == "images":
        return f"--alg {algorithm.name} needs the images of novel classes: not scored"
    return None


def _columns(
    fed: Federation,
    algorithm: Algorithm,
    state: State,
    unseen: FeatureSet,
    clients: Samples,
    held_out: Samples | None,
) -> Columns:
    task = fed.task
    parts = [(algorithm.client_state(state, c), c.test) for c in fed.clients]
    found: Columns = {
        "local": mean(_local(algorithm, state, c, task) for c in fed.clients),
        "base": mean(score_parts(algorithm, parts, task)),
        "novel": None,
    }
    wider = None if cannot(algorithm) else of_classes(task, unseen)
    if wider is not None:
        found["novel"] = score_target(algorithm, state, clients, wider, fed.clients)
    found["harmonic"] = harmonic_mean(found.values())
    if held_out is not None:
        found |= _of_target(fed, algorithm, state, wider, held_out)
    return found


def _of_target(
    fed: Federation,
    algorithm: Algorithm,
    state: State,
    wider: Task | None,
    held_out: Samples,
) -> Columns:
    """The columns of the held-out domain, ``held_out`` being its unseen classes."""
    base = score_target(algorithm, state, fed.target, fed.task, fed.clients)
    novel = None
    if wider is not None:
        novel = score_target(algorithm, state, held_out, wider, fed.clients)
    harmonic = harmonic_mean([base, novel])
    return {"target_base": base, "target_novel": novel, "target_harmonic": harmonic}


def of_client(
    fed: Federation, features: FeatureSet, client: Client, state: State
) -> Columns:
    """What ``client`` measures of the columns; {} where all classes are trained on.

    ``features`` are those of its process: it scores all unseen images among them.
    """
    unseen = features.unseen
    if unseen is None:
        return {}
    rows = _samples(unseen, unseen.domains, fed.task.text.device)
    wider = of_classes(fed.task, unseen)
    found: Columns = {ROWS: len(rows)}
    methods: dict[str, tuple[Algorithm, State]] = {
        "": (fed.algorithm, state),
        "zero_": (get_algorithm("zeroshot"), {}),
    }
    for prefix, (algorithm, own) in methods.items():
        found[f"{prefix}local"] = _local(algorithm, own, client, fed.task)
        if cannot(algorithm) is None:
            novel = score_target(algorithm, own, rows, wider, [client])
            found[f"{prefix}novel"] = novel
    return found


def of_clients(
    fed: Federation,
    features: FeatureSet,
    state: State,
    scores: Mapping[str, Columns],
    zero_shot: Mapping[str, float | None],
) -> dict[str, Columns]:
    """The columns of what clients measured; {} where none did.

    ``scores`` are theirs of the best round, ``zero_shot`` the accuracies of their test
    splits.  Of the server's own held-out domain, if it has one, the columns are its.
    """
    measured = [each for each in scores.values() if each.get(ROWS)]
    if not measured:
        return {}
    tests = {name: each["test"] for name, each in scores.items()}
    found = {
        "zero_shot": _gathered(measured, "zero_", zero_shot),
        "result": _gathered(measured, "", tests),
    }
    unseen = features.unseen
    if unseen is None or fed.target is None:
        return found
    held_out = _samples(unseen, unseen.domains, fed.task.text.device)
    for name, algorithm in (
        ("zero_shot", get_algorithm("zeroshot")),
        ("result", fed.algorithm),
    ):
        own = state if name == "result" else {}
        wider = None if cannot(algorithm) else of_classes(fed.task, unseen)
        found[name] |= _of_target(fed, algorithm, own, wider, held_out)
    return found


def _gathered(
    measured: Sequence[Columns], prefix: str, tests: Mapping[str, float | None]
) -> Columns:
    """Means over clients; of the unseen images over all of them, each counted once."""
    novel = [(s.get(f"{prefix}novel"), s[ROWS] or 0) for s in measured]
    hits = [share * rows for share, rows in novel if share is not None]
    total = sum(rows for share, rows in novel if share is not None)
    found: Columns = {
        "local": mean(s.get(f"{prefix}local") for s in measured),
        "base": mean(tests.values()),
        "novel": sum(hits) / total if total else None,
    }
    found["harmonic"] = harmonic_mean(found.values())
    return found


def of_classes(task: Task, unseen: FeatureSet) -> Task:
    """``task`` with other classes: their text features, and tokens of their captions.

    Only an algorithm with ``open_vocabulary`` predicts by it.
    """
    text, clip = unseen.class_text.to(task.text.device), task.clip
    if clip is not None:
        tokens = clip.tokenize(captions(unseen.classes, clip.prompt))
        tokens = tokens.to(clip.tokens.device)
        clip = replace(clip, tokens=tokens, classes=unseen.classes)
    return replace(task, text=text, clip=clip)


def _local(
    algorithm: Algorithm, state: State, client: Client, task: Task
) -> float | None:
    """Test accuracy of ``client`` among the classes that it holds."""
    if not len(client.test):
        return None
    part = (algorithm.client_state(state, client), client.test)
    scores = all_scores(algorithm, [part], task)  # (N, C)
    held = torch.zeros(scores.shape[1], dtype=torch.bool, device=scores.device)
    for labels in _labels(client):
        held[labels] = True
    predicted = scores.masked_fill(~held, -torch.inf).argmax(dim=1)
    return accuracy(predicted, client.test.y)


def _labels(client: Client) -> Iterator[Tensor]:
    return (part.y for part in (client.train, client.val, client.test))


def _samples(
    features: FeatureSet, domains: Sequence[str], device: torch.device
) -> Samples:
    x = torch.cat([features.image[domain] for domain in domains])
    y = torch.cat([features.label[domain] for domain in domains])
    return Samples(x.to(device), y.to(device))
