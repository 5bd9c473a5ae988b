# %% [markdown]
# # A first federation
#
# Handwritten digits in four styles stand for four hospitals, cameras or countries: `scan`, `negative`, `photo` and
# `sketch`. Three of them are clients; the fourth, here `scan`, is *held out*: nobody trains on it, and it shows what
# the federation is worth where no data came from. Images and model are part of the package, so nothing is downloaded.

# %%
# !fedclip run --target scan --rounds 20 --out runs/fedclip

# %% [markdown]
# Zero-shot, CLIP without any training, stands beside every number: it is the first thing to beat. What the run left:

# %%
from pathlib import Path

for path in sorted(Path("runs/fedclip").iterdir()):
    print(path.name)

# %% [markdown]
# `report.html` is one file that opens offline; `summary.json` holds the same numbers for a program. The adapter is in
# `adapter.safetensors`, and nothing else of the model was trained or sent.
#
# ## Another method on the same features
#
# Every image was encoded once. Other methods take the features from the cache: `gda` is a closed form and needs a
# single round, `linear` trains a head on the features.

# %%
# !fedclip run --alg gda --target scan --out runs/gda --quiet

# %%
# !fedclip run --alg linear --target scan --rounds 20 --out runs/linear --quiet

# %%
# !fedclip report runs/fedclip runs/gda runs/linear --format markdown

# %% [markdown]
# ## From Python
#
# The same, with a trained classifier at the end. Options are the flags with `_` for `-`.

# %%
import fedclip_plugin as fc

summary = fc.run(alg="gda", target="sketch", out="runs/gda-sketch")
print(f"zero-shot {summary['zero_shot']['target']:.3f}")
print(f"gda       {summary['result']['target']:.3f}")

# %%
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

digits = load_digits()
images = [Image.fromarray(np.uint8(16 * d.clip(0, 15))) for d in digits.images[:5]]
predictions = fc.load_classifier("runs/gda").predict(images)
print("written:  ", digits.target_names[digits.target[:5]])
print("predicted:", predictions.labels)

# %% [markdown]
# Next: [your own images](2_your_images.py), [which method when](../methods.md), [every option](../options.md).
