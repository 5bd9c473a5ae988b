"""One round of local steps by FACMIC's released code: ``HOME INPUT OUTPUT``.

INPUT and OUTPUT are safetensors files.  No file of theirs is changed.  Arranged from
outside: images and captions are their features, so that the frozen CLIP is the
identity; ``cuda`` becomes the CPU; and the number of classes, which ``adaptation.py``
has as a constant, is that of the input.
"""

from __future__ import annotations

import importlib
import json
import sys
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


class Identity(nn.Module):
    """A CLIP whose images and captions are their features already."""

    def __init__(self, logit_scale: float) -> None:
        super().__init__()
        self.logit_scale = torch.tensor(logit_scale).log()

    def encode_image(self, features: Tensor) -> Tensor:
        """The features (N, D)."""
        return features

    def encode_text(self, features: Tensor) -> Tensor:
        """The features (N, D)."""
        return features


def provide_clip(text: Tensor) -> None:
    """Make ``import clip`` give a module whose token of class "3" is its feature."""
    module: Any = ModuleType("clip")
    module.tokenize = lambda name: text[int(name)][None]
    sys.modules["clip"] = module


def on_cpu(*functions: Any) -> None:
    """Make 'cuda' among the default arguments the CPU, and ``cuda()`` do nothing."""
    for function in functions:
        assert isinstance(function, FunctionType)
        defaults = function.__defaults__ or ()
        function.__defaults__ = tuple("cpu" if d == "cuda" else d for d in defaults)
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]


def main() -> None:
    home, source, target = sys.argv[1:]
    with safe_open(source, "pt") as file:
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["about"])
    text = found["text"]
    provide_clip(text)
    sys.path.insert(0, home)
    adaptation = importlib.import_module("adaptation")
    training = importlib.import_module("utils.training")
    util = importlib.import_module("utils.clip_util")
    models = importlib.import_module("nets.models")
    on_cpu(util.get_image_features, util.get_text_features_list)

    clip = Identity(about["logit_scale"])
    model = SimpleNamespace(
        model=clip, preprocess=None, device="cpu", freezepy=True, attention=True,
        labels=[str(c) for c in range(len(text))],
    )  # fmt: skip
    own = [
        (found[f"x/{i}"], text[found[f"y/{i}"]], found[f"y/{i}"])
        for i in range(about["steps"])
    ]
    others = [
        (found[f"other/{i}"], torch.zeros(1), torch.zeros(1))
        for i in range(about["steps"])
    ]
    models.ClipModelat.initdgatal(model, others)
    adapter: nn.Module = model.fea_attn
    start = {k[6:]: v for k, v in found.items() if k.startswith("state/")}
    adapter.load_state_dict(start, strict=False)
    adam = torch.optim.Adam(adapter.parameters(), **about["adam"])
    distance = adaptation.LMMDLoss()
    distance.num_class = len(text)
    args = SimpleNamespace(method="ours", n_iter=len(own) + 1)
    training.train(args, model, own, adam, "cpu", others, distance, None, None)
    after = {k: v.contiguous() for k, v in adapter.state_dict().items() if k in start}
    save_file(after, target)


if __name__ == "__main__":
    main()
