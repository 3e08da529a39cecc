"""Istio host names with wildcards (pkg/config/host): ``*``, ``*.example.com`` and also ``*-suffix`` forms.

Only a leading star is a wildcard. Comparison is literal; callers lower-case what comes from outside.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["HostSet", "expand", "is_wildcard", "matches", "more_specific", "subset_of"]


def is_wildcard(host: str) -> bool:
    return host.startswith("*")


def matches(left: str, right: str) -> bool:
    """The two names have a host in common; symmetric."""
    if is_wildcard(left) and is_wildcard(right):
        shorter, longer = sorted((left[1:], right[1:]), key=len)
        return longer.endswith(shorter)
    if is_wildcard(left):
        return right.endswith(left[1:])
    if is_wildcard(right):
        return left.endswith(right[1:])
    return left == right


def subset_of(inner: str, outer: str) -> bool:
    """Every host of ``inner`` is one of ``outer``."""
    if is_wildcard(outer):
        if is_wildcard(inner):
            return len(inner) >= len(outer) and inner[1:].endswith(outer[1:])
        return inner.endswith(outer[1:])
    return inner == outer


def more_specific(left: str, right: str) -> bool:
    """``left`` is to be tried before ``right``: names before wildcards, longer before shorter, then by alphabet."""
    if is_wildcard(left) != is_wildcard(right):
        return not is_wildcard(left)
    if len(left) != len(right):
        return len(left) > len(right)
    return left < right or left == right == ""


class HostSet:
    """Many patterns; finds the one that covers a host without looking at each."""

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self._exact: set[str] = set()
        self._suffixes: set[str] = set()
        for pattern in patterns:
            self.add(pattern)

    def add(self, pattern: str) -> None:
        if is_wildcard(pattern):
            self._suffixes.add(pattern[1:])
        else:
            self._exact.add(pattern)

    def covering(self, host: str) -> str | None:
        """The most specific pattern of which ``host`` is a subset: itself, else the longest wildcard."""
        if host in self._exact:
            return host
        bare = host[1:] if is_wildcard(host) else host
        for start in range(len(bare) + 1):
            if bare[start:] in self._suffixes:
                return f"*{bare[start:]}"
        return None


def expand(host: str, namespace: str, domain: str = "cluster.local") -> str:
    """Full name of a short one, in the namespace of the rule that holds it (istio-semantics 4.1).

    Names with a dot, ``*`` and wildcards stay as they are, in lower case.
    """
    host = host.lower()
    if not host or "." in host or is_wildcard(host) or ":" in host:
        return host
    return f"{host}.{namespace}.svc.{domain}" if namespace else f"{host}.svc.{domain}"
