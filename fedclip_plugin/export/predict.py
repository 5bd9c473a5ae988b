"""A finished run that classifies images in this process: ``load_classifier``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ..algorithms import Algorithm, Task, get_algorithm
from ..clip.encoder import FrozenClip
from ..config.paths import as_path
from ..config.schema import RunConfig
from ..data.images import decode_image, rgb_image
from ..data.listing import read_file
from ..errors import ConfigError
from ..wire.update import State, on_device
from .trained import class_texts, load_backbone, read_trained

Source = str | Path | Image.Image


class Predictions(NamedTuple):
    """The most probable class of N images, and all probabilities (N, C) float32."""

    labels: list[str]
    probabilities: Tensor


class Classifier:
    """Backbone, prompts and the best round's state of a run, ready to predict.

    ``classes`` are the names that the columns of the probabilities stand for.
    """

    def __init__(
        self,
        encoder: FrozenClip,
        algorithm: Algorithm,
        state: State,
        task: Task,
        classes: Sequence[str],
    ) -> None:
        self.classes = tuple(classes)
        self._encoder = encoder
        self._algorithm = algorithm
        self._state = on_device(state, encoder.device)
        self._task = task

    @classmethod
    def load(
        cls, directory: Path, config: RunConfig, client: str | None = None
    ) -> Classifier:
        """The classifier of the run in ``directory``, configured by ``config``.

        ``client`` takes what that client made its own instead of the shared state.
        Raises RunError where there is no such state, ConfigError for an algorithm that
        predicts from more than features, WeightsError for a backbone that does not fit.
        """
        algorithm = get_algorithm(config.algorithm)
        if algorithm.needs_clip:
            raise ConfigError(
                f"--alg {algorithm.name} changes the CLIP itself: only methods that "
                "predict from frozen features can be loaded as a classifier"
            )
        trained = read_trained(directory, client)
        state = trained.shared
        encoder = load_backbone(trained, config)
        texts = class_texts(encoder, trained.classes, trained.prompts)
        task = Task.of(
            config,
            config.params,
            texts.to(encoder.device),
            encoder.logit_scale,
            config.seeds[0],
        )
        return cls(encoder, algorithm, state, task, trained.classes)

    def predict(self, images: Sequence[Source], batch_size: int = 32) -> Predictions:
        """Labels and probabilities of image files or PIL images, in their order.

        Raises DataError naming the image that cannot be read.
        """
        if isinstance(images, (str, Path, Image.Image)):
            raise TypeError("predict takes a list of images: predict([image])")
        rows = [self._probabilities(batch) for batch in _batches(images, batch_size)]
        classes = len(self.classes)
        probabilities = torch.cat(rows) if rows else torch.empty(0, classes)  # (N, C)
        best = probabilities.argmax(dim=1).tolist()
        return Predictions([self.classes[i] for i in best], probabilities)

    def _probabilities(self, images: Sequence[Source]) -> Tensor:
        pixels = torch.stack([self._encoder.preprocess(_open(i)) for i in images])
        features = self._encoder.encode_images(pixels.to(self._encoder.device))
        scores = self._algorithm.predict(self._state, features, self._task)
        return scores.softmax(dim=1).cpu()


def _batches(images: Sequence[Source], size: int) -> Iterator[Sequence[Source]]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


def _open(image: Source) -> Image.Image:
    if isinstance(image, Image.Image):
        return rgb_image(image)
    path = str(as_path(image))
    return decode_image(read_file([path], 0), path)
