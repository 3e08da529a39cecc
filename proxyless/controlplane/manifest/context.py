"""What one document's decoding and checking share: where messages go, and where fields stand in the file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from proxyless.errors import Place

from .messages import Message, Severity, Subject

__all__ = ["Context", "child_path"]

_PLAIN_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def child_path(path: str, key: str) -> str:
    """``spec`` and ``hosts`` -> ``spec.hosts``; keys that are no plain word stand in brackets and quotes."""
    if not _PLAIN_KEY.fullmatch(key):
        return f'{path}["{key}"]'
    return f"{path}.{key}" if path else key


@dataclass(slots=True)
class Context:
    """Collects messages and the places of fields.

    Attributes:
        place: of the document.
        failed: a value could not be read, so that rules over several fields make no sense.
    """

    place: Place
    subject: Subject = field(default_factory=Subject)
    places: dict[str, Place] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    failed: bool = False
    ancestors: list[tuple[str, type]] = field(default_factory=list)
    annotations: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def refused(self) -> bool:
        return any(message.severity == "error" for message in self.messages)

    def has(self, path: str) -> bool:
        """The field is written in the file, be it empty."""
        return path in self.places

    def place_of(self, path: str) -> Place:
        """Place of a field, or of the nearest one around it that is in the file."""
        while path:
            if path in self.places:
                return self.places[path]
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.place

    def report(
        self, severity: Severity, code: str, path: str, reason: str, hint: str = "", place: Place | None = None
    ) -> None:
        where = place or self.place_of(path)
        self.messages.append(Message(severity, code, where, path, reason, hint, self.subject))

    def error(self, path: str, reason: str, hint: str = "", *, code: str = "invalid") -> None:
        self.report("error", code, path, reason, hint)

    def warn(self, path: str, reason: str, hint: str = "", *, code: str = "suspicious") -> None:
        self.report("warning", code, path, reason, hint)
