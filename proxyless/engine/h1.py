"""HTTP/1.1 on the wire without I/O: request heads out, response framing in. Both engines use it.

llhttp (through httptools, strict mode) does the parsing; it refuses Content-Length beside chunked, two lengths, bad chunk
sizes and bare LF. What it leaves to its user, and what a client that re-uses connections must get right, is here:

* which answers have no body although their headers announce one (HEAD, 204, 304; RFC 9112 section 6.3);
* interim answers (1xx) are not the answer; one that announces a body would let a server hide the real answer in it;
* bytes after the end of the answer are nobody's: the connection must not be used again, or the next caller gets them;
* a body that ends with the connection is complete only when the end was orderly (over TLS: close_notify);
* heads, trailers and chunk extensions are bounded, however slowly or finely they arrive.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import httptools

from proxyless.errors import EngineError

__all__ = ["MAX_HEAD", "FramingError", "RequestHead", "ResponseReader", "in_chunks", "request_head"]

#: Bytes a response may take before its headers, or between two pieces of its body. Envoy's max_request_headers_kb is 60 by
#: default and 8192 at most; httpcore takes 100 KiB; servers exist that send 200.
MAX_HEAD = 256 * 1024

_ORDINARY, _LENGTH, _CODING, _EXPECT, _CONNECTION, _HOST = range(6)
_SPECIAL = {
    b"content-length": _LENGTH,
    b"transfer-encoding": _CODING,
    b"expect": _EXPECT,
    b"connection": _CONNECTION,
    b"host": _HOST,
}
_BODY_HEADERS = frozenset((b"content-length", b"transfer-encoding"))
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch

# Header names and methods that were found valid. Applications use few; the bound keeps generated names from filling memory.
_kinds: dict[bytes, int] = {}
_methods: dict[str, bytes] = {}
_CACHED = 1024


class FramingError(Exception):
    """The peer's bytes are not an HTTP/1.1 response, or are more than a response may be."""


class RequestHead(NamedTuple):
    """A serialised request line and header block.

    Attributes:
        data: the bytes, ended by an empty line.
        method: as sent.
        chunked: the body goes out in chunks.
        length: declared length of the body; None when chunked.
        expect: the body waits for ``100 Continue``.
        close: the connection ends after this exchange.
    """

    data: bytes
    method: str
    chunked: bool
    length: int | None
    expect: bool
    close: bool


def request_head(
    method: str, target: bytes, authority: str, headers: Sequence[tuple[bytes, bytes]], body_length: int | None
) -> RequestHead:
    """Serialise a head. Order, case, duplicates and bytes of `headers` are kept; Host goes first.

    Args:
        target: path and query, as on the wire.
        headers: without Host. Framing headers are taken from here when present and must then agree with the body.
        body_length: bytes of the body, 0 for none, None when it is a stream.

    Raises:
        EngineError: kind ``request``; nothing may be sent (RFC 9112 section 11: no CR, LF or NUL gets through).
    """
    line = _methods.get(method) or _method(method)
    try:
        host = authority.encode("latin-1")
    except UnicodeEncodeError:
        raise EngineError("request", f"authority {authority!r} is not in its ASCII form") from None
    parts = [line, target, b" HTTP/1.1\r\nHost: ", host, b"\r\n"]
    special: list[tuple[int, bytes]] = []
    for name, value in headers:
        kind = _kinds.get(name)
        if kind is None:
            kind = _classify(name)
        if kind and not (kind == _CONNECTION and value == b"keep-alive"):  # which nearly every client sends
            special.append((kind, value))
        parts += (name, b": ", value, b"\r\n")
    chunked, length, expect, close = _framing(special, body_length) if special else (False, None, False, False)
    extra = 0
    if not chunked and length is None:
        length = body_length
        if body_length is None:
            chunked, extra = True, 1
            parts.append(b"Transfer-Encoding: chunked\r\n")
        elif body_length:
            extra = 1
            parts.append(b"Content-Length: %d\r\n" % body_length)
    parts.append(b"\r\n")
    data = b"".join(parts)
    lines = len(headers) + extra + 3
    if data.count(b"\n") != lines or data.count(b"\r") != lines or b"\0" in data or b" " in target or not target:
        raise EngineError("request", "illegal byte in the request target or in a header value")
    return RequestHead(data, method, chunked, length, expect and body_length != 0, close)


def in_chunks(body: bytes) -> bytes:
    """A whole body for a head that says chunked: one chunk and the end. Without the end the next request on the connection
    would be read as a chunk of this one."""
    return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"


def _method(method: str) -> bytes:
    line = method.encode("ascii", "replace")
    if not _TOKEN(line) or method == "CONNECT":
        raise EngineError("request", f"illegal or unsupported method {method!r}")
    line += b" "
    if len(_methods) < _CACHED:
        _methods[method] = line
    return line


def _classify(name: bytes) -> int:
    if not _TOKEN(name):
        raise EngineError("request", f"illegal header name {name!r}")
    kind = _SPECIAL.get(name.lower(), _ORDINARY)
    if len(_kinds) < _CACHED:
        _kinds[name] = kind
    return kind


def _framing(special: list[tuple[int, bytes]], body_length: int | None) -> tuple[bool, int | None, bool, bool]:
    """-> chunked, length, expect, close; refuses what would leave the end of the request open to interpretation."""
    chunked = expect = close = False
    length: int | None = None
    for kind, value in special:
        if kind == _LENGTH:
            if length is not None or not value.isdigit():
                raise EngineError("request", "repeated or malformed Content-Length")
            length = int(value)
        elif kind == _CODING:
            if chunked or value.strip().lower() != b"chunked":
                raise EngineError("request", "the only Transfer-Encoding that can be sent is chunked")
            chunked = True
        elif kind == _EXPECT:
            expect = value.strip().lower() == b"100-continue"
        elif kind == _CONNECTION:
            close = close or b"close" in value.lower()
        else:
            raise EngineError("request", "a second Host header")
    if chunked and length is not None:
        raise EngineError("request", "both Content-Length and Transfer-Encoding")
    if length is not None and body_length is not None and length != body_length:
        raise EngineError("request", f"Content-Length is {length}, the body has {body_length} bytes")
    return chunked, length, expect, close


class ResponseReader:
    """Reads the answers to a connection's requests, one at a time: `begin`, then `feed` until `complete`.

    Attributes:
        status, reason, headers: the final answer; headers are raw and in order, valid once `head_done`.
        trailers: fields after a chunked body; never mixed into `headers`.
        size: bytes of body that wait in `take`.
        head_done: headers are complete. `complete`: so is the body.
        continued: the server said 100 Continue.
        seen: any byte of this answer arrived.
        keep_alive: after `complete`: the connection may serve another request.
    """

    __slots__ = (
        "_bad",
        "_bodiless",
        "_chunks",
        "_close",
        "_interim",
        "_parser",
        "_quiet",
        "complete",
        "continued",
        "head_done",
        "headers",
        "keep_alive",
        "reason",
        "seen",
        "size",
        "status",
        "trailers",
    )

    def __init__(self) -> None:
        self._parser: httptools.HttpResponseParser | None = None
        self.begin("", close=False)

    def begin(self, method: str, *, close: bool) -> None:
        """Expect the answer to `method`. `close`: we asked for the end of the connection."""
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        self._bodiless = method == "HEAD"
        self._close = close
        self._bad = ""
        self._quiet = self.size = self.status = 0
        self._interim = self.head_done = self.complete = self.continued = self.seen = False
        self.keep_alive = True
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.trailers: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []

    def feed(self, data: bytes) -> None:
        """Raises FramingError; the connection is then good for nothing."""
        parser = self._parser
        if self.complete or parser is None:
            self.keep_alive = False  # nobody asked for these bytes
            return
        self.seen = True
        self._quiet += len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.keep_alive = False
            if not self.complete:
                raise FramingError(self._bad or f"bad response: {error}") from None
        if self._quiet > MAX_HEAD and not self.complete:
            raise FramingError(f"response headers or trailers are larger than {MAX_HEAD} bytes")

    def end(self, orderly: bool) -> None:
        """The connection ended. Raises FramingError unless the answer is complete by that."""
        self.keep_alive = False
        if self.complete:
            return
        if not self.head_done:
            raise FramingError("the server closed the connection without an answer")
        if any(name.lower() in _BODY_HEADERS for name, _ in self.headers):
            raise FramingError("the server closed the connection inside the body")
        if not orderly:
            raise FramingError("the body was cut: the TLS stream ended without close_notify")
        self.complete = True

    def take(self) -> bytes:
        """All body bytes that arrived since the last call; empty when there are none."""
        chunks = self._chunks
        if not chunks:
            return b""
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self.size = 0
        return data

    def close(self) -> None:
        """Break the reference cycle with the parser. Nothing may follow."""
        self._parser = None

    # ------------------------------------------------------------------------------------------ called by httptools

    def on_message_begin(self) -> None:
        if self.complete:
            self.keep_alive = False  # a second answer that nobody asked for

    def on_status(self, reason: bytes) -> None:
        if not self.complete:
            self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.complete:
            (self.trailers if self.head_done else self.headers).append((name, value))

    def on_headers_complete(self) -> None:
        if self.complete or self._parser is None:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._interim_head(status)
            return
        self.status = status
        self.head_done = True
        if self._bodiless or status == 204 or status == 304:
            self.keep_alive = not self._close and self._persistent()
            self.complete = True
            self._parser = None  # it would still wait for the body that the headers announce

    def _interim_head(self, status: int) -> None:
        if status < 100 or status == 101:
            self._bad = f"status {status}, which nobody asked for"
        elif any(name.lower() in _BODY_HEADERS and value != b"0" for name, value in self.headers):
            self._bad = f"an interim answer ({status}) that announces a body"
        if self._bad:
            raise FramingError(self._bad)  # stops the parser; `feed` raises it again
        self._interim = True
        self.continued = self.continued or status == 100
        self.headers, self.reason = [], b""

    def _persistent(self) -> bool:
        """RFC 9112 section 9.3, for answers where llhttp would count the absent body against it."""
        if self._parser is None or self._parser.get_http_version() != "1.1":
            return False
        return not any(name.lower() == b"connection" and b"close" in value.lower() for name, value in self.headers)

    def on_body(self, data: bytes) -> None:
        if self.complete:
            self.keep_alive = False
            return
        self._quiet = 0
        self._chunks.append(data)
        self.size += len(data)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        elif not self.complete and self._parser is not None:
            self.keep_alive = not self._close and self._parser.should_keep_alive()
            self.complete = True
