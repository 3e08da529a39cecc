"""One TLS connection over loopback, with blocking sockets, asyncio or uvloop: what each end saw."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import uvloop

STYLES = ("blocking", "asyncio", "uvloop")


@dataclass
class Seen:
    """`error` of the handshake or of the first read; `received` of the application; facts of the connected object."""

    error: BaseException | None = None
    received: bytes = b""
    identity: str | None = None
    valid_until: float = 0.0
    reused: bool | None = None
    alpn: str | None = None
    serial: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def look_at(self, connected: Any) -> None:
        self.identity = None if connected.peer_identity is None else str(connected.peer_identity)
        self.valid_until = connected.valid_until
        self.reused = connected.session_reused
        self.alpn = connected.selected_alpn_protocol()
        self.serial = "" if connected.peer is None else connected.peer.serial
        self.facts = {"uris": connected.peer_uri_sans, "dns": connected.peer_dns_sans, "end": connected.peer_not_after}


def talk(style: str, server: ssl.SSLContext, client: ssl.SSLContext, *, name: str | None = None) -> tuple[Seen, Seen]:
    """Client says ``ping``, server says ``pong``. Returns what client and server saw."""
    if style == "blocking":
        return _blocking(server, client, name)
    factory: Callable[[], asyncio.AbstractEventLoop] = (
        uvloop.new_event_loop if style == "uvloop" else asyncio.new_event_loop
    )
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(_async(server, client, name))


def _blocking(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None) -> tuple[Seen, Seen]:
    ours, theirs = Seen(), Seen()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            plain.settimeout(10)
            try:
                with server.wrap_socket(plain, server_side=True) as connected:
                    theirs.look_at(connected)
                    theirs.received = connected.recv(100)
                    connected.sendall(b"pong")
            except OSError as error:
                theirs.error = error
            finally:
                plain.close()

        thread = threading.Thread(target=serve)
        thread.start()
        plain = socket.create_connection(listener.getsockname(), timeout=10)
        try:
            with client.wrap_socket(plain, server_hostname=name) as connected:
                ours.look_at(connected)
                connected.sendall(b"ping")
                ours.received = connected.recv(100)
        except OSError as error:
            ours.error = error
        finally:
            plain.close()
        thread.join(10)
        assert not thread.is_alive()
    return ours, theirs


async def _async(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None) -> tuple[Seen, Seen]:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)
    ours, theirs, served = Seen(), Seen(), loop.create_future()

    class Server(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport
            theirs.look_at(transport.get_extra_info("ssl_object"))

        def data_received(self, data: bytes) -> None:
            theirs.received += data
            self.transport.write(b"pong")

        def connection_lost(self, error: Exception | None) -> None:
            if not served.done():
                served.set_result(None)

    listener = await loop.create_server(Server, "127.0.0.1", 0, ssl=server)
    port = listener.sockets[0].getsockname()[1]
    try:
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname=name or "")
            ours.look_at(writer.get_extra_info("ssl_object"))
            writer.write(b"ping")
            ours.received = await reader.read(100)
            writer.close()
    except OSError as error:
        ours.error = error
    finally:
        # A server that refused in the handshake never hears of the connection; one that did not is waited for.
        await asyncio.wait({served}, timeout=10 if ours.received else 0.1)
        listener.close()
    return ours, theirs
