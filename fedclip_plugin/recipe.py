"""``classifier.json``: what an exported classifier is, and how to run it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .source import ModelSource

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
