"""Pretrain `fedclip-tiny`, the small CLIP that fedclip-plugin ships, from fonts alone.

    python examples/pretrain_tiny_clip.py --out fedclip-tiny.safetensors

There are no data: digits and letters of the fonts that matplotlib ships are drawn with
pens of any width, bent, pooled to 8 x 8 pixels and enlarged again, then inverted,
blended over made-up textures or reduced to their outline, each with a caption such as
"a sketch of a 7".  An open_clip model learns to match image and caption, as CLIP does
(Radford et al. 2021).  The handwritten digits of the data set `digits` play no part.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
from glyph_painter import CLASSES, DIGITS, LETTERS, STYLES, Painter, load_glyphs
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

MODELS = Path(__file__).resolve().parents[1] / "fedclip_plugin" / "models"
WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
)
ANY = "any"
TEMPLATES = {
    ANY: ("a picture of a {}", "a {}", "an image of a {}", "the {}", "this is a {}"),
    "scan": ("a scan of a {}", "a {} in white on black"),
    "negative": ("a negative of a {}", "a {} in black on white"),
    "photo": ("a photo of a {}", "a {} over a photograph"),
    "sketch": ("a sketch of a {}", "the outline of a {}"),
}


class Captions:
    """Every caption once: `text`, `tokens` (T, L), class `label` (T,), `style` (T,)."""

    def __init__(self, tokenizer: open_clip.SimpleTokenizer) -> None:
        self.text: list[str] = []
        self.rows: dict[tuple[int, str], list[int]] = {}
        labels, styles = [], []
        for label, name in enumerate(CLASSES):
            spoken = WORDS[label] if label < len(WORDS) else name
            kind = "digit" if name in DIGITS else "letter"
            for style, templates in TEMPLATES.items():
                for template in templates:
                    for shown in (name, name, spoken, f"{kind} {name}"):
                        self.rows.setdefault((label, style), []).append(len(self.text))
                        self.text.append(template.format(shown))
                        labels.append(label)
                        styles.append(STYLES.index(style) if style in STYLES else -1)
        self.tokens = tokenizer(self.text)
        self.label, self.style = torch.tensor(labels), torch.tensor(styles)

    def draw(self, classes: Tensor, styles: Tensor, random: torch.Generator) -> Tensor:
        """A caption for each image, (U,) row numbers without repeats: of its class, and
        three in five times without a word on style."""
        chance = torch.rand(2, len(classes), generator=random).tolist()
        chosen = set()
        for label, style, general, u in zip(
            classes.tolist(), styles.tolist(), *chance, strict=True
        ):
            rows = self.rows[label, ANY if general < 0.6 else STYLES[style]]
            chosen.add(rows[int(u * len(rows))])
        return torch.tensor(sorted(chosen))

    def fits(self, rows: Tensor, classes: Tensor, styles: Tensor) -> Tensor:
        """(B, U) bool: caption u is true of image b."""
        style = self.style[rows]
        return (self.label[rows] == classes[:, None]) & (
            (style < 0) | (style == styles[:, None])
        )


def contrastive_loss(logits: Tensor, fits: Tensor) -> Tensor:
    """CLIP's symmetric InfoNCE, where several captions may be true of an image."""
    loss = logits.new_zeros(())
    for dim in (0, 1):
        share = fits / fits.sum(dim, keepdim=True).clamp(min=1)
        loss = loss - (share * logits.log_softmax(dim)).sum() / logits.shape[1 - dim]
    return loss / 2


def build_model(config: Path) -> tuple[open_clip.CLIP, open_clip.SimpleTokenizer]:
    open_clip.add_model_config(config)
    model = open_clip.create_model(config.stem, require_pretrained=False)
    return model, open_clip.get_tokenizer(config.stem)


def make_optimizer(model: open_clip.CLIP, lr: float) -> torch.optim.Optimizer:
    """AdamW; biases, gains and embeddings do not decay."""
    free = [
        p for n, p in model.named_parameters() if p.ndim < 2 or "token_embedding" in n
    ]
    kept = {id(p) for p in free}
    decayed = [p for p in model.parameters() if id(p) not in kept]
    groups = [
        {"params": decayed, "weight_decay": 0.05},
        {"params": free, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def learning_rate(peak: float, step: int, done: float) -> float:
    """Linear warm-up over 200 steps, then a cosine to 0 at `done` = 1."""
    return peak * min(1.0, (step + 1) / 200) * (1 + math.cos(math.pi * done)) / 2


def normalise(images: Tensor) -> Tensor:
    """(B, 3, S, S) in 0..1 as open_clip's default preprocessing hands them on."""
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    return (images - mean) / std


def batch_loss(
    model: open_clip.CLIP, painter: Painter, captions: Captions, count: int
) -> Tensor:
    """Draw `count` images and captions of them, and compare the two."""
    # Letters in batches of their own: nobody can tell 0 from O, or 1 from l.
    letters = float(painter.uniform(0, 1)) < 0.25
    classes = painter.index(len(LETTERS if letters else DIGITS), count)
    classes += len(DIGITS) if letters else 0
    styles = painter.index(len(STYLES), count)
    rows = captions.draw(classes, styles, painter.random)
    pixels = normalise(painter.batch(classes, styles))
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    image = model.encode_image(pixels, normalize=True)  # (B, D)
    text = model.encode_text(captions.tokens[rows], normalize=True)  # (U, D)
    logits = model.logit_scale.exp() * image @ text.T  # (B, U)
    return contrastive_loss(logits, captions.fits(rows, classes, styles).float())


def pretrain(args: argparse.Namespace) -> open_clip.CLIP:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    model, tokenizer = build_model(args.config)
    model.visual.to(memory_format=torch.channels_last)  # a third faster on CPUs
    captions = Captions(tokenizer)
    painter = Painter(load_glyphs(), args.seed)
    optimizer = make_optimizer(model, args.lr)
    start = time.monotonic()
    model.train()
    bar = tqdm(range(args.steps), unit="step", disable=None)
    for step in bar:
        minutes = (time.monotonic() - start) / 60
        done = max(step / args.steps, minutes / args.minutes)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(args.lr, step, done)
        loss = batch_loss(model, painter, captions, args.batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))  # as CLIP does
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if bar.disable and step % 100 == 0:  # no terminal: plain lines
            told = f"{minutes:.1f} min, loss {loss.item():.3f}"
            print(f"step {step} of {args.steps}: {told}", file=sys.stderr)
    finish(model, captions)
    return model.eval()


@torch.no_grad()
def finish(model: open_clip.CLIP, captions: Captions) -> None:
    """Make the trained model ready to ship.

    Tokens that no caption holds never moved from their random start; zeros compress.
    The logit scale becomes the 100 of OpenAI's CLIP, at which the paper trains the
    adapter.  It leaves every prediction as it is.
    """
    unseen = torch.ones(len(model.token_embedding.weight), dtype=torch.bool)
    unseen[captions.tokens.unique()] = False
    model.token_embedding.weight[unseen] = 0
    model.logit_scale.fill_(math.log(100))


def save(model: open_clip.CLIP, path: Path) -> None:
    """Half precision, with open_clip's own names."""
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # save_file lets only the owner read


@torch.no_grad()
def accuracy(model: open_clip.CLIP, args: argparse.Namespace) -> dict[str, float]:
    """Zero-shot accuracy by style on freshly drawn digits: did the training work?"""
    tokenizer = open_clip.get_tokenizer(args.config.stem)
    text = model.encode_text(
        tokenizer([f"a picture of a {c}" for c in DIGITS]), normalize=True
    )
    painter = Painter(load_glyphs(), args.seed + 1)
    found = {}
    for index, style in enumerate(STYLES):
        classes = torch.arange(500) % len(DIGITS)
        pixels = normalise(painter.batch(classes, torch.full((500,), index)))
        image = model.encode_image(pixels, normalize=True)
        right = (image @ text.T).argmax(1) == classes
        found[style] = right.float().mean().item()
    return found


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    weights = Path("fedclip-tiny.safetensors")
    config = MODELS / "fedclip-tiny.json"
    add("--out", type=Path, default=weights, help=f"file to write (default {weights})")
    add("--config", type=Path, default=config, help="model in open_clip's JSON format")
    add("--steps", type=int, default=2000, help="batches to train on (default 2000)")
    add(
        "--minutes",
        type=float,
        default=math.inf,
        help="end by then: the learning rate falls faster if it must (default: never)",
    )
    add("--batch", type=int, default=256, help="images a batch (default 256)")
    add("--lr", type=float, default=3e-3, help="peak learning rate (default 3e-3)")
    add("--seed", type=int, default=0, help="of the start and the drawings (default 0)")
    add("--threads", type=int, default=1, help="more are faster, and round otherwise")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    model = pretrain(args)
    save(model, args.out)
    report = {
        "accuracy on drawn digits": accuracy(model, args),
        "bytes": args.out.stat().st_size,
    }
    print(f"{args.out}: {json.dumps(report, indent=2)}", file=sys.stderr)


if __name__ == "__main__":
    main()
