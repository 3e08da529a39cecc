"""The names of httpx or httpx2, and errors that are ours and theirs at once.

except httpx.ConnectError            code that knew nothing of a mesh goes on working
except ConnectFailureError as e:     e.flag, e.details, e.cluster, e.endpoint, e.attempts
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from proxyless.errors import (
    ConnectionTerminatedError,
    EngineError,
    RequestError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from proxyless.runtime.outbound import OutboundExchange

__all__ = ["Library", "library_of"]

#: What httpx calls what happened to a connection.
_THEIRS = {
    "connect": "ConnectError",
    "tls": "ConnectError",
    "identity": "ConnectError",
    "connect_timeout": "ConnectTimeout",
    "pool_timeout": "PoolTimeout",
    "pool_overflow": "PoolTimeout",
    "write_timeout": "WriteTimeout",
    "read": "ReadError",
    "read_timeout": "ReadTimeout",
    "closed": "RemoteProtocolError",
    "protocol": "RemoteProtocolError",
    "deadline": "ReadTimeout",
    "request": "LocalProtocolError",
}
#: And we, where no decision of the core says it: a body that breaks, a caller that waits no longer.
_OURS: dict[str, type[RequestError]] = {
    "protocol": UpstreamProtocolError,
    "read_timeout": UpstreamTimeoutError,
    "write_timeout": UpstreamTimeoutError,
    "pool_timeout": UpstreamTimeoutError,
    "deadline": UpstreamTimeoutError,
    "request": RequestError,
}


def name_of(error: EngineError) -> str:
    """Name of the matching httpx exception."""
    if error.kind == "deadline" and not error.request_sent:
        return "ConnectTimeout"
    return _THEIRS[error.kind]


class Library:
    """One of the two."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.Response, self.ByteStream = module.Response, module.ByteStream
        self.WholeResponse = _whole_response(module)
        self.AsyncStream = type("MeshStream", (_AsyncStream, module.AsyncByteStream), {"__slots__": ()})
        self.Stream = type("MeshStream", (_Stream, module.SyncByteStream), {"__slots__": ()})
        self._errors: dict[tuple[type[RequestError], str], type[RequestError]] = {}

    def error(self, ours: type[RequestError], theirs: str) -> type[RequestError]:
        """A class that is both; made once."""
        made = self._errors.get((ours, theirs))
        if made is None:
            bases = (ours, getattr(self.module, theirs))
            made = type(ours.__name__, bases, {"__module__": ours.__module__, "__doc__": ours.__doc__})
            self._errors[(ours, theirs)] = made
        return made

    def of_engine(self, error: EngineError, exchange: OutboundExchange) -> RequestError:
        """For an error that ends the call without a decision of the core."""
        record = exchange.call.record
        made = self.error(_OURS.get(error.kind, ConnectionTerminatedError), name_of(error))
        return made(
            str(error),
            flag=None if record.flags == "-" else record.flags,
            details=record.details or "",
            cluster=record.cluster,
            endpoint=str(record.endpoint.address) if record.endpoint is not None else "",
            attempts=record.attempts,
        )


_libraries: dict[type, Library] = {}


def library_of(request: Any) -> Library:
    """The library that a request comes from. Never imports one: the request is its proof."""
    kind = type(request)
    library = _libraries.get(kind)
    if library is None:
        root = kind.__module__.partition(".")[0]
        for base in kind.__mro__:  # a subclass of the application's own
            if base.__module__.partition(".")[0] in ("httpx", "httpx2"):
                root = base.__module__.partition(".")[0]
                break
        module = sys.modules[root]
        library = next((known for known in _libraries.values() if known.module is module), None) or Library(module)
        _libraries[kind] = library
    return library


def _whole_response(module: Any) -> Callable[..., Any]:
    """A response class for a body that has arrived: the client's `read` takes it at once.

    httpx sends every body through four generators, which costs a quarter of what it does for a small call. The shortcut is
    for a body that needs no decoding, and only while nobody has begun to read it in another way; then the object becomes an
    ordinary response. It writes two private attributes of httpx; where they are not, there is no shortcut.
    """
    ordinary: Any = module.Response
    if not {"_content", "_num_bytes_downloaded", "is_stream_consumed"} <= vars(ordinary(200, content=b"")).keys():
        return lambda status, headers, body, extensions: ordinary(
            status, headers=headers, stream=module.ByteStream(body), extensions=extensions
        )

    class WholeResponse(ordinary):  # type: ignore[misc]  # one of two libraries, known only at run time
        def __init__(self, status: int, headers: Any, body: bytes, extensions: Any) -> None:
            super().__init__(status, headers=headers, stream=module.ByteStream(body), extensions=extensions)
            self._whole = None if _encoded(headers) else body

        def _take(self) -> bytes | None:
            whole: bytes | None = self.__dict__.pop("_whole")
            self.__class__ = ordinary
            if whole is None or self.is_stream_consumed or self.is_closed:
                return None
            self.__dict__.update(_content=whole, _num_bytes_downloaded=len(whole), is_stream_consumed=True)
            return whole

        def read(self) -> bytes:
            whole = self._take()
            if whole is None:
                content: bytes = self.read()
                return content
            self.close()
            return whole

        async def aread(self) -> bytes:
            whole = self._take()
            if whole is None:
                content: bytes = await self.aread()
                return content
            close = getattr(self.stream, "aclose", None)
            if close is None:
                await self.aclose()  # says that this is a response of the other client
            else:  # `aclose` itself costs 2 us more, to name the request of an error that cannot come
                self.is_closed = True
                await close()
            return whole

    return WholeResponse


def _encoded(headers: Any) -> bool:
    for name, _ in headers:  # noqa: SIM110 - `any` of a generator costs twice as much, and this runs for every response
        if len(name) == 16 and name.lower() == b"content-encoding":
            return True
    return False


class _Reading:
    """A response body that is still being received."""

    __slots__ = ("_exchange", "_library")

    def __init__(self, exchange: OutboundExchange, library: Library) -> None:
        self._exchange, self._library = exchange, library

    def _broken(self, error: EngineError) -> RequestError:
        self._exchange.body_ended(error)
        return self._library.of_engine(error, self._exchange)


class _AsyncStream(_Reading):
    __slots__ = ()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._exchange.chunks_async():
                yield chunk
        except EngineError as error:
            raise self._broken(error) from error

    async def aclose(self) -> None:
        self._exchange.close()


class _Stream(_Reading):
    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._exchange.chunks()
        except EngineError as error:
            raise self._broken(error) from error

    def close(self) -> None:
        self._exchange.close()
