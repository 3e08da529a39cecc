"""Where spans are made, without OpenTelemetry: until `ProxylessInstrumentor` is switched on, a request pays one None check.

span = spans.client(...) if (spans := hook.active) is not None else None
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["ClientSpan", "ServerSpan", "Spans", "hook"]

RawHeaders = Sequence[tuple[bytes, bytes]]


class ClientSpan(Protocol):
    """One attempt of an outbound call."""

    def inject(self, headers: RawHeaders) -> list[tuple[bytes, bytes]]:
        """The headers with the W3C context (or what the app's propagator writes) in place of any that were there."""
        ...

    def end(self, status: int, flags: str = "-", error: BaseException | None = None, peer: str = "") -> None:
        """Finish. `status` 0: no response; `peer`: verified SPIFFE ID of the endpoint."""
        ...


class ServerSpan(Protocol):
    """One inbound request; the current span of the task or thread until `end`."""

    def end(self, status: int, flags: str = "-", error: BaseException | None = None) -> None:
        """Finish, from the context that started it."""
        ...


class Spans(Protocol):
    """Made by the instrumentor."""

    def client(
        self,
        method: str,
        scheme: str,
        authority: str,
        path: str,
        *,
        cluster: str = "",
        address: str = "",
        resend: int = 0,
    ) -> ClientSpan:
        """Start a client span. `resend`: number of attempts before this one; `address`: ``host:port`` of the endpoint."""
        ...

    def server(
        self,
        method: str,
        scheme: str,
        authority: str,
        path: str,
        headers: RawHeaders,
        *,
        peer: str = "",
        client: str = "",
    ) -> ServerSpan | None:
        """Start a server span below the caller's; None when the app's own instrumentation has made one already."""
        ...


class Hook:
    """The one place that the instrumentor writes and requests read."""

    __slots__ = ("active",)

    def __init__(self) -> None:
        self.active: Spans | None = None


hook = Hook()
