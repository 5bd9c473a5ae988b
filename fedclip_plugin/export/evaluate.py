"""A run's state on other data, or other classes: ``fedclip evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..algorithms import Algorithm, Samples, Task, get_algorithm
from ..config.schema import RunConfig
from ..data.doubts import one_class
from ..data.listing import some
from ..errors import ConfigError, WeightsError
from ..features.choice import of_classes
from ..features.feature_set import FeatureSet
from ..federation.evaluation import predict_scores
from ..federation.metrics import accuracy, class_metrics
from ..ops.kernels import resolve_device
from ..stats import mean
from ..storage.shapes import cleaned
from ..wire.update import State, on_device
from .predict import check_predicts, closed
from .trained import Trained, read_trained


def evaluate(
    directory: Path,
    config: RunConfig,
    features: FeatureSet,
    *,
    state: str | Path = "best",
    client: str | None = None,
) -> dict[str, Any]:
    """Accuracy and class metrics of every domain of ``features``, zero-shot beside.

    ``config`` is that of the run in ``directory``; ``state`` which of its states, as in
    :func:`read_trained`, ``client`` whose model it is.  All rows of a domain count.
    Raises ConfigError for classes that the method cannot predict and for one that
    predicts from more than features, WeightsError for features of another width.
    """
    algorithm = get_algorithm(config.algorithm)
    check_predicts(algorithm)
    trained = read_trained(directory, client, state)
    if trained.width not in (None, features.embed_dim):
        raise WeightsError(
            f"{trained.path} was trained on {trained.model} (width {trained.width}), "
            f"but these features are of {features.model} and have width "
            f"{features.embed_dim}; encode the data with that model"
        )
    if _other_weights(trained, features):
        raise WeightsError(
            f"{trained.path} was trained on the features of {trained.model} with other "
            f"weights than these of {features.model} ({features.pretrained}); encode "
            "the data with the weights of the run"
        )
    if not algorithm.open_vocabulary:
        if set(features.classes) != set(trained.classes):
            raise ConfigError(
                f"{closed(algorithm, trained.classes)}; the data have "
                f"{some(features.classes)}"
            )
        features = of_classes(features, trained.classes)
    device = resolve_device(config.model.device)
    own = on_device(trained.shared if client is None else trained.state, device)
    text, scale = features.class_text.to(device), features.logit_scale
    task = Task.of(config, algorithm.Params(), text, scale, config.seeds[0])
    methods: dict[str, tuple[Algorithm, State]]
    methods = {"zero_shot": (get_algorithm("zeroshot"), {}), "result": (algorithm, own)}
    domains: dict[str, dict[str, Any]] = {}
    for domain in features.domains:
        x, y = features.image[domain], features.label[domain]
        rows = Samples(x.to(device), y.to(device))
        scores = {
            name: predict_scores(method, mine, rows, task)
            for name, (method, mine) in methods.items()
        }
        domains[domain] = {"images": len(rows)} | {
            name: {
                "accuracy": accuracy(each.argmax(dim=1), rows.y),
                **class_metrics(each, rows.y),
            }
            for name, each in scores.items()
        }
    return {
        "algorithm": config.algorithm,
        "state": str(trained.path),
        "model": features.model,
        "classes": list(features.classes),
        "unseen_classes": [c for c in features.classes if c not in trained.classes],
        "domains": domains,
        "mean": {
            name: mean(each[name]["accuracy"] for each in domains.values())
            for name in methods
        },
        "notes": cleaned(
            [
                *features.notes,
                *one_class(features.classes),
                *_notes(trained, features),
            ]
        ),
    }


def _other_weights(trained: Trained, features: FeatureSet) -> bool:
    """Whether both are known and differ: equal widths do not make equal features."""
    own, others = trained.weights, features.encoder.get("sha256", "")
    return bool(own and others) and own != others


def _notes(trained: Trained, features: FeatureSet) -> list[str]:
    if features.key != trained.features:
        known = trained.weights and features.encoder.get("sha256")
        if known or features.model == trained.model:
            return []
        return [
            f"the run was trained on features of {trained.model}, these are of "
            f"{features.model}: are they of the same weights?"
        ]
    return [
        "these are the features of the run itself: images that it was trained on "
        "count, too; its report has the test splits"
    ]
