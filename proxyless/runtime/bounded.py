"""Bounds that uvicorn's httptools protocol lacks: how much a client may send before its request line and headers are complete,
and between two pieces of a body.

Without them one connection can fill the memory with headers, trailers or chunk extensions. Trailers are not headers (RFC 9110
section 6.5.1): they are read and dropped.
"""

from __future__ import annotations

from typing import Any

__all__ = ["MAX_HEAD", "BoundedHead"]

#: Envoy's max_request_headers_kb is 60 by default; uvicorn's h11 protocol stops at 64 KiB.
MAX_HEAD = 64 * 1024


class BoundedHead:
    """Mixed in before `uvicorn.protocols.http.httptools_impl.HttpToolsProtocol`."""

    _quiet = 0  # bytes since something of the request was complete

    def data_received(self, data: bytes) -> None:
        self._quiet += len(data)
        super().data_received(data)  # type: ignore[misc]  # the other base class has it, as all that follows
        if self._quiet > MAX_HEAD:
            self.refuse_head()

    def refuse_head(self) -> None:
        """Too much, or too slow: end the connection."""
        self.transport.abort()  # type: ignore[attr-defined]

    def on_headers_complete(self) -> None:
        self._quiet = 0
        super().on_headers_complete()  # type: ignore[misc]
        # What follows are trailers; the application has the list that was filled until now.
        self.headers: list[Any] = list(self.headers)

    def on_body(self, body: bytes) -> None:
        self._quiet = 0
        super().on_body(body)  # type: ignore[misc]

    def on_message_complete(self) -> None:
        self._quiet = 0
        super().on_message_complete()  # type: ignore[misc]
