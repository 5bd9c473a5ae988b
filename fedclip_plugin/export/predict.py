"""A finished run that classifies images: ``load_classifier``, ``fedclip predict``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
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
from ..data.listing import read_file, some
from ..errors import ConfigError, DataError
from ..wire.update import State, on_device
from .trained import class_texts, load_backbone, read_trained

Source = str | Path | Image.Image
SCORES = ("softmax", "sigmoid")
AHEAD = 2  # batches that are decoded while another is encoded


class Predictions(NamedTuple):
    """The most probable class of N images, and all probabilities (N, C) float32."""

    labels: list[str]
    probabilities: Tensor


class Batch(NamedTuple):
    """Some images, in order: of the sound ones their probabilities (n, C) float32.

    ``sound`` are their places among all images, ``bad`` tells what is wrong with the
    others; ``zero_shot`` is what the frozen CLIP says of the same.
    """

    sound: list[int]
    bad: dict[int, str]
    probabilities: Tensor
    zero_shot: Tensor


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
        scores: str = "softmax",
    ) -> None:
        self.classes = tuple(classes)
        self._bias = _sigmoid_bias(encoder, algorithm) if scores == "sigmoid" else None
        self._encoder = encoder
        self._algorithm = algorithm
        self._state = on_device(state, encoder.device)
        self._task = task

    @classmethod
    def load(
        cls,
        directory: Path,
        config: RunConfig,
        client: str | None = None,
        *,
        classes: Sequence[str] = (),
        precision: str = "fp32",
        state: str | Path = "best",
        scores: str = "softmax",
    ) -> Classifier:
        """The classifier of the run in ``directory``, configured by ``config``.

        ``client`` takes what that client personalized instead of the shared state;
        ``classes`` are other ones than the run's, for a method with an open vocabulary;
        ``state`` is of the best round, the ``final`` one or a file;
        ``scores`` "sigmoid" judges each class by itself, as SigLIP was trained to.
        Raises RunError where there is no such state, ConfigError for an algorithm that
        predicts from more than features, WeightsError for a backbone that does not fit.
        """
        algorithm = get_algorithm(config.algorithm)
        check_predicts(algorithm)
        trained = read_trained(directory, client, state)
        if any("/" in key for key in trained.state):
            raise ConfigError(
                f"{trained.path} holds one model for each client: --alg "
                f"{algorithm.name} has no shared one to predict with"
            )
        if classes and not algorithm.open_vocabulary:
            raise ConfigError(closed(algorithm, trained.classes))
        names = tuple(classes) or trained.classes
        encoder = load_backbone(trained, config, precision)
        texts = class_texts(encoder, names, trained.prompts)
        task = Task.of(
            config,
            config.params,
            texts.to(encoder.device),
            encoder.logit_scale,
            config.seeds[0],
        )
        return cls(encoder, algorithm, trained.state, task, names, scores)

    def predict(self, images: Sequence[Source], batch_size: int = 32) -> Predictions:
        """Labels and probabilities of image files or PIL images, in their order.

        Raises DataError naming the image that cannot be read.
        """
        if isinstance(images, (str, Path, Image.Image)):
            raise TypeError("predict takes a list of images: predict([image])")
        rows = []
        for batch in self.batches(images, batch_size):
            for problem in batch.bad.values():
                raise DataError(problem)
            rows.append(batch.probabilities)
        classes = len(self.classes)
        probabilities = torch.cat(rows) if rows else torch.empty(0, classes)  # (N, C)
        best = probabilities.argmax(dim=1).tolist()
        return Predictions([self.classes[i] for i in best], probabilities)

    def batches(self, images: Sequence[Source], batch_size: int) -> Iterator[Batch]:
        """All ``images``, ``batch_size`` at once, the next ones decoded meanwhile."""
        starts = iter(range(0, len(images), batch_size))

        def decode(start: int) -> tuple[dict[int, Tensor], dict[int, str]]:
            pixels, bad = {}, {}
            for place in range(start, min(start + batch_size, len(images))):
                try:
                    pixels[place] = self._encoder.preprocess(_open(images[place]))
                except DataError as error:
                    bad[place] = str(error)
            return pixels, bad

        with ThreadPoolExecutor(max_workers=1) as pool:
            ahead = [pool.submit(decode, start) for start in islice(starts, AHEAD)]
            while ahead:
                pixels, bad = ahead.pop(0).result()
                ahead += [pool.submit(decode, start) for start in islice(starts, 1)]
                yield Batch(list(pixels), bad, *self._both(list(pixels.values())))

    def _both(self, pixels: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Probabilities (n, C) of the trained state, and zero-shot."""
        if not pixels:
            return (torch.empty(0, len(self.classes)),) * 2
        batch = torch.stack(pixels)  # (n, 3, S, S)
        self._encoder.resolve_precision(batch)
        x = self._encoder.encode_images(batch.to(self._encoder.device))
        scores = self._algorithm.predict(self._state, x, self._task)
        base = get_algorithm("zeroshot").predict({}, x, self._task)
        return self._chance(scores), self._chance(base)

    def _chance(self, scores: Tensor) -> Tensor:
        """Probabilities (n, C) of class scores: of one among them, or of each alone."""
        if self._bias is None:
            return scores.softmax(dim=1).cpu()
        return (scores + self._bias).sigmoid().cpu()


def _sigmoid_bias(encoder: FrozenClip, algorithm: Algorithm) -> float:
    """SigLIP's bias; raises ConfigError where no sigmoid can be taken."""
    if encoder.logit_bias is None:
        raise ConfigError(
            f"--scores sigmoid: {encoder.source.name} has no logit_bias, it was "
            "trained by softmax; leave out --scores, or take a SigLIP"
        )
    if not algorithm.open_vocabulary:
        raise ConfigError(
            f"--scores sigmoid: --alg {algorithm.name} does not go by captions, whose "
            "scores alone have a sigmoid; leave out --scores"
        )
    return encoder.logit_bias


def check_predicts(algorithm: Algorithm) -> None:
    """Raise ConfigError for an algorithm that predicts from more than features."""
    if algorithm.needs_clip:
        raise ConfigError(
            f"--alg {algorithm.name} changes the CLIP itself: only methods that "
            "predict from frozen features can be loaded as a classifier"
        )


def closed(algorithm: Algorithm, classes: Sequence[str]) -> str:
    """Why other classes than those of training are refused."""
    return (
        f"--alg {algorithm.name} predicts only the {len(classes)} classes that it was "
        f"trained on ({some(classes)}): leave out other --classes, or take a method "
        "with an open vocabulary, such as fedclip"
    )


def _open(image: Source) -> Image.Image:
    if isinstance(image, Image.Image):
        return rgb_image(image)
    path = str(as_path(image))
    return decode_image(read_file([path], 0), path)
