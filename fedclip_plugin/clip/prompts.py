"""From class folders to captions: `clean_class_name`, `captions`, `prompt_templates`.

The paper's captions are "a picture of a <class>", even before a vowel ("a picture of a
elephant"): the article is not corrected, since the text features would change.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from ..config.inputs import DESCRIPTIONS, PAPER_PROMPT, is_template
from ..errors import ConfigError, did_you_mean

PHOTO = "a photo of a {}."
TEMPLATES: dict[str, tuple[str, ...]] = {
    "paper": (PAPER_PROMPT,),
    "ensemble": (
        PAPER_PROMPT,
        "a photo of a {}",
        "a painting of a {}",
        "a cartoon of a {}",
        "a pencil drawing of a {}",
        "an outline of a {}",
        "a {} seen up close",
        "a {} on a plain background",
    ),
}

# One template a data set: those of CoOp's experiments (Zhou et al. 2022, arXiv
# 2109.01134, appendix), after CLIP's own; of ImageNet the seven of CLIP's notebook.
TEMPLATES |= {
    f"clip:{name}": (template,)
    for name, template in {
        "caltech101": PHOTO,
        "dtd": "{} texture.",
        "eurosat": "a centered satellite photo of {}.",
        "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
        "food101": "a photo of {}, a type of food.",
        "oxford_flowers": "a photo of a {}, a type of flower.",
        "oxford_pets": "a photo of a {}, a type of pet.",
        "stanford_cars": PHOTO,
        "sun397": PHOTO,
        "ucf101": "a photo of a person doing {}.",
    }.items()
}
TEMPLATES["clip:imagenet"] = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)

_NUMBER_PREFIX = re.compile(r"^(\d{2,}[\s._-]+|\d+\.\s*)(?=\D)")  # "056.dog", "01-frog"
_CALTECH_SUFFIX = re.compile(
    r"-101$"
)  # Caltech-256 marks what it took from Caltech-101
_SEPARATOR = re.compile(r"([\s_-]|\.(?!\d))+")
_HUMP = re.compile(r"(?<=[a-z]{2})(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z]{2})")
_ACRONYM = 3  # letters


def clean_class_name(folder: str) -> str:
    """The words of a class folder.

    "touring-bike" -> "touring bike", "Alarm_Clock" and "AlarmClock" -> "alarm clock",
    "056.dog" -> "dog"; "TV", "7", "A" and PACS's names stay.  All-capital words of
    up to three letters count as acronyms.
    """
    name = folder.strip()
    if len(name) < 2:
        return name or folder
    bare = _NUMBER_PREFIX.sub("", name)
    if bare != name:
        bare = _CALTECH_SUFFIX.sub("", bare)
    words = _SEPARATOR.sub(" ", bare).split()
    words = [part for word in words for part in _HUMP.split(word)]
    return " ".join(map(_lower, words)) or folder


def class_words(classes: Sequence[str]) -> list[str]:
    """`clean_class_name` of each; the folder itself where two would be the same."""
    cleaned = [clean_class_name(folder) for folder in classes]
    count = Counter(name.casefold() for name in cleaned)
    return [
        name if count[name.casefold()] == 1 else folder
        for name, folder in zip(cleaned, classes)
    ]


def captions(classes: Sequence[str], prompt: str) -> list[str]:
    """One caption per class, in order; `prompt` holds one {} for the class name."""
    if not is_template(prompt):
        raise ConfigError(
            f"--prompt {prompt!r} must hold exactly one {{}} for the class name and no "
            f"other brace, as in {PAPER_PROMPT!r}"
        )
    return [prompt.replace("{}", name) for name in class_words(classes)]


def prompt_templates(prompts: str | Sequence[str]) -> tuple[str, ...]:
    """Templates with named sets ("paper", "ensemble") expanded, repeats dropped.

    Raises ConfigError on anything but such a name or a template with one {}.
    """
    templates: list[str] = []
    for prompt in [prompts] if isinstance(prompts, str) else prompts:
        if prompt in TEMPLATES:
            templates += TEMPLATES[prompt]
        elif is_template(prompt) or prompt.startswith(DESCRIPTIONS):
            templates.append(prompt)
        else:
            raise ConfigError(
                f"--prompt {prompt!r}: expected a template with one {{}} and no other "
                f"brace, such as {PAPER_PROMPT!r}, {DESCRIPTIONS}FILE.json, or one of "
                f"{', '.join(TEMPLATES)}"
                f"{did_you_mean(prompt, TEMPLATES)}"
            )
    if not templates:
        raise ConfigError("--prompt: expected at least one template")
    return tuple(dict.fromkeys(templates))


def _lower(word: str) -> str:
    return word if word.isupper() and 1 < len(word) <= _ACRONYM else word.lower()
