"""What a TLS ClientHello says before anything is decided: server name and ALPN, for the choice of a filter chain.

Pure: bytes in, a value out. Sources: RFC 8446 4.1.2, 5.1; RFC 6066 3; RFC 7301 3.1; Envoy's tls_inspector looks at the same.
Nothing here is trusted: OpenSSL parses the same bytes again and decides about the handshake.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["MAX_HELLO", "ClientHello", "NeedMore", "NotTls", "parse_client_hello"]

MAX_HELLO = 16 * 1024 + 4  # Envoy's tls_inspector limit on a ClientHello
HANDSHAKE_RECORD = 0x16


class ClientHello(NamedTuple):
    """`alpn` in the client's order; both empty when not sent."""

    server_name: str
    alpn: tuple[str, ...]


class NeedMore(Exception):
    """The ClientHello is not complete yet."""


class NotTls(Exception):
    """These bytes do not begin a TLS handshake, or are malformed."""


def parse_client_hello(data: bytes | bytearray) -> ClientHello:
    """Read the first handshake message of a connection.

    Raises:
        NeedMore: more bytes are needed.
        NotTls: it is no ClientHello, or a broken one.
    """
    hello = _handshake(bytes(data))
    try:
        return _hello(hello)
    except (IndexError, UnicodeDecodeError) as error:
        raise NotTls("malformed ClientHello") from error


def _handshake(data: bytes) -> bytes:
    """The body of the first handshake message, joined from as many records as it spans."""
    message, at = b"", 0
    while True:
        if len(data) < at + 5:
            if data[at : at + 1] not in (b"", b"\x16"):
                raise NotTls("not a handshake record")
            raise NeedMore
        if data[at] != HANDSHAKE_RECORD or data[at + 1] != 3:
            raise NotTls("not a handshake record")
        length = int.from_bytes(data[at + 3 : at + 5])
        if length == 0 or length > 16384:
            raise NotTls("record of impossible length")
        message += data[at + 5 : at + 5 + length]
        at += 5 + length
        if message[:1] not in (b"", b"\x01"):
            raise NotTls("first message is no ClientHello")
        if len(message) >= 4:
            size = int.from_bytes(message[1:4])
            if size > MAX_HELLO:
                raise NotTls("ClientHello is too long")
            if len(message) >= 4 + size:
                return message[4 : 4 + size]
        if at > len(data):
            raise NeedMore


class _Reader:
    """Length-prefixed fields; IndexError when they run over the end."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise IndexError
        piece, self.at = self.data[self.at : end], end
        return piece

    def vector(self, prefix: int) -> bytes:
        return self.take(int.from_bytes(self.take(prefix)))

    def __bool__(self) -> bool:
        return self.at < len(self.data)


def _hello(body: bytes) -> ClientHello:
    reader = _Reader(body)
    reader.take(2 + 32)  # version, random
    reader.vector(1)  # session id
    reader.vector(2)  # cipher suites
    reader.vector(1)  # compression methods
    name = ""
    alpn: tuple[str, ...] = ()
    extensions = _Reader(reader.vector(2)) if reader else _Reader(b"")
    while extensions:
        kind, value = int.from_bytes(extensions.take(2)), extensions.vector(2)
        if kind == 0:
            name = _server_name(value)
        elif kind == 16:
            alpn = _protocols(value)
    return ClientHello(name, alpn)


def _server_name(value: bytes) -> str:
    names = _Reader(_Reader(value).vector(2))
    while names:
        kind, name = names.take(1)[0], names.vector(2)
        if kind == 0:
            return name.decode("ascii").lower()
    return ""


def _protocols(value: bytes) -> tuple[str, ...]:
    names, found = _Reader(_Reader(value).vector(2)), []
    while names:
        found.append(names.vector(1).decode("latin-1"))
    return tuple(found)
