"""SPIFFE IDs and trust domains: the one strict parser for every place an identity can come from (rules M-1 to M-6).

Shared by both planes. Imports nothing but the error tree. Source: SPIFFE-ID sections 2 and 2.1 to 2.4.

Error codes (`InvalidSpiffeIdError.code`), in the order in which they are looked for: ``empty``, ``bad-scheme``,
``bad-trust-domain-char``, ``missing-trust-domain``, ``bad-path-char``, ``empty-segment``, ``trailing-slash``,
``dot-segment``, ``trust-domain-too-long``, ``too-long``.

Upper case in scheme or trust domain is refused and never folded, also in what an operator writes: an identity has one
spelling, so comparing whole strings is exact (rule M-2).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol

from proxyless.errors import InvalidSpiffeIdError
from proxyless.values import frozen

__all__ = [
    "AnyId",
    "ExactId",
    "IdMatcher",
    "MemberOf",
    "OneOf",
    "SpiffeId",
    "TrustDomain",
    "join_segments",
]

SCHEME = "spiffe://"
MAX_ID_BYTES = 2048  # SPIFFE-ID 2.3
MAX_TRUST_DOMAIN_BYTES = 255  # SPIFFE-ID 2.1

_LOWER = "abcdefghijklmnopqrstuvwxyz"
_TRUST_DOMAIN_CHARS = frozenset(_LOWER + "0123456789.-_")
_SEGMENT_CHARS = _TRUST_DOMAIN_CHARS | frozenset(_LOWER.upper())
_PATH_CHARS = _SEGMENT_CHARS | {"/"}


class TrustDomain(str):
    """A checked trust domain name. Compares and hashes as its text; membership is equality, never suffix or prefix (M-5)."""

    __slots__ = ()

    @staticmethod
    def parse(text: str) -> TrustDomain:
        """Read what an operator wrote: a bare name, or a SPIFFE ID of which the trust domain is taken.

        Raises:
            InvalidSpiffeIdError: it is neither.
        """
        if ":/" in text:
            return SpiffeId.parse(text).trust_domain
        return _trust_domain(text)

    @property
    def id(self) -> SpiffeId:
        """The ID of the trust domain itself: no path, never a workload (M-4)."""
        return SpiffeId.parse(SCHEME + self)


class SpiffeId:
    """A valid SPIFFE ID. Made by `parse` or `of` only; immutable; equal when the whole text is (M-2).

    Attributes:
        trust_domain: checked name.
        path: empty, or ``/segment/...``.
        namespace: ``<ns>`` of an ID whose path is exactly ``/ns/<ns>/sa/<sa>``, else None (M-6).
        service_account: ``<sa>`` of the same.
    """

    __slots__ = ("_text", "namespace", "path", "service_account", "trust_domain")

    trust_domain: TrustDomain
    path: str
    namespace: str | None
    service_account: str | None
    _text: str

    def __init__(self, trust_domain: TrustDomain, path: str) -> None:
        """For `parse`: the parts are taken as checked."""
        parts = path.split("/")
        istio = len(parts) == 5 and parts[1] == "ns" and parts[3] == "sa"
        put = object.__setattr__
        put(self, "trust_domain", trust_domain)
        put(self, "path", path)
        put(self, "namespace", parts[2] if istio else None)
        put(self, "service_account", parts[4] if istio else None)
        put(self, "_text", f"{SCHEME}{trust_domain}{path}")

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a SpiffeId cannot be changed")

    @staticmethod
    def parse(text: str) -> SpiffeId:
        """Read an ID from a certificate, token, API message, bundle map key or policy.

        Raises:
            InvalidSpiffeIdError: the text breaks a rule; `code` says which one.
        """
        return _parse(text)

    @staticmethod
    def of(trust_domain: TrustDomain | str, *segments: str) -> SpiffeId:
        """Build an ID from parts; no part can add a segment of its own.

        Raises:
            InvalidSpiffeIdError: a part breaks a rule.
        """
        return _parse(f"{SCHEME}{_trust_domain(trust_domain)}{join_segments(*segments)}")

    @property
    def principal(self) -> str:
        """The form of Istio's ``source.principals``: the ID without ``spiffe://``."""
        return self._text[len(SCHEME) :]

    @property
    def is_workload(self) -> bool:
        """It has a path; an ID without one names a trust domain, never the holder of a certificate (M-4)."""
        return bool(self.path)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return f"SpiffeId({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return self._text == other._text if isinstance(other, SpiffeId) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._text)

    def __reduce__(self) -> tuple[object, ...]:
        return _parse, (self._text,)


def join_segments(*segments: str) -> str:
    """A path of checked segments: ``("ns", "default")`` gives ``/ns/default``, nothing gives the empty path.

    Raises:
        InvalidSpiffeIdError: a segment is empty, a dot segment, or has a character that a segment may not have.
    """
    for segment in segments:
        if not _SEGMENT_CHARS.issuperset(segment):
            raise InvalidSpiffeIdError(
                "bad-path-char", f"path segment {segment!r} has a character outside [a-zA-Z0-9._-]"
            )
        _check_segment(segment)
    return "".join(f"/{segment}" for segment in segments)


class IdMatcher(Protocol):
    """Which SPIFFE IDs are expected at the other end (M-18)."""

    def matches(self, spiffe_id: SpiffeId) -> bool: ...


@frozen
class AnyId:
    """Every valid ID. Says so explicitly: an empty expectation refuses."""

    def matches(self, spiffe_id: SpiffeId) -> bool:
        return True


@frozen
class ExactId:
    """One ID."""

    expected: SpiffeId

    def matches(self, spiffe_id: SpiffeId) -> bool:
        return spiffe_id == self.expected


@frozen
class OneOf:
    """Any of several IDs; none of them when empty."""

    expected: frozenset[SpiffeId]

    @staticmethod
    def of(ids: Iterable[SpiffeId]) -> OneOf:
        return OneOf(frozenset(ids))

    def matches(self, spiffe_id: SpiffeId) -> bool:
        return spiffe_id in self.expected


@frozen
class MemberOf:
    """Every ID of one trust domain, compared whole (M-5)."""

    trust_domain: TrustDomain

    def matches(self, spiffe_id: SpiffeId) -> bool:
        return spiffe_id.trust_domain == self.trust_domain


@lru_cache(maxsize=4096)
def _parse(text: str) -> SpiffeId:
    if not text:
        raise InvalidSpiffeIdError("empty", "a SPIFFE ID cannot be empty")
    if not text.startswith(SCHEME):
        raise InvalidSpiffeIdError("bad-scheme", f"{_short(text)} does not begin with spiffe://")
    name, slash, rest = text[len(SCHEME) :].partition("/")
    trust_domain = _trust_domain(name)
    path = slash + rest
    if not _PATH_CHARS.issuperset(path):
        raise InvalidSpiffeIdError(
            "bad-path-char", f"the path of {_short(text)} has a character outside [a-zA-Z0-9._-/]"
        )
    if slash:
        _check_path(path)
    if len(text) > MAX_ID_BYTES:  # all ASCII by now, so characters are bytes
        raise InvalidSpiffeIdError("too-long", f"{_short(text)} has {len(text)} bytes, {MAX_ID_BYTES} are allowed")
    return SpiffeId(trust_domain, path)


def _trust_domain(name: str) -> TrustDomain:
    if not _TRUST_DOMAIN_CHARS.issuperset(name):
        raise InvalidSpiffeIdError(
            "bad-trust-domain-char", f"trust domain {_short(name)} has a character outside [a-z0-9._-]"
        )
    if not name:
        raise InvalidSpiffeIdError("missing-trust-domain", "the trust domain is missing")
    if len(name) > MAX_TRUST_DOMAIN_BYTES:
        raise InvalidSpiffeIdError(
            "trust-domain-too-long",
            f"trust domain {_short(name)} has {len(name)} bytes, {MAX_TRUST_DOMAIN_BYTES} are allowed",
        )
    return TrustDomain(name)


def _check_path(path: str) -> None:
    *inner, last = path[1:].split("/")
    for segment in inner:
        _check_segment(segment)
    if not last:
        raise InvalidSpiffeIdError("trailing-slash", f"the path {_short(path)} ends with a slash")
    _check_segment(last)


def _check_segment(segment: str) -> None:
    if not segment:
        raise InvalidSpiffeIdError("empty-segment", "a path segment is empty")
    if segment in (".", ".."):
        raise InvalidSpiffeIdError("dot-segment", f"the path has the segment {segment!r}")


def _short(text: str) -> str:
    """Quoted and cut: what came from outside must not fill or split a log line (M-90)."""
    return ascii(text if len(text) <= 120 else text[:120] + "...")
