"""One connection to one endpoint: mutual TLS by us, HTTP/2 by grpcio, and a hop inside of this process between them.

grpcio cannot check a SPIFFE ID, so the TLS connection is ours, verified in its handshake before any byte (`identity.tls`), and
grpcio's channel is given its plain text. The hop is a socket in Linux' abstract namespace: no file, a name that cannot be guessed, and
nobody but this very process is accepted on it (SO_PEERCRED). One channel is one connection, for ever: when either ends both do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import ssl
import struct
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from proxyless.core.actions import Attempt
from proxyless.core.resources import UpstreamTls
from proxyless.errors import EngineError
from proxyless.grpc.splice import End, join
from proxyless.grpc.wire import metadata_of, to_wire

if TYPE_CHECKING:
    from proxyless.core.request import Address
    from proxyless.core.snapshot import Upstream

__all__ = ["Answer", "Connection", "Options", "connect"]

Options = Sequence[tuple[str, Any]]

SHUTDOWN_TIMEOUT = 1.0  # seconds for TLS' goodbye
SLACK = 0.02  # seconds by which grpcio's clock and ours may disagree about a deadline
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Answer:
    """What a unary call came to, in the form that `runtime.outbound` takes: an HTTP response that is complete.

    Attributes:
        body: the message, serialized; empty unless `code` is OK.
        headers: initial and trailing metadata as on the wire, and the status.
    """

    __slots__ = ("body", "code", "details", "headers", "initial", "peer", "reused", "status", "trailing")

    def __init__(
        self, code: grpc.StatusCode, details: str, initial: Any, trailing: Any, body: bytes, peer: str, reused: bool
    ) -> None:
        self.code, self.details, self.initial, self.trailing = code, details, initial, trailing
        self.status, self.body, self.peer, self.reused = 200, body, peer, reused
        self.headers = [*to_wire(initial), *to_wire(trailing), (b"grpc-status", b"%d" % code.value[0])]

    def close(self) -> None:
        """Nothing is held."""


class Connection:
    """Attributes:
    upstream: the cluster it was made for.
    tls: the rule it was made with, None: plain text.
    generation: of the identity it was made with.
    peer: verified SPIFFE ID, empty for plain text.
    valid_until: POSIX time at which the first of both certificates ends.
    """

    def __init__(self, upstream: Upstream, address: Address, tls: UpstreamTls | None, generation: int) -> None:
        self.upstream, self.address, self.tls, self.generation = upstream, address, tls, generation
        self.peer = ""
        self.valid_until = float("inf")
        self.opened_at = self.idle_since = time.monotonic()
        self.active = self.uses = 0
        self.retired = False
        self.lost = asyncio.get_running_loop().create_future()
        self.outer = End(self._lose)
        self.inner = End(self._lose)
        self.channel: Any = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def dead(self) -> bool:
        return self.lost.done()

    def ready(self) -> bool:
        """A call may begin here. False for good once grpcio has been told to go away by the peer."""
        return not self.lost.done() and self.channel.get_state() is grpc.ChannelConnectivity.READY

    async def unary(self, attempt: Attempt, message: bytes, compression: grpc.Compression | None) -> Answer:
        """One attempt.

        Raises:
            EngineError: ``deadline``, or ``read``: the connection broke.
        """
        reused = self.uses > 0
        self.uses += 1
        self.active += 1
        deadline = attempt.deadline
        try:
            call = self.channel.unary_unary(attempt.target.decode("latin-1"))(
                message,
                timeout=None if deadline is None else max(0.0, deadline - time.monotonic()),
                metadata=metadata_of(attempt.headers),
                compression=compression,
            )
            try:
                body = await call
            except grpc.aio.AioRpcError as error:
                return self._failed(error, deadline, reused)
            initial, trailing = await call.initial_metadata(), await call.trailing_metadata()
            return Answer(grpc.StatusCode.OK, await call.details(), initial, trailing, body, self.peer, reused)
        finally:
            self.active -= 1
            if not self.active:
                self.idle_since = time.monotonic()
                if self.retired or self.dead:
                    self.close()

    def _failed(self, error: Any, deadline: float | None, reused: bool) -> Answer:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE and self.dead:
            raise EngineError("read", f"{self.address}: {details}", reused=reused, request_sent=True)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and deadline is not None and time.monotonic() >= deadline - SLACK:
            raise EngineError("deadline", "no answer in time", reused=reused, request_sent=True)
        return Answer(code, details, error.initial_metadata(), error.trailing_metadata(), b"", self.peer, reused)

    def retire(self) -> None:
        """No new calls; those under way end by themselves."""
        self.retired = True
        if not self.active:
            self.close()

    def close(self) -> None:
        """Calls under way are cancelled."""
        for end in (self.outer, self.inner):
            if end.made:
                end.close()
        if self.channel is not None and self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self.channel.close())
        self._lose()

    async def closed(self) -> None:
        """`close`, and wait until grpcio has done so."""
        self.close()
        if self._closing is not None:
            await self._closing

    def _lose(self) -> None:
        if not self.lost.done():
            self.lost.set_result(None)
            if self.channel is not None and not self.active:
                self.close()


async def connect(
    attempt: Attempt,
    tls: UpstreamTls | None,
    context: ssl.SSLContext | None,
    generation: int,
    options: Options,
    on_lost: Callable[[Connection], None],
) -> Connection:
    """Connect, verify the peer, and wait until HTTP/2 runs. Not bounded in time: the caller does that.

    Raises:
        OSError, PeerVerificationError: no connection, or the wrong peer (`ssl.SSLError` is an OSError).
        EngineError: the peer ended the connection, or does not speak HTTP/2.
    """
    loop = asyncio.get_running_loop()
    address = attempt.endpoint.address
    connection = Connection(attempt.upstream, address, tls, generation)
    name = (tls.sni or address.host) if tls is not None else None
    options_of_tls: dict[str, Any] = {"ssl": context, "server_hostname": name}
    if context is not None:
        options_of_tls["ssl_shutdown_timeout"] = SHUTDOWN_TIMEOUT
    try:
        if address.host.startswith("/"):
            await loop.create_unix_connection(lambda: connection.outer, address.host, **options_of_tls)
        else:
            await loop.create_connection(lambda: connection.outer, address.host, address.port, **options_of_tls)
        if context is not None:
            secured: Any = connection.outer.transport.get_extra_info("ssl_object")
            connection.peer = str(secured.peer_identity or "")
            connection.valid_until = secured.valid_until
        await _hop(connection, loop, attempt.authority, options)
        await _http2(connection)
    except BaseException:
        connection.close()
        raise
    connection.lost.add_done_callback(lambda _: on_lost(connection))
    return connection


async def _hop(connection: Connection, loop: asyncio.AbstractEventLoop, authority: str, options: Options) -> None:
    """Give grpcio its end of the connection."""
    name = f"proxyless-{os.getpid()}-{secrets.token_hex(16)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.setblocking(False)
        listener.bind(f"\0{name}")
        listener.listen(8)
        connection.channel = grpc.aio.insecure_channel(
            f"unix-abstract:{name}",
            options=[
                *options,
                ("grpc.default_authority", authority),
                ("grpc.enable_retries", 0),  # the mesh's policy repeats calls, nobody else
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        connection.channel.get_state(try_to_connect=True)
        while True:
            accepted, _ = await loop.sock_accept(listener)
            if _of_this_process(accepted):
                break
            accepted.close()
    await loop.connect_accepted_socket(lambda: connection.inner, accepted)
    join(connection.outer, connection.inner)


def _of_this_process(accepted: socket.socket) -> bool:
    credentials = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    return (pid, uid) == (os.getpid(), os.geteuid())


async def _http2(connection: Connection) -> None:
    """Wait for the peer's SETTINGS: what fails before them was no request, and may go to another endpoint."""
    ready = asyncio.ensure_future(connection.channel.channel_ready())
    try:
        await asyncio.wait((ready, connection.lost), return_when=asyncio.FIRST_COMPLETED)
        if connection.dead:
            raise EngineError("connect", f"{connection.address}: the peer ended the connection before HTTP/2 began")
    finally:
        ready.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await ready
