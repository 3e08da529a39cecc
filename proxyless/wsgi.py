"""WSGI: the mesh around a Flask or Django application.

    app.wsgi_app = MeshWSGIMiddleware(app.wsgi_app)           # Flask
    application = MeshWSGIMiddleware(get_wsgi_application())  # Django

Identity comes from the socket that the server shows in `gunicorn.socket` (workers sync and gthread), accepted by
`gunicorn -c python:proxyless.gunicorn`. On other servers every peer is an anonymous one on plain text.

WSGI folds dashes and underscores of header names into one key. gunicorn, waitress and Werkzeug drop names with underscores; on
any other server, and on gunicorn with `--header-map dangerous`, a name of several words is ambiguous: a request must be admitted
both with and without such headers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

from proxyless.core.request import Address, Peer, Request
from proxyless.errors import ProxylessError
from proxyless.runtime.accept import address_of, connection_of
from proxyless.runtime.exchange import InboundExchange
from proxyless.runtime.inbound import (
    Connection,
    InboundGate,
    MeshLike,
    default_mesh,
    gate_of,
    reading,
    refusal,
    serve_with,
)

__all__ = ["MeshWSGIMiddleware", "expect_ambiguous_headers", "mesh_peer"]

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]

KEY = "proxyless.connection"  # no header can make an environ key without HTTP_
_STRIPPED = ("HTTP_X_FORWARDED_CLIENT_CERT", "HTTP_X_ENVOY_PEER_METADATA", "HTTP_X_ENVOY_PEER_METADATA_ID")
_DROP_UNDERSCORES = ("gunicorn/", "waitress", "Werkzeug/")


class _HeaderNames:
    """Whether the server of this process may hand on header names with underscores although it is one that drops them."""

    ambiguous = False


def expect_ambiguous_headers() -> None:
    """The server was told to keep header names with underscores (gunicorn ``--header-map dangerous``)."""
    _HeaderNames.ambiguous = True


def mesh_peer(request: Any) -> Peer:
    """The verified peer of a request: `mesh_peer(request).identity` is its SPIFFE ID, None for an anonymous one.

    Args:
        request: a WSGI environ, a Flask or Werkzeug request (`environ`), or a Django request (`META`).

    Raises:
        ProxylessError: the request did not come through the mesh.
    """
    environ = request if isinstance(request, Mapping) else getattr(request, "environ", None) or request.META
    connection = environ.get(KEY)
    if not isinstance(connection, Connection):
        raise ProxylessError("this request did not come through MeshWSGIMiddleware")
    return connection.peer


class MeshWSGIMiddleware:
    """Enforces the mesh around a WSGI application; starts the mesh with the worker (`proxyless.gunicorn`) or the first request.

    Args:
        app: the application.
        mesh: None: the one of this process, made from the environment.
    """

    def __init__(self, app: WSGIApp, *, mesh: MeshLike | None = None) -> None:
        self.app = app
        self._mesh = mesh
        self._gate: InboundGate | None = None
        if mesh is not None:
            serve_with(mesh)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        gate = self._gate
        if gate is None or gate.stale:
            gate = self._start()
        known = environ.get(KEY)
        if isinstance(known, Connection) and known.gate is gate:  # an outer middleware has judged this request
            return self.app(environ, start_response)
        connection = _connection(environ)
        connection.gate = gate
        return _serve(gate, connection, self.app, environ, start_response)

    def _start(self) -> InboundGate:
        mesh = default_mesh() if self._mesh is None else self._mesh
        mesh.start()
        self._gate = gate = gate_of(mesh)
        return gate


def _connection(environ: Environ) -> Connection:
    """By the socket; without one that we accepted, an anonymous peer on plain text."""
    sock = environ.get("gunicorn.socket")
    known = connection_of(sock)
    if known is not None:
        return known
    if sock is not None:
        return Connection.plaintext(address_of(sock.getsockname()), address_of(sock.getpeername()))
    port = environ.get("SERVER_PORT", "")
    local = Address(environ.get("SERVER_NAME", ""), int(port) if port.isdigit() else 0)
    return Connection.plaintext(local, Address(environ.get("REMOTE_ADDR", ""), 0))


def _serve(
    gate: InboundGate, connection: Connection, app: WSGIApp, environ: Environ, start_response: StartResponse
) -> Iterable[bytes]:
    for name in _STRIPPED:
        environ.pop(name, None)
    environ[KEY] = connection
    environ["wsgi.url_scheme"] = "https" if connection.peer.tls else "http"
    raw, others = _paths(environ)
    request = _request(environ, connection, raw, _headers(environ))
    readings = [reading(request, path) for path in others]
    if _ambiguous(environ):
        plain = [pair for pair in request.headers if b"-" not in pair[0] or pair[0].startswith(b"content-")]
        readings += [reading(request, path, plain) for path in (raw, *others)]
    protocol = environ.get("SERVER_PROTOCOL", "HTTP/1.1").rpartition("/")[2]
    exchange = gate.begin(connection, request, protocol, _problem(environ), readings)
    if not exchange.admission.allowed:
        return _refuse(exchange, start_response)
    path = exchange.admission.request.path
    if path != raw and not _rewrite(environ, path):
        exchange.refuse(refusal(request, 400, "path_leaves_mount"))
        return _refuse(exchange, start_response)
    return _run(exchange, app, environ, start_response)


def _request(environ: Environ, connection: Connection, path: str, headers: list[tuple[bytes, bytes]]) -> Request:
    return Request(
        environ["REQUEST_METHOD"],
        path,
        headers,
        authority=environ.get("HTTP_HOST", ""),
        scheme=environ["wsgi.url_scheme"],
        query=environ.get("QUERY_STRING", ""),
        destination=connection.info.destination,
        sni=connection.info.server_name,
    )


def _problem(environ: Environ) -> str:
    host = environ.get("HTTP_HOST")
    if host is None:
        return "missing_host" if environ.get("SERVER_PROTOCOL") == "HTTP/1.1" else ""
    return "duplicate_host" if "," in host else ""  # the server has joined two of them


def _headers(environ: Environ) -> list[tuple[bytes, bytes]]:
    headers = []
    for key, value in environ.items():
        if key.startswith("HTTP_"):
            name = key[5:]
        elif key in ("CONTENT_TYPE", "CONTENT_LENGTH") and value:
            name = key
        else:
            continue
        headers.append((name.replace("_", "-").lower().encode("latin-1"), value.encode("latin-1")))
    return headers


def _ambiguous(environ: Environ) -> bool:
    if _HeaderNames.ambiguous:
        return True
    return not environ.get("SERVER_SOFTWARE", "").startswith(_DROP_UNDERSCORES)


def _paths(environ: Environ) -> tuple[str, tuple[str, ...]]:
    """The path as it was on the wire, escaped, and the one that the framework routes by when that is another."""
    routed = (environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1") or b"/"
    escaped = quote_from_bytes(routed, safe="/:@!$&'()*+,;=-._~")
    target = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if not target:
        return escaped, ()
    raw = target.partition("?")[0]
    if not raw.startswith("/") and "://" in raw:
        try:
            raw = urlsplit(raw).path or "/"
        except ValueError:
            return raw, ()  # not in origin form, which is 400
    if unquote_to_bytes(raw) == routed:
        return raw, ()
    return raw, (escaped,)


def _rewrite(environ: Environ, path: str) -> bool:
    """Give the application the path that policy saw; False when it is no longer below the mount point."""
    routed = unquote_to_bytes(path).decode("latin-1")
    mount = environ.get("SCRIPT_NAME", "")
    if mount and routed != mount and not routed.startswith(f"{mount}/"):
        return False
    environ["PATH_INFO"] = routed[len(mount) :]
    return True


def _refuse(exchange: InboundExchange, start_response: StartResponse) -> Iterable[bytes]:
    admission = exchange.admission
    headers = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in exchange.refusal_headers()
        if name != b"connection"  # a hop-by-hop header is the server's (PEP 3333)
    ]
    try:
        start_response(_status_line(admission.status), headers)
    finally:
        exchange.end()
    return [admission.body]


def _status_line(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Refused"


def _run(exchange: InboundExchange, app: WSGIApp, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    length = environ.get("CONTENT_LENGTH", "")
    if length.isdigit():
        exchange.received = int(length)
    else:
        environ["wsgi.input"] = _CountedInput(environ["wsgi.input"], exchange)

    def started(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        exchange.started(int(status[:3]), [(n.encode("latin-1"), v.encode("latin-1")) for n, v in headers])
        write = start_response(status, headers, exc_info) if exc_info is not None else start_response(status, headers)

        def counted(data: bytes) -> object:
            exchange.sent += len(data)
            return write(data)

        return counted

    try:
        return _Response(app(environ, started), exchange)
    except BaseException as error:
        exchange.failed(error)
        exchange.end()
        raise


class _Response:
    """The application's iterable; the request is recorded when the server closes it."""

    __slots__ = ("_body", "_closed", "_exchange", "_iterator")

    def __init__(self, body: Iterable[bytes], exchange: InboundExchange) -> None:
        self._body, self._exchange = body, exchange
        self._iterator: Iterator[bytes] | None = None
        self._closed = False

    def __iter__(self) -> _Response:
        return self

    def __next__(self) -> bytes:
        iterator = self._iterator
        try:
            if iterator is None:
                iterator = self._iterator = iter(self._body)
            data = next(iterator)
        except StopIteration:
            self._exchange.complete = True
            raise
        except BaseException as error:
            self._exchange.failed(error)
            raise
        self._exchange.sent += len(data)
        return data

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._exchange.disconnected()
            self._exchange.end()


class _CountedInput:
    """`wsgi.input` of a body without a length."""

    __slots__ = ("_exchange", "_input")

    def __init__(self, body: Any, exchange: InboundExchange) -> None:
        self._input, self._exchange = body, exchange

    def read(self, *size: int) -> bytes:
        return self._counted(self._input.read(*size))

    def readline(self, *size: int) -> bytes:
        return self._counted(self._input.readline(*size))

    def readlines(self, *hint: int) -> list[bytes]:
        return [self._counted(line) for line in self._input.readlines(*hint)]

    def __iter__(self) -> Iterator[bytes]:
        for line in self._input:
            yield self._counted(line)

    def _counted(self, data: bytes) -> bytes:
        self._exchange.received += len(data)
        return data
