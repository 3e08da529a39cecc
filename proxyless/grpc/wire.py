"""Between grpcio's metadata and headers as they are on the wire, and between status codes.

Sources: gRPC over HTTP/2 (PROTOCOL-HTTP2.md): binary values are base64 on the wire, without padding; `Grpc-Message` is
percent-encoded.
"""

from __future__ import annotations

import base64
import binascii
import logging
import re
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

import grpc

from proxyless.core.replies import parse_grpc_status
from proxyless.core.request import RawHeaders
from proxyless.errors import ConfigError

__all__ = [
    "GRPC_REQUEST",
    "check_metadata",
    "metadata_of",
    "parse_target",
    "status_code",
    "status_of_reply",
    "to_wire",
]

log = logging.getLogger("proxyless.grpc")

Metadata = Iterable[tuple[str, str | bytes]]
Pairs = list[tuple[bytes, bytes]]

GRPC_REQUEST: Pairs = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]

_NAME = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
_OF_TRANSPORT = frozenset(  # made by grpcio itself, or without meaning in HTTP/2
    {
        "connection", "content-length", "content-type", "grpc-accept-encoding", "grpc-encoding", "grpc-timeout", "host",
        "keep-alive", "te", "transfer-encoding", "upgrade",
    }
)  # fmt: skip
_CODES = {code.value[0]: code for code in grpc.StatusCode}


def to_wire(metadata: Metadata | None) -> Pairs:
    """Metadata -> raw header pairs."""
    pairs = []
    for name, value in metadata or ():
        if name.endswith("-bin"):
            raw = value if isinstance(value, bytes) else value.encode("latin-1", "replace")
            pairs.append((name.encode("latin-1"), base64.b64encode(raw).rstrip(b"=")))
        else:
            pairs.append((name.encode("latin-1"), value if isinstance(value, bytes) else value.encode("latin-1")))
    return pairs


def metadata_of(headers: RawHeaders) -> tuple[tuple[str, str | bytes], ...]:
    """Raw header pairs -> metadata. What cannot be metadata is left out, and the log says so."""
    metadata: list[tuple[str, str | bytes]] = []
    for raw_name, raw in headers:
        name = raw_name.decode("latin-1").lower()
        if name in _OF_TRANSPORT or name.startswith(":"):
            continue
        if name.endswith("-bin"):
            try:
                metadata.append((name, base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)))
                continue
            except binascii.Error:
                pass
        else:
            value = raw.decode("latin-1")
            if _NAME.fullmatch(name) and _VALUE.fullmatch(value):
                metadata.append((name, value))
                continue
        log.warning("header %a cannot be gRPC metadata and is left out", name)
    return tuple(metadata)


def check_metadata(metadata: Metadata | None) -> None:
    """Refuse what grpcio would refuse, before anything is decided by it.

    Raises:
        ValueError: names the entry.
    """
    for name, value in metadata or ():
        legal = _NAME.fullmatch(name) and (name.endswith("-bin") or isinstance(value, bytes) or _VALUE.fullmatch(value))
        if not legal:
            raise ValueError(f"metadata was invalid: {name!r}")


def status_code(number: int) -> grpc.StatusCode:
    """UNKNOWN for a number that gRPC does not know."""
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)


def status_of_reply(headers: RawHeaders) -> tuple[grpc.StatusCode, str]:
    """Status and message of an answer that consists of headers."""
    number: int | None = None
    message = ""
    for name, value in headers:
        if name == b"grpc-status":
            number = parse_grpc_status(value)
        elif name == b"grpc-message":
            message = unquote_to_bytes(value).decode("utf-8", "replace")
    return status_code(2 if number is None else number), message


def parse_target(target: str) -> tuple[str, int]:
    """``payments:50051`` -> host and port.

    Raises:
        ConfigError: it is something else; the text says what to write.
    """
    host, separator, port = target.rpartition(":")
    if host[:1] == "[" and host[-1:] == "]":
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if (
        not separator
        or not host
        or "/" in host
        or not port.isascii()
        or not port.isdigit()
        or not 0 < int(port) < 65536
    ):
        raise ConfigError(f"{target!r} is no service and port: write payments:50051, without a scheme")
    return host, int(port)
