"""YAML text to documents of nodes that know their place.

Differences from ``yaml.safe_load``: plain words get the types that istiod's YAML 1.1 reader gives them (``y`` and ``off``
are booleans), duplicate keys are kept for reporting, broken documents do not hide the others of their file, and size,
nesting and alias expansion are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import yaml

from proxyless.errors import Place

__all__ = [
    "Node",
    "SyntaxProblem",
    "YamlMapping",
    "YamlScalar",
    "YamlSequence",
    "read_documents",
]

MAX_BYTES: Final = 4 * 2**20
MAX_DEPTH: Final = 50
MAX_NODES: Final = 100_000

ScalarType = Literal["string", "number", "boolean", "null"]

_NULL: Final = re.compile(r"~|null|Null|NULL|")
_BOOLEAN: Final = re.compile(r"y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF")
_NUMBER: Final = re.compile(
    r"[-+]?(?:0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*|(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
)
_DOCUMENT_EDGE: Final = re.compile(r"^(?:---|\.\.\.)(?=[ \t]|$)")
_STRING_TAG: Final = "tag:yaml.org,2002:str"
_PLAIN: Final = "plain"


@dataclass(frozen=True, slots=True)
class SyntaxProblem:
    """A document cannot be read at all."""

    place: Place
    reason: str
    hint: str = ""


@dataclass(slots=True)
class YamlScalar:
    text: str
    type: ScalarType
    place: Place


@dataclass(slots=True)
class YamlMapping:
    """``duplicates``: repeated keys as (key, place of the first)."""

    place: Place
    entries: list[tuple[YamlScalar, Node]] = field(default_factory=list)
    duplicates: list[tuple[YamlScalar, Place]] = field(default_factory=list)

    def get(self, name: str) -> Node | None:
        return next((value for key, value in self.entries if key.text == name), None)


@dataclass(slots=True)
class YamlSequence:
    place: Place
    items: list[Node] = field(default_factory=list)


Node: TypeAlias = YamlScalar | YamlMapping | YamlSequence


def read_documents(content: bytes | str, file: str) -> Iterator[Node | SyntaxProblem]:
    """The documents of a file in order; empty ones are left out."""
    text = _decode(content, file)
    if isinstance(text, SyntaxProblem):
        yield text
        return
    for first_line, chunk in _split(text):
        if not chunk.strip():
            continue
        try:
            node = _Composer(chunk).get_single_node()
            if node is not None:
                yield _Converter(file, first_line).convert(node, 0)
        except _TooMuchError as problem:
            yield SyntaxProblem(_place(problem.mark, file, first_line), problem.reason, problem.hint)
        except yaml.MarkedYAMLError as error:
            yield _explain(error, chunk, file, first_line)
        except yaml.reader.ReaderError as error:
            before = chunk[: error.position]
            line, column = before.count("\n"), len(before) - before.rfind("\n")
            yield SyntaxProblem(
                Place(file, first_line + line, column), f"character U+{ord(chr(error.character)):04X} is not allowed"
            )


def _decode(content: bytes | str, file: str) -> str | SyntaxProblem:
    if len(content) > MAX_BYTES:
        return SyntaxProblem(Place(file, 1, 1), f"larger than {MAX_BYTES >> 20} MiB", "split the file")
    if isinstance(content, bytes):
        raw = content
        try:
            content = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            column = error.start - raw.rfind(b"\n", 0, error.start)
            return SyntaxProblem(Place(file, line, column), "not UTF-8 text", "save the file as UTF-8")
    # A byte order mark may stand before any document: files are concatenated.
    return re.sub(r"(?m)^\ufeff", "", content.replace("\r\n", "\n").replace("\r", "\n"))


def _split(text: str) -> Iterator[tuple[int, str]]:
    """(number of the first line, text) of each document.

    ``---`` and ``...`` at the start of a line end a document wherever they stand (YAML 1.2, 9.1), so the cut is exact.
    Directives are dropped.
    """
    lines: list[str] = []
    first = 1
    for number, line in enumerate(text.split("\n"), 1):
        if _DOCUMENT_EDGE.match(line):
            yield first, "\n".join(lines)
            first, lines = number, ["   " + line[3:]]
        elif line.startswith("%") and not any(kept.strip() for kept in lines):
            lines.append("")
        else:
            lines.append(line)
    yield first, "\n".join(lines)


def _place(mark: Any, file: str, first_line: int) -> Place:
    if mark is None:
        return Place(file, first_line, 1)
    return Place(file, first_line + mark.line, mark.column + 1)


def _explain(error: yaml.MarkedYAMLError, chunk: str, file: str, first_line: int) -> SyntaxProblem:
    mark = error.problem_mark or error.context_mark
    parts = [part for part in (error.context, error.problem) if part]
    lines = chunk.split("\n")
    line = lines[mark.line] if mark is not None and mark.line < len(lines) else ""
    hint = error.note or ""
    if "{{" in chunk:
        hint = "looks like a template: render it first"
    elif "\t" in line[: len(line) - len(line.lstrip())] or "'\\t'" in (error.problem or ""):
        hint = "indent with spaces, not tabs"
    elif error.context == "while scanning an alias" or "that cannot start any token" in (error.problem or ""):
        hint = "quote a value that begins with *, &, %, @ or another special character"
    elif "mapping values are not allowed" in (error.problem or ""):
        hint = "check the indentation, and quote a value that holds ': '"
    return SyntaxProblem(_place(mark, file, first_line), f"broken YAML: {', '.join(parts)}", hint)


class _TooMuchError(Exception):
    def __init__(self, mark: Any, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.mark, self.reason, self.hint = mark, reason, hint


class _Composer(yaml.SafeLoader):
    """Composes nodes with bounded depth and number; tags are left to the converter."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        self._count += 1
        if self._depth > MAX_DEPTH or self._count > MAX_NODES:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call] # PyYAML's stubs leave it open
            raise _TooMuchError(mark, f"more than {MAX_DEPTH} levels or {MAX_NODES} values in one document")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _STRING_TAG
        return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call] # as above


class _Converter:
    """PyYAML's nodes to ours; aliases are written out, which is what bounds them."""

    def __init__(self, file: str, first_line: int) -> None:
        self._file, self._first_line, self._count = file, first_line, 0

    def convert(self, node: Any, depth: int) -> Node:
        self._count += 1
        if self._count > MAX_NODES or depth > MAX_DEPTH:
            raise _TooMuchError(node.start_mark, "aliases make this document too large", "write the values out")
        place = _place(node.start_mark, self._file, self._first_line)
        if isinstance(node, yaml.ScalarNode):
            return YamlScalar(node.value, _type_of(node), place)
        if isinstance(node, yaml.SequenceNode):
            return YamlSequence(place, [self.convert(item, depth + 1) for item in node.value])
        return self._mapping(node, place, depth)

    def _mapping(self, node: Any, place: Place, depth: int) -> YamlMapping:
        mapping, merged = YamlMapping(place), YamlMapping(place)
        seen: dict[str, Place] = {}
        for key_node, value_node in node.value:
            key = self.convert(key_node, depth + 1)
            if not isinstance(key, YamlScalar):
                hint = "looks like a template: render it first" if isinstance(key, YamlMapping) else ""
                raise _TooMuchError(key_node.start_mark, "a key must be a word", hint)
            value = self.convert(value_node, depth + 1)
            if key.text == "<<" and key_node.tag == _PLAIN:
                self._merge(merged, value, value_node)
            elif key.text in seen:
                mapping.duplicates.append((key, seen[key.text]))
            else:
                seen[key.text] = key.place
                mapping.entries.append((key, value))
        mapping.entries += [(key, value) for key, value in merged.entries if key.text not in seen]
        return mapping

    def _merge(self, into: YamlMapping, value: Node, value_node: Any) -> None:
        """Merge key of YAML 1.1: the first of several mappings wins, written keys win over all."""
        for source in value.items if isinstance(value, YamlSequence) else [value]:
            if not isinstance(source, YamlMapping):
                raise _TooMuchError(value_node.start_mark, "'<<' needs a mapping")
            known = {key.text for key, _ in into.entries}
            into.entries += [(key, inner) for key, inner in source.entries if key.text not in known]


def _type_of(node: Any) -> ScalarType:
    if node.tag == _STRING_TAG:
        return "string"
    if node.tag != _PLAIN and not node.tag.startswith("tag:yaml.org,2002:"):
        raise _TooMuchError(node.start_mark, f"tag {node.tag!r} has no meaning here")
    if _NULL.fullmatch(node.value):
        return "null"
    if _BOOLEAN.fullmatch(node.value):
        return "boolean"
    if _NUMBER.fullmatch(node.value):
        return "number"
    return "string"
