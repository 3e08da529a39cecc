"""What the mesh says of a call: `response.extensions["proxyless"]`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from proxyless.runtime.outbound import OutboundExchange

__all__ = ["CallInfo"]

_READ: dict[str, Callable[[OutboundExchange], Any]] = {
    "flag": lambda exchange: exchange.call.record.flags,
    "details": lambda exchange: exchange.call.record.details or "",
    "cluster": lambda exchange: exchange.call.record.cluster,
    "virtual_host": lambda exchange: exchange.call.record.virtual_host,
    "route": lambda exchange: exchange.call.record.route,
    "attempts": lambda exchange: exchange.call.record.attempts,
    "endpoint": lambda exchange: str(endpoint.address) if (endpoint := exchange.call.record.endpoint) else "",
    "peer": lambda exchange: exchange.peer,
}


class CallInfo(Mapping[str, Any]):
    """A read-only mapping; values are looked up when they are asked for, so a response costs one small object.

    flag            Envoy's response flags, comma-separated; ``-`` for none
    details         Envoy's RESPONSE_CODE_DETAILS
    cluster         where the call went; empty when no cluster was found
    virtual_host, route   names of what was matched
    attempts        made so far
    endpoint        ``host:port`` of the last attempt
    peer            verified SPIFFE ID of that endpoint; empty for plain text
    """

    __slots__ = ("_exchange",)

    def __init__(self, exchange: OutboundExchange) -> None:
        self._exchange = exchange

    def __getitem__(self, key: str) -> Any:
        return _READ[key](self._exchange)

    def __iter__(self) -> Iterator[str]:
        return iter(_READ)

    def __len__(self) -> int:
        return len(_READ)

    def __repr__(self) -> str:
        return repr(dict(self))
