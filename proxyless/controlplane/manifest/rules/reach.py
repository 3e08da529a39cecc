"""Which HTTP matches can never be reached, because an earlier one takes their requests."""

from __future__ import annotations

from typing import Generic, TypeVar

from proxyless.controlplane.manifest.model import HTTPMatchRequest, StringMatch

__all__ = ["Reach"]

OwnerT = TypeVar("OwnerT")


class Reach(Generic[OwnerT]):
    """Matches that go by the uri alone, in the order of routes; ``OwnerT`` says whose they are.

    Only what is certain is found: a prefix that begins with an earlier prefix, or a uri match that was there before.
    """

    def __init__(self) -> None:
        self._prefixes: dict[str, OwnerT] = {}
        self._others: dict[StringMatch, OwnerT] = {}

    def add(self, match: HTTPMatchRequest, owner: OwnerT) -> None:
        if match.uri is None or match != HTTPMatchRequest(
            uri=match.uri, name=match.name, stat_prefix=match.stat_prefix
        ):
            return
        if match.uri.prefix is not None:
            self._prefixes.setdefault(match.uri.prefix, owner)
        else:
            self._others.setdefault(match.uri, owner)

    def taker(self, match: HTTPMatchRequest) -> OwnerT | None:
        """Who takes all the requests of this match; None when it can be reached."""
        if match.ignore_uri_case:
            return None
        uri = match.uri or StringMatch(prefix="/")
        text = uri.prefix if uri.prefix is not None else uri.exact
        if text is not None:
            for end in range(len(text) + 1):
                owner = self._prefixes.get(text[:end])
                if owner is not None:
                    return owner
        return self._others.get(uri)
