"""A server's transport that sends a response in one piece.

Servers write the head of a response when the application starts it and the body when that comes, usually microseconds later.
Each write is a system call, under TLS also a record, and wakes the caller, who then waits for the rest. Here the first write of
a turn of the event loop waits for the second, and they go out together; when there is none, it goes out at the end of the turn.

And what goes out leaves the machine: without TCP_NODELAY a second small packet waits until the first is acknowledged, up to 40 ms.
asyncio sets it only where the listening socket was made with a protocol number, and uvicorn makes its own without.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

__all__ = ["CorkedTransport"]

#: Beyond this, copying costs more than a second write.
MAX_JOINED = 64 * 1024
_TCP = (socket.AF_INET, socket.AF_INET6)


class CorkedTransport:
    """Stands in for `transport`, of which it changes nothing but the moment of small writes. For a connection that was just made."""

    __slots__ = ("_handle", "_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held = b""
        self._handle: asyncio.Handle | None = None
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in _TCP:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Asked after each response, and by way of `__getattr__` that is 2 % of a server's time."""
        return self._transport.is_closing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        held = self._held
        if held:
            self._forget()
            if len(held) + len(data) > MAX_JOINED:
                self._transport.write(held)
                self._transport.write(data)
            else:
                self._transport.write(held + data)
        elif len(data) > MAX_JOINED:
            self._transport.write(data)
        elif data:
            self._held = bytes(data)
            self._handle = self._loop.call_soon(self._flush)

    def writelines(self, parts: Any) -> None:
        self.write(b"".join(parts))

    def write_eof(self) -> None:
        self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._forget()
        self._transport.abort()

    def _flush(self) -> None:
        held = self._held
        if held:
            self._forget()
            self._transport.write(held)

    def _forget(self) -> None:
        self._held = b""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
