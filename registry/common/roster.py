"""Who takes part: what the clients say about themselves, and whom the server accepts.

All must name the same classes and use the same frozen model: an adapter averaged over
different ones would be silently spoilt.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...algorithms import Client, Task, make_algorithm
from ...config.schema import RunConfig
from ...data.partition import resolve_target
from ...errors import UpdateError
from ...features.feature_set import FeatureSet
from ...features.obtain import obtain_features
from ...federation.build import (
    Federation,
    check_together,
    participants,
    target_samples,
)
from ...federation.doubts import check_training
from ...federation.evaluation import score_zero_shot
from ...ops.kernels import resolve_device
from ...runs.host_run import Setup, one_run, open_setup
from ...server.privacy import drawing_seed
from ...storage import shapes

Node = TypeVar("Node", int, str)  # how a host calls a process that takes part
MOST_TOLD = 2**31  # clients, or rows, that are believed to be there
_PROJECTIONS = 8
_TOLERANCE = 0.2  # relative: bf16 text features differ by 0.05, other weights by 1.4


@dataclass(frozen=True)
class Card:
    """What a client says before it trains; only plain values, no data.

    ``sketch`` are the normalised text features on a few random directions: enough to
    tell another model, also where the precision differs.  ``zero_shot`` is the frozen
    model's accuracy on the client's test split, -1 without test rows.  ``text`` are the
    text features, (C, D) float32 little-endian, where the algorithm of the server needs
    them (``Algorithm.text_at_server``); else nothing.
    """

    name: str
    index: int
    federation: int  # clients that the client's data set makes; 1 for data of its own
    classes: list[str]
    model: str
    pretrained: str
    prompt: list[str]
    embed_dim: int
    logit_scale: float
    sketch: list[float]
    key: str
    rows: list[int]  # train, val, test
    zero_shot: float
    text: bytes = b""

    @property
    def shot(self) -> float | None:
        """Zero-shot accuracy; None without test rows."""
        return self.zero_shot if 0 <= self.zero_shot <= 1 else None

    def as_dict(self) -> dict[str, Any]:
        """The fields: plain values, and bytes."""
        return asdict(self)


def make_card(setup: Setup, client: Client, own_data: bool) -> Card:
    """The card of ``client``."""
    features, task = setup.features, setup.fed.task
    zero_shot: Any = score_zero_shot([client], None, task)["clients"]
    accuracy = zero_shot[client.name]
    return Card(
        name=client.name,
        index=client.index,
        federation=1 if own_data else len(setup.fed.clients),
        rows=[len(client.train), len(client.val), len(client.test)],
        zero_shot=-1.0 if accuracy is None else accuracy,
        text=_packed(features) if setup.fed.algorithm.text_at_server else b"",
        **_model(features),
    )


def _model(features: FeatureSet) -> dict[str, Any]:
    prompt = features.prompt
    return {
        "classes": list(features.classes),
        "model": features.model,
        "pretrained": features.pretrained,
        "prompt": [prompt] if isinstance(prompt, str) else list(prompt),
        "embed_dim": features.embed_dim,
        "logit_scale": features.logit_scale,
        "sketch": _sketch(features.class_text),
        "key": features.key,
    }


def _packed(features: FeatureSet) -> bytes:
    return features.class_text.cpu().float().numpy().astype("<f4").tobytes()


def _text_of(card: Card) -> Tensor:
    """(C, D) text features of a card; zeros where it has none.

    Raises UpdateError for bytes that are not those of the card's model.
    """
    shape = len(card.classes), card.embed_dim
    if not card.text:
        return torch.zeros(shape)
    text = torch.from_numpy(np.frombuffer(card.text, "<f4").astype(np.float32))
    sketch = _sketch(text.reshape(shape))
    if not np.allclose(sketch, card.sketch, rtol=1e-3, atol=1e-3):
        raise UpdateError("its text features are not those of its model")
    return text.reshape(shape)


def _sketch(text: Tensor) -> list[float]:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(text.shape[1], _PROJECTIONS, generator=generator)
    values: list[float] = (text.cpu() @ directions).flatten().tolist()
    return values


def _between(low: float, high: float) -> shapes.Check:
    def found(value: Any) -> str | None:
        inside = type(value) in (int, float) and low <= value <= high
        return None if inside else f"expected {low:g} to {high:g}"

    return found


_SOUND = shapes.fields(
    {
        **dict.fromkeys(("name", "model", "pretrained", "key"), shapes.text),
        "index": _between(0, MOST_TOLD),
        "federation": _between(1, MOST_TOLD),
        "classes": shapes.several(shapes.text, 100_000),
        "prompt": shapes.several(shapes.text, 1_000),
        "embed_dim": _between(1, 65_536),
        "logit_scale": _between(1e-6, 1e6),
        "sketch": shapes.several(shapes.number, 1_000_000),
        "rows": shapes.several(shapes.count, 3),
        "zero_shot": _between(-1, 1),
    }
)


def read_card(values: Mapping[str, Any]) -> Card:
    """The card in a record; raises UpdateError for one of another version."""
    kinds = {f.name: str(f.type).partition("[")[0] for f in fields(Card)}
    received = {name: type(value).__name__ for name, value in values.items()}
    odd = sorted(n for n in {*kinds, *received} if kinds.get(n) != received.get(n))
    if odd or not values["name"].isprintable():
        raise UpdateError(
            f"its answer is not that of this fedclip-plugin ({', '.join(odd)}): "
            "install the same version everywhere"
        )
    if wrong := _SOUND({k: v for k, v in values.items() if k != "text"}):
        raise UpdateError(f"its answer is not sound: {wrong}")
    card = Card(**values)
    if not any(card.sketch):
        raise UpdateError("its answer is not sound: all its text features are zeros")
    if card.text and len(card.text) != 4 * len(card.classes) * card.embed_dim:
        raise UpdateError("its answer is not sound: text features of another shape")
    _text_of(card)
    return card


def setup_without_data(config: RunConfig, cards: Sequence[Card]) -> Setup:
    """The run of a server that has no data: all it knows is what the clients said.

    The text features are a client's, or zeros of the right shape where the algorithm
    does not need them at the server: such a server scores nothing.  Raises UpdateError
    where they are needed and nobody sent them.
    """
    algorithm = make_algorithm(config)
    card = common_model([c for c in cards if c.text] or cards)
    if algorithm.text_at_server and not card.text:
        raise UpdateError(
            f"--alg {algorithm.name}: no client sent the text features that the server "
            "needs: install the same version everywhere"
        )
    text = _text_of(card)
    keys = sorted({c.key for c in cards})
    features = FeatureSet(
        model=card.model,
        pretrained=card.pretrained,
        prompt=card.prompt[0] if len(card.prompt) == 1 else tuple(card.prompt),
        classes=tuple(card.classes),
        domains=tuple(c.name for c in cards),
        logit_scale=card.logit_scale,
        embed_dim=card.embed_dim,
        key=keys[0] if len(keys) == 1 else _hash(keys),
        image={},
        label={},
        text=text,
    )
    check_together(config, algorithm)
    scale = card.logit_scale
    task = Task.of(config, algorithm.Params(), text, scale, config.seeds[0])
    fed = Federation(algorithm, task, (), None)
    return Setup(config, features, fed, None)


def setup_of_server(config: RunConfig, alone: bool = False) -> Setup:
    """The run of a server that has the held-out domain: it scores that itself.

    Other domains beside it are the clients', whom it scores too, unless ``alone`` says
    that clients have data that nobody else has; nor are there any where it has no other
    domain.
    """
    config = one_run(config)
    features, _ = obtain_features(config)
    (asked,) = config.data.targets
    target = resolve_target(features.domains, asked)
    if not alone and len(features.domains) > 1:
        setup = open_setup(config)
        check_training(setup.fed)
        return setup
    algorithm, device = make_algorithm(config), resolve_device(config.model.device)
    check_together(config, algorithm)
    text, scale = features.class_text.to(device), features.logit_scale
    task = Task.of(config, algorithm.Params(), text, scale, config.seeds[0])
    held_out = target_samples(features, target, device)
    return Setup(config, features, Federation(algorithm, task, (), held_out), target)


def card_of_target(setup: Setup) -> Card:
    """What clients must match beside a server with the held-out domain."""
    return Card(
        name=setup.target or "",
        index=0,
        federation=max(1, len(setup.fed.clients)),
        rows=[0, 0, 0],
        zero_shot=-1.0,
        **_model(setup.features),
    )


def _hash(keys: Sequence[str]) -> str:
    return hashlib.sha256("|".join(keys).encode()).hexdigest()


class Roster(Generic[Node]):
    """The nodes that answered, and those among them that are clients of the run.

    ``word`` is the host's for a node, ``log`` where refusals are told.
    """

    def __init__(self, log: logging.Logger, word: str = "node") -> None:
        self.cards: dict[Node, Card] = {}
        self.model: Card | None = None  # what everyone must match
        self._refused: dict[Node, str] = {}
        self._log, self._word = log, word

    def strangers(self, nodes: Iterable[Node]) -> list[Node]:
        """The nodes that have not been asked yet."""
        return [n for n in nodes if n not in self.cards and n not in self._refused]

    def name(self, node: Node) -> str:
        """How to call a node in a message."""
        card, called = self.cards.get(node), f"{self._word} {node}"
        return f"client {card.name} ({called})" if card else called

    @property
    def refused(self) -> dict[Node, str]:
        """Why nodes are left out."""
        return dict(self._refused)

    def add(self, node: Node, card: Card) -> None:
        """Take a node in that has answered."""
        self.cards[node] = card

    def pardon(self, node: Node) -> None:
        """Ask a node anew what it is: its process is another one."""
        self._refused.pop(node, None)

    def refuse(self, node: Node, reason: str) -> None:
        """Leave a node out; said once."""
        if self._refused.get(node) != reason:
            self._log.error("%s refused: %s", self.name(node), reason)
        self._refused[node] = reason

    def clients(self, nodes: Sequence[Node]) -> dict[Node, Card]:
        """The clients among the connected ``nodes``, node -> card, in client order.

        Of two nodes with one name the first has it, for as long as it is connected.
        """
        if self.model is None and self.cards:
            self.model = common_model(list(self.cards.values()))
        present = set(nodes)
        taken: dict[str, Node] = {}
        for node, card in self.cards.items():
            if node not in present:
                continue
            reason = difference(card, self.model) if self.model else None
            if reason is None and card.name in taken:
                reason = (
                    f"{self._word} {taken[card.name]} is client {card.name} already: "
                    f"give each {self._word} a partition-id, or a client-name, of its "
                    "own"
                )
            if reason is None:
                taken[card.name] = node
                self._refused.pop(node, None)
            else:
                self.refuse(node, reason)
        clients = {node: self.cards[node] for node in taken.values()}
        return dict(sorted(clients.items(), key=lambda kv: (kv[1].index, kv[1].name)))

    def refusals(self) -> list[str]:
        """Why nodes are left out."""
        return [f"{self.name(n)}: {why}" for n, why in self._refused.items()]


def draw(
    cards: Mapping[Node, Card],
    config: RunConfig,
    share: float,
    round_number: int,
    least: int = 1,
) -> dict[Node, str]:
    """Node -> name of a ``share`` of the clients: the same for the same seed."""
    if not cards:
        return {}
    share = min(1.0, max(share, least / len(cards)))
    seed = drawing_seed(config.privacy, config.seeds[0])
    chosen = participants(list(cards.items()), share, seed, round_number)
    return {node: card.name for node, card in chosen}


def common_model(cards: Sequence[Card]) -> Card:
    """The card whose classes and model most clients have; of equals the first."""
    cards = sorted(cards, key=lambda card: (card.index, card.name))

    def model(card: Card) -> str:
        return repr([getattr(card, name) for name in _EXACT])

    ((most, _),) = Counter(map(model, cards)).most_common(1)
    return next(card for card in cards if model(card) == most)


_EXACT = {
    "classes": "its classes are",
    "model": "its model is",
    "pretrained": "its weights are",
    "prompt": "its prompts are",
    "embed_dim": "its features have the width",
}


def difference(card: Card, model: Card) -> str | None:
    """Why a client cannot take part beside clients with ``model``; None if it can."""
    for name, words in _EXACT.items():
        mine, theirs = getattr(card, name), getattr(model, name)
        if mine != theirs:
            return f"{words} {_short(mine)}, while the run has {_short(theirs)}"
    mine, theirs = torch.tensor(card.sketch), torch.tensor(model.sketch)
    if mine.shape == theirs.shape:
        text = float((mine - theirs).norm() / theirs.norm())
        scale = abs(card.logit_scale / model.logit_scale - 1)
        if text <= _TOLERANCE and scale <= _TOLERANCE:
            return None
    return (
        f"its {card.model} {card.pretrained} gives other text features than that of "
        "the run: use the same weights file everywhere"
    )


def _short(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    shown = ", ".join(map(str, value[:6]))
    return f"{shown}, ... ({len(value)})" if len(value) > 6 else shown
