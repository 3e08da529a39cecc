"""Matchers over strings, headers, query parameters, paths and addresses, compiled once for each snapshot.

Sources: Envoy type.matcher.v3.StringMatcher, route.v3.HeaderMatcher, route.v3.RouteMatch; recorded behaviour of Envoy 1.40
(repeated headers are compared value by value, `user-agent` and `content-type` excepted).

Constructors raise ValueError, with the reason, for what cannot be compiled. Text that comes from the wire is latin-1 decoded
(one character per byte); matchers read it as UTF-8, as the patterns of a configuration are.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from functools import partial
from operator import methodcaller
from typing import Literal

from proxyless.core.regex import full_matcher
from proxyless.core.regex_syntax import byte_text
from proxyless.core.request import Request
from proxyless.values import field, frozen

__all__ = ["CidrMatcher", "HeaderMatcher", "PathMatcher", "QueryMatcher", "StringMatcher", "wire_text"]

StringKind = Literal["exact", "prefix", "suffix", "contains", "regex"]
PathKind = Literal["exact", "prefix", "path_separated_prefix", "regex", "template"]

_SINGLE_ENTRY_HEADERS = frozenset({"user-agent", "content-type"})
_INT64 = range(-(2**63), 2**63)
_UPPER_TO_LOWER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def wire_text(text: str) -> str:
    """UTF-8 reading of a latin-1 decoded text; bytes that are no UTF-8 become surrogate escapes."""
    if text.isascii():
        return text
    return text.encode("latin-1", "replace").decode("utf-8", "surrogateescape")


def fold(text: str) -> str:
    """Lower case of A-Z only: Envoy compares ASCII without case (`absl::EqualsIgnoreCase`)."""
    return text.lower() if text.isascii() else text.translate(_UPPER_TO_LOWER)


def _always(_: str) -> bool:
    return True


def _folded(test: Callable[[str], bool], text: str) -> bool:
    return test(fold(text))


# Methods of `str`: called through `methodcaller` they take half the time of a function of ours.
_TESTS = {"exact": "__eq__", "prefix": "startswith", "suffix": "endswith", "contains": "__contains__"}


def _compile(kind: str, value: str, ignore_case: bool) -> Callable[[str], bool]:
    if kind == "regex":
        return full_matcher(value)
    if kind not in _TESTS:
        raise ValueError(f"unknown kind of string matcher: {kind!r}")
    if not value and kind != "exact":
        return _always
    if ignore_case:
        return partial(_folded, methodcaller(_TESTS[kind], fold(value)))
    return methodcaller(_TESTS[kind], value)


@frozen
class StringMatcher:
    """type.matcher.v3.StringMatcher. `regex` is RE2 and must match the whole text; `ignore_case` has no effect on it."""

    kind: StringKind
    value: str
    ignore_case: bool = False
    matches: Callable[[str], bool] = field(init=False, repr=False, compare=False)
    """`matches(text) -> bool`; compiled, never raises."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "matches", _compile(self.kind, self.value, self.ignore_case))


@frozen
class HeaderMatcher:
    """route.v3.HeaderMatcher.

    Exactly one of `string`, `range` (int64, start inclusive, end exclusive) and `present` is set; none is presence. An absent
    header matches nothing, inverted or not, except in a presence test; `treat_missing_as_empty` makes it one empty value.
    Repeated headers are tested value by value: one that fits is enough, and inverted none may fit.
    """

    name: str
    string: StringMatcher | None = None
    range: tuple[int, int] | None = None
    present: bool | None = None
    invert: bool = False
    treat_missing_as_empty: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name.lower())
        if sum(part is not None for part in (self.string, self.range, self.present)) > 1:
            raise ValueError("a header matcher takes one of string, range and present")

    def matches(self, request: Request) -> bool:
        values = request.values(self.name)
        if not values and self.treat_missing_as_empty:
            values = ("",)
        if self.string is None and self.range is None:
            return (bool(values) == (self.present is not False)) != self.invert
        if not values:
            return False
        if len(values) > 1 and self.name in _SINGLE_ENTRY_HEADERS:
            values = (",".join(value for value in values if value),)
        return self._any(values) != self.invert

    def _any(self, values: Sequence[str]) -> bool:
        if self.string is None:
            return any(self._in_range(value) for value in values)
        test = self.string.matches
        if len(values) == 1:
            return test(wire_text(values[0]))
        return any(test(wire_text(value)) for value in values)

    def _in_range(self, value: str) -> bool:
        start, end = self.range or (0, 0)
        number = parse_int64(value)
        return number is not None and start <= number < end


def parse_int64(text: str) -> int | None:
    """A whole decimal int64 (surrounding blanks and a sign allowed, as `absl::SimpleAtoi`), else None."""
    digits = text.strip(" \t\n\v\f\r")
    unsigned = digits[1:] if digits[:1] in ("+", "-") else digits
    if not (unsigned.isascii() and unsigned.isdigit()) or len(unsigned) > 64:
        return None
    number = int(digits)
    return number if number in _INT64 else None


@frozen
class QueryMatcher:
    """route.v3.QueryParameterMatcher: the first value of the name counts and is compared undecoded; no `string`: presence."""

    name: str
    string: StringMatcher | None = None
    present: bool = True

    def matches(self, query: str) -> bool:
        value = self._first(query)
        if self.string is None:
            return (value is not None) == self.present
        return value is not None and self.string.matches(wire_text(value))

    def _first(self, query: str) -> str | None:
        if not query:
            return None
        for part in query.split("&"):
            name, _, value = part.partition("=")
            if wire_text(name) == self.name:
                return value
        return None


# ----------------------------------------------------------------------------------------------------------------- paths

_PCHAR = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=*]"  # RFC 3986, as Envoy's uri_template; no back slash
_REST = _PCHAR[:-1] + "/]*"
_LITERAL = r"[a-zA-Z0-9\-._~%!$&'()+,;:@=]*\Z"
_SEGMENT = r"(?P<operator>\*\*?)\Z|(?:\{(?P<name>[^{}=]*)(?P<equals>=)?(?P<pattern>[^{}]*)\})?(?P<literal>[^{}]*)\Z"
_BETWEEN_SEGMENTS = r"/(?![^{}]*\})"
_VARIABLE_NAME = r"[a-zA-Z][a-zA-Z0-9_]{0,15}\Z"
_VARIABLES_MAX = 5


def template_regex(template: str) -> str:
    """RE2 pattern of a URI template (Envoy path.match.uri_template): segments that are literal, `*`, `**`, `{name}` or
    `{name=pattern}` with a pattern of such segments.

    Raises ValueError for what Envoy refuses: an operator after `**`, an empty segment, a variable name that is reused or no
    identifier of at most 16 characters, more than five variables.
    """
    if not template.startswith("/"):
        raise ValueError("a path template starts with /")
    segments = re.split(_BETWEEN_SEGMENTS, template[1:])
    if "" in segments[:-1]:
        raise ValueError("a path template has no empty segments")
    parts: list[str] = []
    names: list[str] = []
    for segment in segments:
        found = re.match(_SEGMENT, segment)
        if found is None:
            raise ValueError(f"segment {segment!r} is no literal, *, **, {{name}} or {{name=pattern}}")
        if found["operator"]:
            parts.append(_operator(segment, parts))
        elif found["name"] is None:
            parts.append(_literal(segment))
        else:
            parts.append(_variable(found, names, parts) + _literal(found["literal"]))
    return "/" + "/".join(parts)


def _variable(found: re.Match[str], names: list[str], before: Sequence[str]) -> str:
    name = found["name"]
    if not re.match(_VARIABLE_NAME, name):
        raise ValueError(f"variable name {name!r}: a letter, then letters, digits and _, 16 at most")
    if name in names or len(names) == _VARIABLES_MAX:
        raise ValueError(f"variables of a path template are unique, and {_VARIABLES_MAX} at most")
    names.append(name)
    inner: list[str] = []
    for piece in (found["pattern"] if found["equals"] else "*").split("/"):
        is_operator = piece in ("*", "**")
        inner.append(_operator(piece, (*before, *inner)) if is_operator else _literal(piece, empty=False))
    return f"(?P<{name}>{'/'.join(inner)})"


def _operator(text: str, before: Sequence[str]) -> str:
    if any(_REST in part for part in before):
        raise ValueError("no operator may follow ** in a path template")
    return _REST if text == "**" else f"{_PCHAR}+"


def _literal(text: str, *, empty: bool = True) -> str:
    if not re.match(_LITERAL, text) or not (text or empty):
        raise ValueError(f"{text!r} is no literal of a path template")
    return "".join(char if char.isalnum() or char == "_" else f"\\{char}" for char in text)


@frozen
class PathMatcher:
    """Path specifier of route.v3.RouteMatch, on a path without query.

    `path_separated_prefix` ``/api`` fits ``/api`` and ``/api/x``. `case_sensitive` has no effect on `regex` and `template`.
    """

    kind: PathKind
    value: str
    case_sensitive: bool = True
    matches: Callable[[str], bool] = field(init=False, repr=False, compare=False)
    """`matches(path) -> bool`; compiled, never raises."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "matches", self._compile())

    def _compile(self) -> Callable[[str], bool]:
        match self.kind:
            case "exact" | "prefix":
                return _compile(self.kind, byte_text(self.value), not self.case_sensitive)
            case "path_separated_prefix":
                if not self.value.startswith("/") or self.value.endswith("/") or set("?#") & set(self.value):
                    raise ValueError("path_separated_prefix starts with /, does not end with /, and has no ? and #")
                return partial(_separated, byte_text(self.value), self.case_sensitive)
            case "regex":
                return partial(_wire_fullmatch, _compile("regex", self.value, False))
            case "template":
                return _compile("regex", template_regex(self.value), False)
        raise ValueError(f"unknown kind of path matcher: {self.kind!r}")


def _wire_fullmatch(test: Callable[[str], bool], path: str) -> bool:
    return test(wire_text(path))


def _separated(prefix: str, case_sensitive: bool, path: str) -> bool:
    if not case_sensitive:
        prefix, path = fold(prefix), fold(path)
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in ("", "/")


# -------------------------------------------------------------------------------------------------------------- addresses


@frozen
class CidrMatcher:
    """core.v3.CidrRange. Host bits are masked; an IPv4-mapped IPv6 address is in no IPv4 range (recorded)."""

    address: str
    prefix_len: int
    _network: ipaddress.IPv4Network | ipaddress.IPv6Network = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        base = ipaddress.ip_address(self.address)
        if self.prefix_len < 0:
            raise ValueError("prefix length is negative")
        length = min(self.prefix_len, base.max_prefixlen)
        object.__setattr__(self, "_network", ipaddress.ip_network((base, length), strict=False))

    @classmethod
    def parse(cls, text: str) -> CidrMatcher:
        """``10.0.0.0/8``, or an address alone. Raises ValueError."""
        address, slash, length = text.partition("/")
        base = ipaddress.ip_address(address)
        return cls(str(base), int(length) if slash else base.max_prefixlen)

    @property
    def length(self) -> int:
        """Effective prefix length: the more, the more specific."""
        return self._network.prefixlen

    def __str__(self) -> str:
        return str(self._network)

    def matches(self, host: str) -> bool:
        """`host` is an address literal; anything else (a Unix path, empty) is in no range."""
        try:
            return ipaddress.ip_address(host.partition("%")[0]) in self._network
        except ValueError:
            return False
