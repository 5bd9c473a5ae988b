# %% [markdown]
# # Your own images
#
# A data set is a folder `<domain>/<class>/<image>`. A domain is what differs between clients: a hospital, a camera, a
# style of drawing. Here a few lines paint one, so that there is something to start from.

# %%
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

STYLES = {  # domain -> paper and ink
    "pencil": ("white", "dimgrey"),
    "night": ("midnightblue", "gold"),
    "poster": ("tomato", "black"),
}
random.seed(0)
font = ImageFont.load_default(40)
for domain, (paper, ink) in STYLES.items():
    for letter in "AKRS":  # the classes
        folder = Path("letters", domain, letter)
        folder.mkdir(parents=True)
        for number in range(25):
            image = Image.new("RGB", (64, 64), paper)
            where = (random.randint(24, 40), random.randint(24, 40))
            ImageDraw.Draw(image).text(where, letter, ink, font, anchor="mm")
            turn = random.randint(-40, 40)
            image.rotate(turn, fillcolor=paper).save(folder / f"{number}.png")

# %% [markdown]
# ## Look before you run
#
# `--dry-run` checks images and weights and tells what the run would cost. Here the model is the small embedded one. Leave
# `--model` and `--pretrained` out for OpenAI's ViT-B/32, which is downloaded once.

# %%
# !fedclip run --dry-run --dataset letters --root letters --model fedclip-tiny --pretrained fedclip-tiny

# %% [markdown]
# ## Features once, then as many runs as you like
#
# `fedclip features` writes a directory that needs neither CLIP nor images any more: encode where the images and the GPU
# are, federate on a laptop.

# %%
# !fedclip features --dataset letters --root letters --model fedclip-tiny --pretrained fedclip-tiny --to features

# %%
# !fedclip run --features features --alg gda --out runs/gda

# %% [markdown]
# Each domain was held out in turn: nobody trained on it, and the rows of the two others help all the same.
#
# ## Images that cannot be read
#
# One broken file stops a run, with its name; `--on-bad-image skip` leaves it out and lists it in `summary.json`.

# %%
broken = Path("letters/night/K/7.png")
broken.write_bytes(broken.read_bytes()[:50])

# %% tags=["fails"]
# !fedclip run --dataset letters --root letters --model fedclip-tiny --pretrained fedclip-tiny --alg gda

# %% [markdown]
# Folders, notes, prompts and clients beyond domains: [data](../data.md). Features and their cache:
# [features](../features.md).
