"""What the loader says: errors, warnings, notices, each with its place, as one line or as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from proxyless.errors import ManifestError, Place

__all__ = ["Message", "Severity", "Subject", "sorted_messages"]

Severity = Literal["error", "warning", "notice"]


@dataclass(frozen=True, slots=True)
class Subject:
    """The resource that a message is about; what could not be read is empty."""

    kind: str = ""
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        if not self.kind:
            return ""
        full_name = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {full_name}".rstrip()


@dataclass(frozen=True, slots=True)
class Message:
    """One finding.

    Attributes:
        code: machine-readable sort of finding, for example ``unknown-field``.
        path: field path such as ``spec.http[0].timeout``; empty for the document itself.
        reason: what is so; hint: what to do, may be empty.
    """

    severity: Severity
    code: str
    place: Place
    path: str
    reason: str
    hint: str = ""
    subject: Subject = Subject()

    def __str__(self) -> str:
        subject, path = str(self.subject), self.path
        return (
            f"{self.place}: {self.severity}"
            + (f" [{subject}]" if subject else "")
            + (f" {path}: " if path else ": ")
            + self.reason
            + (f" ({self.hint})" if self.hint else "")
        )

    def as_json(self) -> dict[str, Any]:
        """The same as one flat JSON object."""
        return {
            "severity": self.severity,
            "code": self.code,
            "file": self.place.file,
            "line": self.place.line,
            "column": self.place.column,
            "kind": self.subject.kind,
            "namespace": self.subject.namespace,
            "name": self.subject.name,
            "path": self.path,
            "reason": self.reason,
            "hint": self.hint,
        }

    def as_error(self) -> ManifestError:
        return ManifestError(self.place, self.path, self.reason, self.hint)


def sorted_messages(messages: Sequence[Message]) -> Iterator[Message]:
    """In the order of the files, lines and columns; each once."""
    seen: set[Message] = set()
    for message in sorted(messages, key=lambda m: (m.place.file, m.place.line, m.place.column, m.path)):
        if message not in seen:
            seen.add(message)
            yield message
