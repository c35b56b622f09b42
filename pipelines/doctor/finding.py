"""What a check finds: one line, good, worth a note, or a problem with its cure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from featbench.store.typing import Json

State = Literal["good", "note", "problem"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report."""

    name: str
    """What was looked at, in a few words."""

    state: State
    detail: str
    """What was found."""

    advice: str = ""
    """What to do; empty if all is well."""

    def __str__(self) -> str:
        said = self.detail if self.state == "good" else f"{self.state.upper()}: {self.detail}"
        return f"{said} {self.advice}".rstrip()

    def record(self) -> Json:
        """Return it as plain values for JSON."""
        return asdict(self)


def good(name: str, detail: str) -> Finding:
    """Say that all is well."""
    return Finding(name=name, state="good", detail=detail)


def note(name: str, detail: str, advice: str = "") -> Finding:
    """Say what works, though something else might work better."""
    return Finding(name=name, state="note", detail=detail, advice=advice)


def problem(name: str, detail: str, advice: str) -> Finding:
    """Say what does not work, and what to do."""
    return Finding(name=name, state="problem", detail=detail, advice=advice)
