"""Bounds that uvicorn's httptools protocol lacks: how much a client may send before its request line and headers are complete,
and between two pieces of a body.

Without them one connection can fill the memory with headers, trailers or chunk extensions. Trailers are not headers (RFC 9110
section 6.5.1): they are read and dropped.
"""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["MAX_HEAD", "BoundedHead"]

log = logging.getLogger("proxyless")

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
        """Too much: 431, as from Envoy."""
        log.info("a request with more than %d bytes of headers is refused", MAX_HEAD)
        self.end_with(b"431 Request Header Fields Too Large")

    def end_with(self, status: bytes) -> None:
        """The connection ends; with this answer, where no other is on its way."""
        transport: Any = self.transport  # type: ignore[attr-defined]
        cycle: Any = self.cycle  # type: ignore[attr-defined]
        if cycle is None or cycle.response_complete:
            transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            transport.close()
        else:
            transport.abort()

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
