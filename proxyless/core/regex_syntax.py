"""The syntax of RE2: a pattern becomes a small tree, or is refused as RE2 refuses it.

Flags are resolved here: a node says what it matches, whatever `(?i)`, `(?s)` or `(?m)` stood before it. Not RE2, so refused:
look-around, back references, atomic groups and possessive quantifiers. RE2 but not supported, so refused too: `\\p` and `\\C`,
the flag `U`, negated classes inside of a class.

Patterns and texts are bytes, written as text with one character for each (`byte_text`): `.` is one byte of a UTF-8 character,
and case is that of ASCII. So Envoy compiles them (RE2's Latin-1; recorded from Envoy 1.40).

Source: RE2's syntax page and parser (`parse.cc`), flags as Envoy compiles: Perl classes, `\\b`, Latin-1, no longest match.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

__all__ = ["Alternative", "Assertion", "Characters", "Group", "Node", "Repeat", "Sequence_", "byte_text", "parse"]

MAX_CODE = 0xFF
_MAX_REPEAT = 1000  # RE2 kMaxRepeat
_MAX_DEPTH = 100

Ranges = tuple[tuple[int, int], ...]
AssertionKind = Literal["start", "end", "line_start", "line_end", "word", "no_word"]


# Plain classes: dataclasses would cost every process milliseconds of import.


class Characters:
    """One byte of a set: inclusive ranges, or all but those."""

    __slots__ = ("negated", "ranges")

    def __init__(self, ranges: Ranges, negated: bool = False) -> None:
        self.ranges, self.negated = ranges, negated

    def holds(self, code: int) -> bool:
        return any(low <= code <= high for low, high in self.ranges) != self.negated


class Assertion:
    __slots__ = ("kind",)

    def __init__(self, kind: AssertionKind) -> None:
        self.kind = kind


class Sequence_:
    __slots__ = ("nodes",)

    def __init__(self, nodes: tuple[Node, ...]) -> None:
        self.nodes = nodes


class Alternative:
    __slots__ = ("nodes",)

    def __init__(self, nodes: tuple[Node, ...]) -> None:
        self.nodes = nodes


class Repeat:
    """`most` None: without end."""

    __slots__ = ("lazy", "least", "most", "node")

    def __init__(self, node: Node, least: int, most: int | None, lazy: bool = False) -> None:
        self.node, self.least, self.most, self.lazy = node, least, most, lazy


class Group:
    """A capturing group."""

    __slots__ = ("name", "node")

    def __init__(self, node: Node, name: str = "") -> None:
        self.node, self.name = node, name


Node = Characters | Assertion | Sequence_ | Alternative | Repeat | Group


class _Flags(NamedTuple):
    ignore_case: bool = False
    multi_line: bool = False
    dot_all: bool = False


_DIGIT: Ranges = ((48, 57),)
_WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE: Ranges = ((9, 10), (12, 13), (32, 32))  # no vertical tab
_PERL = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_POSIX: dict[str, Ranges] = {
    "alnum": ((48, 57), (65, 90), (97, 122)),
    "alpha": ((65, 90), (97, 122)),
    "ascii": ((0, 127),),
    "blank": ((9, 9), (32, 32)),
    "cntrl": ((0, 31), (127, 127)),
    "digit": _DIGIT,
    "graph": ((33, 126),),
    "lower": ((97, 122),),
    "print": ((32, 126),),
    "punct": ((33, 47), (58, 64), (91, 96), (123, 126)),
    "space": ((9, 13), (32, 32)),
    "upper": ((65, 90),),
    "word": _WORD,
    "xdigit": ((48, 57), (65, 70), (97, 102)),
}
_ESCAPES = {"a": 7, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11}
# As text: `re` compiles and keeps them when the first pattern is parsed, not at import.
_REPEAT = r"\{([0-9]+)(?:(,)([0-9]*))?\}"
_GROUP = r"\(\?(?:P?<(?P<name>[A-Za-z_][A-Za-z0-9_]*)>|(?P<on>[imsU]*)(?:-(?P<off>[imsU]+))?(?P<end>[:)]))"
_HEX = r"x(?:([0-9A-Fa-f]{2})|\{([0-9A-Fa-f]{1,6})\})"
_OCTAL = r"0[0-7]{0,2}|[1-7][0-7]{1,2}"


def byte_text(text: str) -> str:
    """One character for each byte of the UTF-8 form. Surrogate escapes stand for a byte that is no UTF-8. Never raises."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("latin-1")
    except UnicodeEncodeError:  # other surrogates, which JSON can write
        return text.encode("utf-8", "surrogatepass").decode("latin-1")


def parse(pattern: str) -> Node:
    """Raises ValueError with the reason and the place."""
    return _Parser(byte_text(pattern)).whole()


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern, self.at, self.depth = pattern, 0, 0
        self.flags = _Flags()
        self.names: set[str] = set()

    def error(self, reason: str) -> ValueError:
        pattern = self.pattern.encode("latin-1").decode("utf-8", "replace")
        return ValueError(f"invalid regular expression {pattern!r}: {reason} (at {self.at}; the dialect is RE2)")

    def whole(self) -> Node:
        node = self.alternatives()
        if self.at < len(self.pattern):
            raise self.error("unexpected )")
        return node

    def alternatives(self) -> Node:
        """Up to the end or an unmatched `)`. Flags set inside hold until there, over bars too."""
        nodes = [self.sequence()]
        while self.pattern.startswith("|", self.at):
            self.at += 1
            nodes.append(self.sequence())
        return nodes[0] if len(nodes) == 1 else Alternative(tuple(nodes))

    def sequence(self) -> Node:
        nodes: list[Node] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            items = self.item()
            if items:
                items[-1] = self.repeated(items[-1])
                nodes.extend(items)
            elif self.quantifier_here():
                raise self.error("missing argument to repetition operator")
        return nodes[0] if len(nodes) == 1 else Sequence_(tuple(nodes))

    # -------------------------------------------------------------------------------------------------------- quantifiers

    def quantifier_here(self) -> bool:
        char = self.pattern[self.at : self.at + 1]
        return bool(char) and (
            char in "*+?" or (char == "{" and re.compile(_REPEAT).match(self.pattern, self.at) is not None)
        )

    def repeated(self, node: Node) -> Node:
        if not self.quantifier_here():
            return node
        char = self.pattern[self.at]
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(char, (0, None))
        if char == "{":
            least, most = self.counted()
        else:
            self.at += 1
        lazy = self.pattern.startswith("?", self.at)
        self.at += lazy
        if self.quantifier_here():
            raise self.error("a repetition operator follows another one")
        if isinstance(node, Assertion):
            raise self.error("an assertion cannot be repeated")
        return Repeat(node, least, most, lazy)

    def counted(self) -> tuple[int, int | None]:
        found = re.compile(_REPEAT).match(self.pattern, self.at)
        least = int(found[1]) if found else 0
        most = least
        if found and found[2]:
            most = int(found[3]) if found[3] else -1
        if max(least, most) > _MAX_REPEAT or -1 < most < least:
            raise self.error("invalid repetition size")
        self.at = found.end() if found else self.at
        return least, None if most < 0 else most

    # --------------------------------------------------------------------------------------------------------------- items

    def item(self) -> list[Node]:
        """One element; several for quoted text; none for flags alone."""
        char = self.pattern[self.at]
        if char == "\\":
            return self.escape()
        if char == "(":
            return self.group()
        if char == "[":
            return [self.char_class()]
        if self.quantifier_here():
            raise self.error("missing argument to repetition operator")
        self.at += 1
        if char == "^":
            return [Assertion("line_start" if self.flags.multi_line else "start")]
        if char == "$":
            return [Assertion("line_end" if self.flags.multi_line else "end")]
        if char == ".":
            return [Characters(() if self.flags.dot_all else ((10, 10),), negated=True)]
        return [self.literal(ord(char))]

    def literal(self, code: int) -> Characters:
        return Characters(_folded(((code, code),)) if self.flags.ignore_case else ((code, code),))

    def group(self) -> list[Node]:
        found = re.compile(_GROUP).match(self.pattern, self.at)
        if found is None and self.pattern.startswith("(?", self.at):
            raise self.error(f"{self.pattern[self.at : self.at + 4]!r} is no group of RE2")
        outer = self.flags
        self.at += 1 if found is None else len(found[0])
        if found is not None and not found["name"]:
            self.set_flags(found["on"], found["off"] or "", alone=found["end"] == ")")
            if found["end"] == ")":
                return []
        name = "" if found is None else found["name"] or ""
        if name in self.names:
            raise self.error(f"group name {name!r} occurs twice")
        self.names.update(filter(None, [name]))
        node = self.nested()
        self.flags = outer
        return [Group(node, name) if found is None or name else node]

    def nested(self) -> Node:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise self.error(f"groups are nested more than {_MAX_DEPTH} deep")
        node = self.alternatives()
        self.depth -= 1
        if not self.pattern.startswith(")", self.at):
            raise self.error("missing )")
        self.at += 1
        return node

    def set_flags(self, on: str, off: str, *, alone: bool) -> None:
        if "U" in on + off:
            raise self.error("flag U (ungreedy) is not supported")
        if alone and not on and not off:
            raise self.error("missing flags in (?)")
        values = [(flag in on or old) and flag not in off for flag, old in zip("ims", self.flags, strict=True)]
        self.flags = _Flags(*values)

    def escape(self) -> list[Node]:
        kind = self.pattern[self.at + 1 : self.at + 2]
        if kind == "Q":
            end = self.pattern.find("\\E", self.at + 2)
            text = self.pattern[self.at + 2 : end if end >= 0 else len(self.pattern)]
            self.at += 2 + len(text) + (2 if end >= 0 else 0)
            return [self.literal(ord(char)) for char in text]
        assertions: dict[str, AssertionKind] = {"A": "start", "z": "end", "b": "word", "B": "no_word"}
        if kind in assertions:
            self.at += 2
            return [Assertion(assertions[kind])]
        if kind.lower() in _PERL and kind:
            self.at += 2
            return [Characters(_PERL[kind.lower()], negated=kind.isupper())]
        return [self.literal(self.escaped_code())]

    def escaped_code(self) -> int:
        """The byte that an escape stands for."""
        rest = self.pattern[self.at + 1 : self.at + 12]
        char = rest[:1]
        if not char:
            raise self.error("trailing \\")
        if char in _ESCAPES:
            self.at += 2
            return _ESCAPES[char]
        if char == "x":
            return self.hexadecimal(rest)
        octal = re.match(_OCTAL, rest)
        if octal is not None:
            self.at += 1 + len(octal[0])
            return int(octal[0], 8)
        if char.isdigit():
            raise self.error("back references do not exist in RE2")
        if char.isalnum() or char == "_" or not char.isascii():
            raise self.error(f"escape \\{char} is not supported")
        self.at += 2
        return ord(char)

    def hexadecimal(self, rest: str) -> int:
        found = re.match(_HEX, rest)
        code = int(found[1] or found[2], 16) if found else MAX_CODE + 1
        if found is None or code > MAX_CODE:
            raise self.error("invalid escape \\x")
        self.at += 1 + len(found[0])
        return code

    # --------------------------------------------------------------------------------------------------- character classes

    def char_class(self) -> Characters:
        start = self.at
        self.at += 1
        negated = self.pattern.startswith("^", self.at)
        self.at += negated
        ranges: list[tuple[int, int]] = []
        first = True
        while first or not self.pattern.startswith("]", self.at):
            first = False
            if self.at >= len(self.pattern):
                self.at = start
                raise self.error("missing ]")
            ranges.extend(self.class_item())
        self.at += 1
        found = tuple(ranges)
        return Characters(_folded(found) if self.flags.ignore_case else found, negated)

    def class_item(self) -> Ranges:
        pattern = self.pattern
        if pattern.startswith("[:", self.at) and (end := pattern.find(":]", self.at)) >= 0:
            name = pattern[self.at + 2 : end]
            if name not in _POSIX:
                raise self.error(f"character class [:{name}:] is not supported")
            self.at = end + 2
            return _POSIX[name]
        kind = pattern[self.at + 1 : self.at + 2] if pattern[self.at] == "\\" else ""
        if kind and kind.lower() in _PERL:
            self.at += 2
            return _complement(_PERL[kind.lower()]) if kind.isupper() else _PERL[kind]
        low = high = self.class_code()
        if pattern.startswith("-", self.at) and pattern[self.at + 1 : self.at + 2] not in ("]", ""):
            self.at += 1
            high = self.class_code()
        if high < low:
            raise self.error("invalid character class range")
        return ((low, high),)

    def class_code(self) -> int:
        if self.pattern[self.at] == "\\":
            return self.escaped_code()
        self.at += 1
        return ord(self.pattern[self.at - 1])


def _complement(ranges: Ranges) -> Ranges:
    """Of sorted ranges that do not overlap."""
    out, at = [], 0
    for low, high in ranges:
        if at < low:
            out.append((at, low - 1))
        at = high + 1
    return (*out, (at, MAX_CODE))


def _folded(ranges: Ranges) -> Ranges:
    """With the other case of ASCII letters."""
    out = list(ranges)
    for low, high in ranges:
        for first, shift in ((65, 32), (97, -32)):
            start, end = max(low, first), min(high, first + 25)
            if start <= end:
                out.append((start + shift, end + shift))
    return tuple(out)
