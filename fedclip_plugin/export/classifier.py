"""One file that classifies images without this package: backbone, adapter, classes.

``classifier.pt2`` (torch.export), ``classifier.onnx`` and ``classifier.json``, with the
classes, the resize rule and how to run either file.  Input: float32
(N, 3, H, W), RGB in [0, 1], already resized and cropped; the normalisation is inside.
Output: float32 (N, C) probabilities.  Always fp32, on the CPU; N is free.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..algorithms.adapter import KEYS, AttentionAdapter, apply_adapter
from ..clip.download import ModelSource
from ..clip.encoder import FrozenClip
from ..errors import ConfigError, WeightsError
from ..storage.files import cannot_write, write_bytes, write_json
from ..wire.update import State

FORMATS = ("torch", "onnx")
INSTALL_HINT = "pip install 'fedclip-plugin[export]'"
TOLERANCE = 1e-3  # of a probability; other kernels, another order of summation
PROTOBUF_LIMIT = 1_800_000_000  # bytes; above it ONNX keeps weights in a second file
_LOADERS = {
    "classifier.pt2": "model = torch.export.load('classifier.pt2').module()",
    "classifier.pt": "model = torch.jit.load('classifier.pt')",
    "classifier.onnx": (
        "import onnxruntime; s = onnxruntime.InferenceSession('classifier.onnx'); "
        "model = lambda x: torch.tensor(s.run(None, {'images': x.numpy()})[0])"
    ),
}


def describe(
    source: ModelSource, classes: Sequence[str], files: Sequence[str]
) -> dict[str, Any]:
    """Classes, input, resize rule, and lines of Python that run each of ``files``."""
    height, width = source.image_size
    mode = source.preprocess["resize_mode"]
    return {
        "format": 1,
        "classes": list(classes),
        "model": source.name,
        "pretrained": source.tag,
        "input": f"images: float32 (N, 3, {height}, {width}), RGB in [0, 1]",
        "output": f"probabilities: float32 (N, {len(classes)}) as in classes",
        "image_size": [height, width],
        "resize": {
            "mode": mode,
            "interpolation": source.preprocess["interpolation"],
            "then": "none" if mode == "squash" else "centre crop",
        },
        "run": {
            name: _recipe(name, source.preprocess) for name in files if name in _LOADERS
        },
    }


def _recipe(file: str, preprocess: Mapping[str, Any]) -> list[str]:
    """Lines of Python that classify ``image.jpg`` without this package."""
    return [
        "import json, torch; from PIL import Image, ImageOps",
        "from torchvision import transforms as T",
        f"resize = T.Compose([{_resize_rule(preprocess)}, T.ToTensor()])",
        "images = resize(Image.open('image.jpg').convert('RGB'))[None]",
        _LOADERS[file],
        "classes = json.load(open('classifier.json'))['classes']",
        "print(classes[int(model(images).argmax())])",
    ]


def _resize_rule(preprocess: Mapping[str, Any]) -> str:
    height, width = preprocess["size"]
    mode, name = preprocess["resize_mode"], preprocess["interpolation"].upper()
    if mode == "squash":
        return f"T.Resize(({height}, {width}), T.InterpolationMode.{name})"
    if mode == "shortest" and height == width:
        return f"T.Resize({height}, T.InterpolationMode.{name}), T.CenterCrop({height})"
    # Rare: by PIL, within a pixel of the encoder's own rule.
    fit = "fit" if mode == "shortest" else "pad"
    return f"lambda i: ImageOps.{fit}(i, ({width}, {height}), Image.Resampling.{name})"


class ImageClassifier(nn.Module):
    """Pixels in [0, 1] -> class probabilities: FedCLIP's inference as one module.

    ``p = softmax(s * normalize(gate(x) * x) @ text.T)``, ``x`` the image features.
    """

    mean: Tensor
    std: Tensor
    text: Tensor

    def __init__(
        self, encoder: FrozenClip, adapter_state: State, class_texts: Tensor
    ) -> None:
        super().__init__()
        preprocess = encoder.source.preprocess
        self.tower = copy.deepcopy(encoder.image_tower).cpu().float()
        self.adapter = AttentionAdapter(encoder.embed_dim)
        self.adapter.load_state_dict({k: v.float() for k, v in adapter_state.items()})
        self.logit_scale = encoder.logit_scale
        self.register_buffer("mean", torch.tensor(preprocess["mean"]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess["std"]).view(3, 1, 1))
        self.register_buffer("text", F.normalize(class_texts.float().cpu(), dim=1))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, C) probabilities."""
        out = self.tower((images - self.mean) / self.std)
        x = out[0] if isinstance(out, tuple) else out  # (N, D)
        z = F.normalize(self.adapter.gate(x) * x, dim=1)  # (N, D)
        return torch.softmax(self.logit_scale * z @ self.text.T, dim=1)  # (N, C)


def export_classifier(
    encoder: FrozenClip,
    adapter_state: State,
    class_texts: Tensor,
    classes: Sequence[str],
    out_dir: str | Path,
    formats: Sequence[str] = FORMATS,
    pixels: Tensor | None = None,
) -> tuple[Path, ...]:
    """Write the classifier and its description to ``out_dir``; return the files.

    ``class_texts`` (C, D); ``pixels`` (N, 3, H, W) in [0, 1] to check with, noise if
    None.  Every file is loaded again and must give our own probabilities within 0.001,
    else RuntimeError and nothing is written.  Raises ConfigError on an unknown format,
    a missing package, or an encoder that is not in fp32.
    """
    _check_request(encoder, formats)
    _check_shapes(encoder, adapter_state, class_texts, classes)
    pixels = _noise(encoder) if pixels is None else pixels.float().cpu()
    expected = _own_probabilities(encoder, adapter_state, class_texts, pixels)
    model = ImageClassifier(encoder, adapter_state, class_texts)
    out = Path(out_dir)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as folder:
            work = Path(folder)
            for name in dict.fromkeys(formats):
                _WRITERS[name](model, pixels, expected, work)
            files = sorted(path.name for path in work.iterdir())
            description = describe(encoder.source, classes, files)
            write_json(work / "classifier.json", description)
            return _publish(work, out)
    except OSError as error:
        raise cannot_write(out, error) from error


def _publish(work: Path, out: Path) -> tuple[Path, ...]:
    names = sorted(path.name for path in work.iterdir())
    for name in names:
        os.replace(work / name, out / name)
    return tuple(out / name for name in names)


def _check_request(encoder: FrozenClip, formats: Sequence[str]) -> None:
    if not formats or set(formats) - set(FORMATS):
        raise ConfigError(
            f"export format {', '.join(formats) or 'none'}: "
            f"expected {' or '.join(FORMATS)}"
        )
    if encoder.precision not in ("fp32", "auto"):  # auto encodes in fp32 until settled
        raise ConfigError(
            f"export needs the encoder in fp32, not {encoder.precision}: "
            "use --precision fp32"
        )
    if "onnx" in formats:
        for package in ("onnx", "onnxscript"):
            if importlib.util.find_spec(package) is None:
                raise ConfigError(
                    f"the onnx format needs the package {package}: {INSTALL_HINT}, "
                    "or export the torch format only"
                )


def _check_shapes(
    encoder: FrozenClip, state: State, texts: Tensor, classes: Sequence[str]
) -> None:
    dim = encoder.embed_dim
    want = dict(zip(KEYS, ((dim, dim), (dim,), (dim, dim), (dim,))))
    got = {key: tuple(value.shape) for key, value in state.items()}
    if got != want:
        raise WeightsError(
            f"the adapter does not fit {encoder.source.name}: "
            f"got {got}, expected {want}"
        )
    if texts.shape != (len(classes), dim):
        raise WeightsError(
            f"class texts {tuple(texts.shape)}: expected ({len(classes)}, {dim})"
        )


def _noise(encoder: FrozenClip) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(3, 3, *encoder.source.image_size, generator=generator)


def _own_probabilities(
    encoder: FrozenClip, state: State, texts: Tensor, pixels: Tensor
) -> Tensor:
    """What a run predicts, by the same code: (N, C)."""
    preprocess = encoder.source.preprocess
    mean = torch.tensor(preprocess["mean"]).view(3, 1, 1)
    std = torch.tensor(preprocess["std"]).view(3, 1, 1)
    x = encoder.encode_images((pixels - mean) / std).cpu()
    z = apply_adapter({k: v.float().cpu() for k, v in state.items()}, x)
    text = F.normalize(texts.float().cpu(), dim=1)
    return torch.softmax(encoder.logit_scale * z @ text.T, dim=1)


# ----------------------------------------------------------------------------- writers


def _write_torch(
    model: ImageClassifier, pixels: Tensor, expected: Tensor, work: Path
) -> None:
    file = work / "classifier.pt2"
    saved = io.BytesIO()  # torch ends the process where a disk is full
    try:
        with _quiet():
            torch.export.save(_exported(model, pixels), saved)
    except Exception as reason:  # a backbone's own code can fail in any way
        _write_torchscript(model, pixels, expected, work, reason)
        return
    write_bytes(file, saved.getvalue(), durable=False)
    program = torch.export.load(file).module()
    _check(file, program, pixels, expected)


def _write_torchscript(
    model: ImageClassifier,
    pixels: Tensor,
    expected: Tensor,
    work: Path,
    reason: Exception,
) -> None:
    """The fallback for a backbone that torch.export cannot capture."""
    file, saved = work / "classifier.pt", io.BytesIO()
    try:
        with _quiet():
            torch.jit.save(torch.jit.trace(model, (_example(pixels),)), saved)
            program = torch.jit.load(io.BytesIO(saved.getvalue()))
    except Exception as error:
        raise RuntimeError(
            f"torch.export failed ({reason}), TorchScript too"
        ) from error
    write_bytes(file, saved.getvalue(), durable=False)
    _check(file, program, pixels, expected)


def _write_onnx(
    model: ImageClassifier, pixels: Tensor, expected: Tensor, work: Path
) -> None:
    file = work / "classifier.onnx"
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    with _quiet():
        torch.onnx.export(
            _exported(model, pixels),
            f=str(file),
            input_names=["images"],
            output_names=["probabilities"],
            external_data=size > PROTOBUF_LIMIT,
            dynamo=True,
            verbose=False,
        )
    _check(file, _onnx_program(file), pixels, expected)


_WRITERS: Mapping[str, Callable[[ImageClassifier, Tensor, Tensor, Path], None]] = {
    "torch": _write_torch,
    "onnx": _write_onnx,
}


def _example(pixels: Tensor) -> Tensor:
    # From a batch of one, torch.export would conclude that every batch is.
    return pixels[:2] if len(pixels) > 1 else pixels.expand(2, -1, -1, -1).clone()


def _exported(model: ImageClassifier, pixels: Tensor) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        return torch.export.export(
            model, (_example(pixels),), dynamic_shapes=({0: batch},)
        )


def _onnx_program(file: Path) -> Callable[[Tensor], Tensor]:
    session: Any
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        session = onnxruntime.InferenceSession(
            str(file), providers=["CPUExecutionProvider"]
        )
    else:  # slow, but part of onnx
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(str(file))
    return lambda images: torch.tensor(session.run(None, {"images": images.numpy()})[0])


def _check(
    file: Path, program: Callable[[Tensor], Tensor], pixels: Tensor, expected: Tensor
) -> None:
    with torch.no_grad():
        whole = program(pixels)
        one = program(pixels[:1].clone())  # the batch size must really be free
    for got, want in ((whole, expected), (one, expected[:1])):
        worst = float((got - want).abs().max())
        if got.shape != want.shape or not worst <= TOLERANCE:  # NaN fails too
            raise RuntimeError(
                f"{file.name} does not reproduce our own predictions: "
                f"a probability is off by {worst:.3g}"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    log = logging.getLogger("onnxscript")  # what it could not fold, a line each
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
