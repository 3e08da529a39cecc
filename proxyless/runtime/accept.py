"""From an accepted connection to a judged one: which filter chain, which certificate, who is the peer. Servers move the bytes.

Every refusal here ends the connection before any request: plain text where the mode is STRICT, TLS that no chain terminates, no
certificate of ours yet, a peer that fails verification. Plain text is never a fallback for failed TLS (rule M-72).
"""

from __future__ import annotations

import functools
import logging
import select
import socket
import ssl
import time
import weakref
from typing import TYPE_CHECKING, Any

from proxyless.core.inbound import ConnectionInfo, select_chain
from proxyless.core.request import Address, Peer
from proxyless.errors import NoIdentityError, PeerVerificationError
from proxyless.runtime.hello import HANDSHAKE_RECORD, MAX_HELLO, ClientHello, NeedMore, NotTls, parse_client_hello
from proxyless.runtime.inbound import Connection, InboundGate
from proxyless.telemetry import families
from proxyless.values import replace

if TYPE_CHECKING:
    from proxyless.core.resources import DownstreamTls

__all__ = [
    "HANDSHAKE_TIMEOUT",
    "RefusedConnection",
    "accept_blocking",
    "address_of",
    "client_hello",
    "connection_of",
    "plaintext",
    "report",
    "tls_context",
    "verified",
]

log = logging.getLogger("proxyless.inbound")

HANDSHAKE_TIMEOUT = 10.0  # seconds from accept to the end of the handshake; Envoy waits 15 s for listener filters alone


class RefusedConnection(Exception):
    """This connection is closed before any request. The text is for the log, `reason` is a label of the metric."""

    def __init__(self, reason: str, text: str) -> None:
        self.reason = reason
        super().__init__(text)


def report(gate: InboundGate, remote: Address, refused: RefusedConnection) -> None:
    """Log and count a refusal. The peer learns nothing of it (rule M-91)."""
    log.info("connection from %s refused: %s", remote, ascii(str(refused)))
    gate.telemetry.metrics.add(families.INBOUND_HANDSHAKE_FAILURES, refused.reason)


def address_of(name: object) -> Address:
    """From `sockname` or `peername`: an address pair, a Unix socket path, or nothing. IPv4 in IPv6 counts as IPv4."""
    if isinstance(name, tuple):
        host = str(name[0])
        return Address(host[7:] if host.startswith("::ffff:") and "." in host else host, int(name[1]))
    return Address(name if isinstance(name, str) else "", 0)


def plaintext(gate: InboundGate, local: Address, remote: Address) -> Connection:
    """An unencrypted connection, when the mode of this moment takes it.

    Before the first configuration it is taken too: its requests get 503, which tells a person more than a closed connection.

    Raises:
        RefusedConnection: no filter chain for plain text.
    """
    connection = Connection.plaintext(local, remote)
    snapshot = gate.mesh.snapshot
    if not gate.open and snapshot is not None and connection.chain(snapshot) is None:
        raise RefusedConnection("plaintext", "plain text where the mesh asks for mutual TLS")
    return connection


def client_hello(data: bytes | bytearray) -> ClientHello | None:
    """The ClientHello at the start of a connection; None when more bytes are needed.

    Raises:
        RefusedConnection: it never will be one.
    """
    try:
        return parse_client_hello(data)
    except NeedMore:
        if len(data) > 2 * MAX_HELLO:
            raise RefusedConnection("malformed", "endless ClientHello") from None
        return None
    except NotTls as error:
        raise RefusedConnection("malformed", str(error)) from None


def tls_context(
    gate: InboundGate, hello: ClientHello, local: Address, remote: Address, alpn: tuple[str, ...] = ("http/1.1",)
) -> tuple[ConnectionInfo, ssl.SSLContext]:
    """The filter chain's TLS settings of this moment, with our certificate of this moment.

    Args:
        alpn: what the server behind speaks.

    Raises:
        RefusedConnection: no chain, no TLS in it, or nothing to serve it with.
    """
    info = ConnectionInfo(
        destination=local, transport="tls", alpn=hello.alpn, server_name=hello.server_name, source=remote
    )
    mesh = gate.mesh
    snapshot = mesh.snapshot
    if snapshot is None or snapshot.inbound is None:
        raise RefusedConnection("not_ready", gate.reasons())
    chain = select_chain(snapshot.inbound, info)
    if chain is None or chain.tls is None:
        raise RefusedConnection("no_chain", f"no filter chain for TLS with ALPN {list(hello.alpn)!a} on {local}")
    try:
        return info, mesh.contexts.server(_offering(chain.tls, alpn))
    except (NoIdentityError, OSError) as error:
        raise RefusedConnection("no_identity", str(error)) from error


def verified(info: ConnectionInfo, tls: Any) -> Connection:
    """The connection behind a finished handshake of a context from `tls_context`.

    Args:
        tls: the `SSLObject` or `SSLSocket`, which holds the verdict on the peer (`identity.tls.TlsConnection`).
    """
    peer = Peer(
        identity=tls.peer_identity,
        uri_sans=tls.peer_uri_sans,
        dns_sans=tls.peer_dns_sans,
        subject="" if tls.peer is None else tls.peer.subject,
        tls=True,
        alpn=tls.selected_alpn_protocol() or "",
        sni=info.server_name,
        address=info.source,
        local=info.destination,
    )
    return Connection(info, peer, tls.valid_until, time.time())


@functools.lru_cache(maxsize=64)
def _offering(tls: DownstreamTls, alpn: tuple[str, ...]) -> DownstreamTls:
    """The chain's settings with the protocols that the server behind speaks: a sidecar may offer others as well."""
    return replace(tls, alpn=alpn)


# -------------------------------------------------------------------------------------------------------- blocking sockets

# By socket object, so that neither a header nor an environ key can name a connection. Filled by `accept_blocking`.
_CONNECTIONS: weakref.WeakKeyDictionary[socket.socket, Connection] = weakref.WeakKeyDictionary()


def connection_of(sock: object) -> Connection | None:
    """What `accept_blocking` found about this socket; None for a socket that did not come through it."""
    return _CONNECTIONS.get(sock) if isinstance(sock, socket.socket) else None


def accept_blocking(gate: InboundGate, sock: socket.socket, timeout: float = HANDSHAKE_TIMEOUT) -> socket.socket:
    """Look at the first bytes without taking them, then return the socket as it is or an `SSLSocket` with a verified peer.

    Blocks its thread up to `timeout` seconds: a server with one thread for all connections is open to slow callers.

    Raises:
        RefusedConnection: see the module. The caller closes the socket.
    """
    local, remote = address_of(sock.getsockname()), address_of(sock.getpeername())
    previous = sock.gettimeout()
    hello = _peek(sock, time.monotonic() + timeout)
    if hello is None:
        connection = plaintext(gate, local, remote)
        sock.settimeout(previous)
    else:
        info, context = tls_context(gate, hello, local, remote)
        sock.settimeout(timeout)
        try:
            sock = context.wrap_socket(sock, server_side=True)
        except PeerVerificationError as error:
            raise RefusedConnection("peer", str(error)) from error
        except OSError as error:  # ssl.SSLError is one
            raise RefusedConnection("handshake", str(error) or type(error).__name__) from error
        sock.settimeout(previous)
        connection = verified(info, sock)
    connection.gate = gate
    _CONNECTIONS[sock] = connection
    return sock


def _peek(sock: socket.socket, deadline: float) -> ClientHello | None:
    """The ClientHello, or None for plain text; nothing is taken from the socket."""
    seen = 0
    readable = select.poll()  # `select` ends at descriptor 1023
    readable.register(sock, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise RefusedConnection("timeout", "no TLS handshake or request in time")
        if not readable.poll(left * 1000):
            continue
        data = sock.recv(2 * MAX_HELLO, socket.MSG_PEEK)
        if not data:
            raise RefusedConnection("handshake", "the caller left")
        if data[0] != HANDSHAKE_RECORD:
            return None
        hello = client_hello(data)
        if hello is not None:
            return hello
        if len(data) == seen:  # a peeked socket stays readable: wait a moment for the rest
            time.sleep(0.005)
        seen = len(data)
