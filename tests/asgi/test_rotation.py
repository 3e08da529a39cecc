"""Certificates of seconds under load: no request fails, although every connection ends with its certificate."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
import time
from typing import Any

import pytest

from proxyless.asgi import EXTENSION, MeshMiddleware
from proxyless.uvicorn import MeshH11Protocol, MeshHttpToolsProtocol
from tests.asgi.helpers import Fixture, Server, World, ask, echo, raw

LIFE = 4.0  # seconds, of which up to one is lost: certificates count whole seconds
LOAD = 6.0


class Caller(threading.Thread):
    """Calls over kept-alive connections without a single retry; a connection is dropped when the server says so."""

    def __init__(self, world: World, port: int, number: int, until: float) -> None:
        super().__init__(daemon=True)
        self._world, self._port, self._number, self._until = world, port, number, until
        self.answered = self.connections = 0
        self.failures: list[BaseException | int] = []

    def run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while time.monotonic() < self._until:
            try:
                if connection is None or connection.sock is None:
                    connection = self._connect()
                if self._number % 2:
                    connection.request("POST", "/", body=b"x" * 1000, headers={"Host": "app"})
                else:
                    connection.request("GET", "/", headers={"Host": "app"})
                response = connection.getresponse()
                response.read()
                if response.status != 200:
                    self.failures.append(response.status)
                self.answered += 1
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(error)
                self._close(connection)
            if self._number >= 3:  # these make a new connection each time
                self._close(connection)
        self._close(connection)

    def _close(self, connection: http.client.HTTPConnection | None) -> None:
        if connection is not None:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        context = self._world.client(f"caller-{self._number}", ttl=LIFE)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        connection.sock = context.wrap_socket(socket.create_connection(("127.0.0.1", self._port), 5))
        self.connections += 1
        return connection


@pytest.mark.parametrize(("protocol", "loop"), [(MeshHttpToolsProtocol, "uvloop"), (MeshH11Protocol, "asyncio")])
def test_no_request_fails_while_certificates_rotate(protocol: Any, loop: str) -> None:
    world = World()
    fixture = Fixture(world, source=world.source("payments", ttl=LIFE))
    fixture.configure("STRICT")
    stop = threading.Event()

    def rotate() -> None:
        while not stop.wait(1.0):
            fixture.source.replace(world.svid("payments", ttl=LIFE), [world.bundle])

    with Server(MeshMiddleware(echo, mesh=fixture.mesh), protocol, loop) as server:
        rotator = threading.Thread(target=rotate, daemon=True)
        rotator.start()
        until = time.monotonic() + LOAD
        callers = [Caller(world, server.port, number, until) for number in range(4)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(LOAD + 10)
        stop.set()
        rotator.join(5)
    assert [caller.failures for caller in callers] == [[], [], [], []]
    kept = callers[0]
    assert kept.answered > 20
    assert 2 <= kept.connections <= 12  # kept alive, and ended by the certificates' ends


def test_a_request_that_outlasts_the_certificate_is_answered() -> None:
    world = World()
    fixture = Fixture(world)
    fixture.configure("STRICT")

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            ends = scope["extensions"][EXTENSION].expires_at
            while time.time() <= ends:
                await asyncio.sleep(0.05)
        await echo(scope, receive, send)

    with (
        Server(MeshMiddleware(slow, mesh=fixture.mesh), MeshHttpToolsProtocol) as server,
        raw(server.port, world.client("billing", ttl=3.0)) as sock,
    ):
        assert ask(sock, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200
        assert sock.recv(1) == b""
