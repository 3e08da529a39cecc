"""Normalisation of a request path before anything decides about it; the normalised path is also what the application gets.

Order as in Envoy `ConnectionManagerUtility::maybeNormalizePath`: escaped slashes, then RFC 3986 section 6 (dot segments,
escaped unreserved characters, back slashes; the algorithm of googleurl's `CanonicalizePath`), then runs of slashes. Every
step works on the path alone, never on the query. Paths are latin-1 decoded: one character per byte.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from proxyless.core.resources import EscapedSlashes, PathNormalization

__all__ = ["NormalizedPath", "is_plain", "normalize_path", "split_target"]

_PLAIN = re.compile(r"/[A-Za-z0-9_/-]*\Z")

_ESCAPED_SLASH = re.compile(r"%(?:(2[Ff])|5[Cc])")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_COPIED = _UNRESERVED | frozenset("!$&'()*+,/:;=@[]")
_ALREADY_CANONICAL = re.compile(r"/(?!\.)(?:[A-Za-z0-9\-._~!$&'()*+,:;=@\[\]]|/(?!\.))*\Z")
_DOT = re.compile(r"\.|%2[Ee]")
_PLAIN_RUN = re.compile(r"[A-Za-z0-9\-_~!$&'()*+,:;=@\[\]]+")  # copied as they are, inside of one segment


class NormalizedPath(NamedTuple):
    """`action`: ``continue`` with `path`; ``reject`` the request (400); ``redirect`` the client to `path` (307)."""

    path: str
    action: Literal["continue", "redirect", "reject"]


def split_target(target: str) -> tuple[str, str]:
    """Path and query of a request target in origin form. A fragment is dropped: it is no part of a request (RFC 9112 3.2)."""
    path, _, query = target.partition("#")[0].partition("?")
    return path, query


def is_plain(path: str) -> bool:
    """Nothing but segments of letters, digits, ``_`` and ``-``, none of them empty: every rule leaves such a path as it is."""
    return "//" not in path and _PLAIN.match(path) is not None


def normalize_path(path: str, rules: PathNormalization) -> NormalizedPath:
    """Apply `rules` to a path without query. ``*`` (OPTIONS) stays. Never raises."""
    if path == "*":
        return NormalizedPath(path, "continue")
    action: Literal["continue", "redirect"] = "continue"
    if rules.escaped_slashes is not EscapedSlashes.KEEP_UNCHANGED and _ESCAPED_SLASH.search(path):
        if rules.escaped_slashes is EscapedSlashes.REJECT_REQUEST:
            return NormalizedPath(path, "reject")
        if rules.escaped_slashes is EscapedSlashes.UNESCAPE_AND_REDIRECT:
            action = "redirect"
        path = _ESCAPED_SLASH.sub(_slash, path)
    if rules.normalize:
        canonical = canonicalize(path)
        if canonical is None:
            return NormalizedPath(path, "reject")
        path = canonical
    if rules.merge_slashes and "//" in path:
        path = _merge_slashes(path)
    return NormalizedPath(path, action)


def _slash(found: re.Match[str]) -> str:
    return "/" if found[1] else "\\"


def _merge_slashes(path: str) -> str:
    """Empty segments go; a path of slashes alone becomes ``//``, as recorded from Envoy."""
    head = "/" if path.startswith("/") else ""
    tail = "/" if path.endswith("/") else ""
    return head + "/".join(part for part in path.split("/") if part) + tail


def canonicalize(path: str) -> str | None:
    """googleurl's canonical path; None when it is invalid (an escaped or plain NUL, bytes that are no UTF-8)."""
    if _ALREADY_CANONICAL.match(path):
        return path
    if not _is_utf8(path):
        return None
    if path[:1] not in ("/", "\\"):
        path = "/" + path
    out: list[str] = []
    at, end = 0, len(path)
    while at < end:
        run = _PLAIN_RUN.match(path, at)
        if run is not None:  # a path that anybody may send must not cost a step for each character
            out.append(run[0])
            at = run.end()
            continue
        dot = _DOT.match(path, at)
        if dot is not None:
            at = _after_dot(path, dot.end(), out)
            continue
        piece, at = _character(path, at)
        if piece is None:
            return None
        out.append(piece)
    return "".join(out)


def _is_utf8(path: str) -> bool:
    if path.isascii():
        return True
    try:
        path.encode("latin-1").decode()
    except UnicodeError:
        return False
    return True


def _character(path: str, at: int) -> tuple[str | None, int]:
    """Output for the character or escape at `at` (no dot), and where the next one is."""
    char = path[at]
    if char in _COPIED:
        return char, at + 1
    if char == "\\":
        return "/", at + 1
    if char == "%":
        escape = _ESCAPE.match(path, at)
        if escape is None:
            return "%", at + 1
        plain = chr(int(escape[1], 16))
        if plain == "\0":
            return None, at
        return (plain if plain in _UNRESERVED else escape[0]), at + 3
    return (None if char == "\0" else f"%{ord(char):02X}"), at + 1


def _after_dot(path: str, at: int, out: list[str]) -> int:
    """A dot ended at `at`. After a slash it may be a segment ``.`` or ``..``, which is resolved on `out`; else it is copied."""
    if out[-1] != "/":
        out.append(".")
        return at
    if at == len(path) or path[at] in "/\\":
        return at + 1
    second = _DOT.match(path, at)
    if second is not None and (second.end() == len(path) or path[second.end()] in "/\\"):
        _drop_segment(out)
        return second.end() + 1
    out.append(".")
    return at


def _drop_segment(out: list[str]) -> None:
    """`out` ends in a slash: drop it and the segment before it, keep the slash before that."""
    if len(out) > 1:
        out.pop()
        while out[-1] != "/":
            out.pop()
