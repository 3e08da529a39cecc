"""A server that does what a script says, and one face for the three engines: asyncio, uvloop, blocking.

The server runs in threads with plain sockets, so it is the same for every client and knows nothing of our code.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

import uvloop

from proxyless.core.call import Attempt
from proxyless.core.learned import ClusterState
from proxyless.core.request import Address
from proxyless.core.resources import CircuitBreakers, Cluster, ClusterType, UpstreamTls
from proxyless.core.snapshot import Endpoint, Upstream
from proxyless.engine import UNLIMITED, AsyncEngine, SyncEngine, Timeouts

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PATIENCE = 5.0


def wait_until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Poll for a condition that another thread brings about."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come true")
        time.sleep(0.002)


class Peer:
    """The server's end of one connection. `number` counts connections from 1."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock, self.number, self.buffer = sock, number, b""
        self.heads: list[bytes] = []
        self.closed_by_client = False

    def head(self) -> bytes:
        """The next request head; ConnectionError at the end."""
        head = self.until(b"\r\n\r\n")
        self.heads.append(head)
        return head

    def until(self, mark: bytes) -> bytes:
        while mark not in self.buffer:
            self._more()
        data, _, self.buffer = self.buffer.partition(mark)
        return data + mark

    def exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            self._more()
        data, self.buffer = self.buffer[:count], self.buffer[count:]
        return data

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            self.closed_by_client = True
            raise ConnectionError("closed by the client")
        self.buffer += data

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def wait_closed(self) -> None:
        """Until the client ends the connection."""
        with contextlib.suppress(OSError):
            while self.sock.recv(65536):
                pass
        self.closed_by_client = True

    def cut(self) -> None:
        """End the TCP stream; over TLS without close_notify."""
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock = socket.socket(fileno=self.sock.detach())
        self.sock.close()

    def reset(self) -> None:
        """RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.cut()


Script = Callable[[Peer], None]


class Server:
    """Runs `script` once for each connection, in a thread; the connection is closed at its end."""

    def __init__(self, script: Script, *, tls: ssl.SSLContext | None = None, path: str = "") -> None:
        self.script, self.tls = script, tls
        self.peers: list[Peer] = []
        self.handshake_errors: list[Exception] = []
        self.failures: list[BaseException] = []
        self.threads: list[threading.Thread] = []
        if path:
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(path)
            self.listener.listen()
            self.address = Address(path, 0)
        else:
            self.listener = socket.create_server(("127.0.0.1", 0))
            self.address = Address("127.0.0.1", self.listener.getsockname()[1])
        self.accepted = 0

    def __enter__(self) -> Server:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for peer in self.peers:
            with contextlib.suppress(OSError):
                peer.sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(PATIENCE)
        for peer in self.peers:
            peer.sock.close()
        if self.failures:
            raise self.failures[0]

    @property
    def requests(self) -> list[bytes]:
        return [head for peer in self.peers for head in peer.heads]

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self.threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            sock.settimeout(PATIENCE * 2)
            self._start(self._serve, sock, self.accepted)

    def _serve(self, sock: socket.socket, number: int) -> None:
        if self.tls is not None:
            try:
                sock = self.tls.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)
            except OSError as error:
                self.handshake_errors.append(error)
                sock.close()
                return
        peer = Peer(sock, number)
        self.peers.append(peer)
        try:
            self.script(peer)
            if isinstance(peer.sock, ssl.SSLSocket) and peer.sock.fileno() >= 0:
                peer.sock.settimeout(0.5)
                with contextlib.suppress(OSError):
                    peer.sock.unwrap()
        except (OSError, ValueError):  # the latter: a TLS socket that was shut down meanwhile
            pass
        except BaseException as error:
            self.failures.append(error)
        finally:
            peer.sock.close()


def replies(*answers: bytes, close: bool = False) -> Script:
    """The n-th request of the whole server gets the n-th answer, the last for all that follow."""
    counter = iter(range(10**6))

    def script(peer: Peer) -> None:
        while True:
            peer.head()
            peer.send(answers[min(next(counter), len(answers) - 1)])
            if close:
                return

    return script


# ---------------------------------------------------------------------------------------------------------------- attempts


def upstream(address: Address, *, tls: UpstreamTls | None = None, name: str = "c", **cluster: Any) -> Upstream:
    configured = Cluster(name=name, type=ClusterType.STATIC, **cluster)
    endpoint = Endpoint(address=address, tls=tls)
    return Upstream(cluster=configured, endpoints=(endpoint,), addresses=frozenset({address}))


class Target:
    """An upstream with its state, from which attempts are made."""

    def __init__(self, address: Address, *, tls: UpstreamTls | None = None, **cluster: Any) -> None:
        self.upstream = upstream(address, tls=tls, **cluster)
        self.state = ClusterState("c")

    def attempt(
        self,
        method: str = "GET",
        target: bytes = b"/",
        headers: Sequence[tuple[bytes, bytes]] = (),
        *,
        within: float | None = None,
        connect_timeout: float = PATIENCE,
        app_tls: bool = False,
        server_name: str = "",
        fresh: bool = False,
    ) -> Attempt:
        return Attempt(
            1,
            self.upstream,
            self.upstream.endpoints[0],
            self.state,
            None if within is None else time.monotonic() + within,
            None,
            connect_timeout,
            method,
            target,
            "payments.myapp.com",
            list(headers),
            app_tls,
            server_name,
            fresh,
        )


def limits(**values: int) -> CircuitBreakers:
    return CircuitBreakers(**values)


# ---------------------------------------------------------------------------------------------------------------- clients


class Answer:
    def __init__(self, exchange: Any, body: bytes) -> None:
        self.status, self.headers, self.trailers = exchange.status, exchange.headers, exchange.trailers
        self.body, self.reused = body, exchange.reused


class AsyncFace:
    """An `AsyncEngine` that lives on a loop which runs only while the test waits for something."""

    def __init__(self, factory: Callable[[], asyncio.AbstractEventLoop], options: dict[str, Any]) -> None:
        self.runner = asyncio.Runner(loop_factory=factory)
        self.engine: AsyncEngine = self.runner.run(self._make(options))

    async def _make(self, options: dict[str, Any]) -> AsyncEngine:
        return AsyncEngine(**options)

    def open(self, attempt: Any, body: Any = b"", timeouts: Timeouts = UNLIMITED) -> Any:
        return self.runner.run(self.engine.exchange(attempt, self._stream(body), timeouts))

    def _stream(self, body: Any) -> Any:
        if isinstance(body, bytes) or hasattr(body, "__aiter__"):
            return body

        async def stream() -> AsyncIterator[bytes]:
            for chunk in body:
                yield chunk
                await asyncio.sleep(0)

        return stream()

    def read(self, exchange: Any, count: int | None = None) -> bytes:
        """The rest of a body, or its next `count` pieces."""

        async def collect() -> bytes:
            data, pieces = b"", 0
            async for chunk in exchange:
                data += chunk
                pieces += 1
                if pieces == count:
                    break
            return data

        return self.runner.run(collect())

    def request(self, attempt: Any, body: Any = b"", timeouts: Timeouts = UNLIMITED) -> Answer:
        exchange = self.open(attempt, body, timeouts)
        return Answer(exchange, exchange.body if exchange.body is not None else self.read(exchange))

    def settle(self, condition: Callable[[], object]) -> None:
        """Let the loop run until the condition holds."""

        async def poll() -> None:
            end = time.monotonic() + PATIENCE
            while not condition():
                assert time.monotonic() < end, "the condition did not come true"
                await asyncio.sleep(0.002)

        self.runner.run(poll())

    def close(self) -> None:
        self.runner.run(self.engine.aclose())
        self.runner.close()


class SyncFace:
    def __init__(self, options: dict[str, Any]) -> None:
        self.engine = SyncEngine(**options)

    def open(self, attempt: Any, body: Any = b"", timeouts: Timeouts = UNLIMITED) -> Any:
        return self.engine.exchange(attempt, body, timeouts)

    def read(self, exchange: Any, count: int | None = None) -> bytes:
        data = b""
        for pieces, chunk in enumerate(exchange, 1):
            data += chunk
            if pieces == count:
                break
        return data

    def request(self, attempt: Any, body: Any = b"", timeouts: Timeouts = UNLIMITED) -> Answer:
        exchange = self.open(attempt, body, timeouts)
        return Answer(exchange, exchange.body if exchange.body is not None else self.read(exchange))

    def settle(self, condition: Callable[[], object]) -> None:
        wait_until(condition)

    def close(self) -> None:
        self.engine.close()


Face = AsyncFace | SyncFace
FLAVOURS = ("asyncio", "uvloop", "sync")
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@contextlib.contextmanager
def engine(flavour: str, contexts: Any = None, **options: Any) -> Iterator[Face]:
    given = {"contexts": contexts, **options}
    face = SyncFace(given) if flavour == "sync" else AsyncFace(LOOPS[flavour], given)
    try:
        yield face
    finally:
        face.close()


def chunks(count: int, size: int) -> Iterable[bytes]:
    return (b"z" * size for _ in range(count))
