# %% [markdown]
# # From a run to a phone
#
# A finished run becomes one ONNX file: pixels in, probabilities out, with CLIP's image tower, the adapter and the classes
# inside. It runs with ONNX Runtime on Android, iOS, in a browser or on a server, without this package and without PyTorch.
# Needs `pip install 'fedclip-plugin[export]'`.

# %%
# !fedclip run --target scan --rounds 5 --out runs/phone --quiet

# %%
# !fedclip export runs/phone --to phone --format onnx

# %%
from pathlib import Path

for path in sorted(Path("phone").iterdir()):
    print(f"{path.name:20} {path.stat().st_size / 1e6:.2f} MB")

# %% [markdown]
# `classifier.json` tells the app what it needs: the classes in order, and how an image is resized.

# %%
import json

about = json.loads(Path("phone/classifier.json").read_text())
print(about["classes"], about["image_size"], about["resize"], sep="\n")

# %% [markdown]
# ## As the app does it
#
# NumPy, Pillow and ONNX Runtime, nothing else:

# %%
import numpy as np
import onnxruntime
from PIL import Image
from sklearn.datasets import load_digits

session = onnxruntime.InferenceSession("phone/classifier.onnx")
height, width = about["image_size"]


def probabilities(image: Image.Image) -> np.ndarray:
    """(C,), as in ``about["classes"]``."""
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(resized, np.float32).transpose(2, 0, 1) / 255
    (p,) = session.run(None, {"images": pixels[None]})
    return p[0]


digits = load_digits()
images = [Image.fromarray(np.uint8(16 * d.clip(0, 15))) for d in digits.images[:20]]
found = np.array([probabilities(image) for image in images])
print([about["classes"][p.argmax()] for p in found])

# %% [markdown]
# ## Against the run itself

# %%
import fedclip_plugin as fc

expected = fc.load_classifier("runs/phone").predict(images).probabilities.numpy()
print(f"largest difference of a probability: {abs(found - expected).max():.1e}")
assert np.allclose(found, expected, atol=5e-3)

# %% [markdown]
# Methods that `fedclip export` takes, and torch.export for servers: [the report and what comes after](../report.md).
