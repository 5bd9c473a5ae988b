"""Names that users select by, and what third parties add to them by entry point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Generic, TypeVar

from ..errors import ConfigError, did_you_mean, spelling_key

T = TypeVar("T")


class Registry(Generic[T]):
    """Lower-case names -> things of one ``kind``, each name given once.

    A name that is not registered is looked up among the entry points of ``group``, so
    an installed package adds its own without being imported before.  ``elsewhere`` says
    of names that users may expect here which options stand for them.
    """

    def __init__(
        self, kind: str, group: str, elsewhere: Mapping[str, str] | None = None
    ) -> None:
        self.kind = kind
        self.group = group
        self.elsewhere = dict(elsewhere or {})
        self._items: dict[str, T] = {}

    def register(self, name: str, item: T) -> T:
        """Add ``item``; raises ConfigError for a name that is taken or malformed."""
        if name != name.lower() or not name.strip():
            raise ConfigError(
                f"{self.kind} {name!r}: expected a lower-case name, "
                f"such as {name.strip().lower() or 'mine'!r}"
            )
        taken = self._items.get(name)
        if taken is not None and taken is not item:
            raise ConfigError(
                f"{self.kind} {name!r} is registered already, as {taken!r}; "
                "choose another name"
            )
        self._items[name] = item
        return item

    def get(self, name: str) -> T:
        """What ``name``, in any case, stands for; ConfigError with a suggestion."""
        key = name.lower()
        if key not in self._items:
            for point in self._entry_points(key):
                self.register(key, self._load(point))
        if key in self._items:
            return self._items[key]
        names = self.names()
        by_key = {spelling_key(other): use for other, use in self.elsewhere.items()}
        if (use := by_key.get(spelling_key(key))) is not None:
            raise ConfigError(
                f"--{self.kind} {name}: no --{self.kind} of its own: {use}"
            )
        raise ConfigError(
            f"unknown --{self.kind} {name!r}{did_you_mean(key, names)} "
            f"(known: {', '.join(names)})"
        )

    def names(self) -> list[str]:
        """All names, those of entry points included."""
        entry_points = {point.name.lower() for point in self._entry_points()}
        return sorted(entry_points | set(self._items))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self.names()

    def _entry_points(self, name: str | None = None) -> Iterator[metadata.EntryPoint]:
        for point in metadata.entry_points(group=self.group):
            if name is None or point.name.lower() == name:
                yield point

    def _load(self, point: metadata.EntryPoint) -> T:
        try:
            item: T = point.load()
        except Exception as error:  # code of others: anything may come
            raise ConfigError(
                f"{self.kind} {point.name!r} of {point.value} cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
        return item
