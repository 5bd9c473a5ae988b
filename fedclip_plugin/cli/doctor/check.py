"""One finding of the doctor, and errors as findings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import FedClipError, translate


@dataclass(frozen=True)
class Check:
    """One finding; ``remedy`` says what to do about a warning or a failure."""

    name: str
    status: str  # ok, warn or fail
    detail: str
    remedy: str = ""

    @property
    def failed(self) -> bool:
        """Whether a run would not get far."""
        return self.status == "fail"


def guarded(
    name: str, part: Callable[[], Sequence[Check]], remedy: str = ""
) -> Sequence[Check]:
    """The checks of ``part``; its error as one more, so that it hides no other.

    ``remedy`` stands in for an error that tells none after a semicolon.
    """
    try:
        return part()
    except FedClipError as error:
        detail, _, advice = str(error).partition("; ")
        return [Check(name, "fail", detail, advice or remedy)]
    except Exception as error:  # a broken installation can fail anywhere
        if translated := translate(error):
            return [Check(name, "fail", str(translated), remedy)]
        return [Check(name, "fail", f"{type(error).__name__}: {error}")]


def doubted(name: str, notes: Sequence[str]) -> list[Check]:
    """A warning for each note; what follows its first semicolon is the remedy."""
    split = [note.partition("; ") for note in notes]
    return [
        Check(
            f"{name} note{f' {i}' if i else ''}", "warn", detail, remedy or "see docs"
        )
        for i, (detail, _, remedy) in enumerate(split)
    ]
