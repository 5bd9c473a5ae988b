"""``--prompt descriptions:FILE.json``: sentences of each class instead of a template.

The file is an object, class -> one sentence or a list of them (the form in which
FedMVP and others publish what a language model says of a class); ``{}`` in a sentence
stands for the class name.  A class is encoded as the mean over its sentences.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ..config.inputs import DESCRIPTIONS
from ..config.paths import read_text
from ..data.listing import some
from ..errors import ConfigError, did_you_mean, reason, spelling_key
from .prompts import captions, class_words

Sets = list[list[str]]  # K lists of C captions, "" where a class has fewer


def caption_sets(classes: Sequence[str], prompts: Sequence[str]) -> Sets:
    """The captions that ``prompts`` make of ``classes``: a list for each template.

    Of a file of descriptions as many lists as the class with the most sentences has.
    Raises ConfigError for a file that cannot be read, and names a class that it lacks.
    """
    sets: Sets = []
    for prompt in prompts:
        if prompt.startswith(DESCRIPTIONS):
            sets += described(classes, prompt.removeprefix(DESCRIPTIONS))
        else:
            sets.append(captions(classes, prompt))
    return sets


def described(classes: Sequence[str], path: str) -> Sets:
    """The sentences that the file at ``path`` has for each of ``classes``."""
    sentences = _read(path)
    of: list[list[str]] = []
    for name, words in zip(classes, class_words(classes)):
        key = _key_of(name, words, sentences)
        if key is None:
            near = did_you_mean(name, sentences)
            raise ConfigError(
                f"--prompt {DESCRIPTIONS}{path}: no description of the class "
                f"{name!r}{near}; add it"
            )
        of.append([sentence.replace("{}", words) for sentence in sentences[key]])
    most = max(map(len, of))
    return [[own[k] if k < len(own) else "" for own in of] for k in range(most)]


def unused(classes: Sequence[str], prompts: Sequence[str]) -> list[str]:
    """Lines on what a file of descriptions has beside those of ``classes``."""
    notes = []
    for prompt in prompts:
        if prompt.startswith(DESCRIPTIONS):
            sentences = _read(prompt.removeprefix(DESCRIPTIONS))
            named = zip(classes, class_words(classes))
            used = {_key_of(name, words, sentences) for name, words in named}
            if more := [key for key in sentences if key not in used]:
                notes.append(
                    f"--prompt {prompt} describes what these data have no class for, "
                    f"or describes a class twice: {some(more)}"
                )
    return notes


def _key_of(
    name: str, words: str, sentences: Mapping[str, Sequence[str]]
) -> str | None:
    """Under which name a class has its sentences: the first that is spelt alike."""
    keys = {spelling_key(name), spelling_key(words)}
    return next((key for key in sentences if spelling_key(key) in keys), None)


def _read(path: str) -> Mapping[str, Sequence[str]]:
    where = f"--prompt {DESCRIPTIONS}{path}"
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{where} cannot be read: {reason(error)}") from error
    expected = f'{where}: expected {{"class": ["a sentence", ...], ...}}'
    if not isinstance(found, dict):
        raise ConfigError(f"{expected}, got a {type(found).__name__}")
    sentences = {}
    for name, own in found.items():
        several = [own] if isinstance(own, str) else own
        if not isinstance(several, list) or not several:
            raise ConfigError(f"{expected}; {name!r} has none")
        if not all(isinstance(text, str) and text.strip() for text in several):
            raise ConfigError(f"{expected}; one of {name!r} is not a text, or empty")
        sentences[name] = [text.strip() for text in several]
    return sentences
