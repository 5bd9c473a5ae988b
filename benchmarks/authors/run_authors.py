"""Run the authors' FedCLIP as it is: ``HOME DEVICE [their options]``.

No file of theirs is changed.  Two things are arranged from outside, before their main
script starts: the default arguments ``device='cuda'`` of three functions become DEVICE
(on a machine without CUDA they raise), and where OpenAI's package ``clip`` is not
installed the stand-in beside this file takes its place.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from types import FunctionType


def provide_clip() -> str:
    """Make ``import clip`` give OpenAI's package, or else the stand-in."""
    try:
        module = importlib.import_module("clip")
        if hasattr(module, "load") and hasattr(module, "tokenize"):
            return "openai"
    except ImportError:
        pass
    sys.modules.pop("clip", None)  # PyPI's package of that name is another thing
    sys.path.insert(0, str(Path(__file__).parent / "standin"))
    return "stand-in"


def set_device(function: FunctionType, device: str) -> None:
    """Replace 'cuda' among the defaults of ``function``."""
    defaults = function.__defaults__ or ()
    function.__defaults__ = tuple(device if d == "cuda" else d for d in defaults)


def main() -> None:
    home, device, *options = sys.argv[1:]
    sys.path.insert(0, home)
    print(f"clip: {provide_clip()}")
    clip_util = importlib.import_module("utils.clip_util")
    models = importlib.import_module("nets.models")
    set_device(clip_util.get_image_features, device)
    set_device(clip_util.get_text_features_list, device)
    set_device(models.ClipModelat.__init__, device)
    script = str(Path(home) / "methods" / "fed_at_clip.py")
    sys.argv = [script, *options]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
