"""The bounds of uvicorn's httptools protocol, under the mesh's."""

from __future__ import annotations

import contextlib
import socket

import pytest

from proxyless.runtime.bounded import MAX_HEAD
from proxyless.uvicorn import MeshHttpToolsProtocol
from tests.asgi.helpers import Fixture, Server, World, allow, answer, ask, echo, policy, raw
from tests.wsgi.test_middleware import header_rule

HEAD = b"POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def fixture() -> Fixture:
    made = Fixture(World())
    made.configure("PERMISSIVE")
    return made


def flood(sock: socket.socket, piece: bytes) -> bool:
    """-> the other end stopped it before 64 MiB."""
    with contextlib.suppress(OSError):
        for _ in range(64):
            sock.sendall(piece * (1024 * 1024 // len(piece)))
        return False
    return True


@pytest.mark.parametrize("before", [b"GET / HTTP/1.1\r\nHost: app\r\n", HEAD + b"\r\n1\r\nx\r\n0\r\n", b"GET /"])
def test_headers_trailers_and_targets_do_not_fill_the_memory(fixture: Fixture, before: bytes) -> None:
    with Server(echo, MeshHttpToolsProtocol.for_mesh(fixture.mesh)) as server, raw(server.port) as sock:
        sock.sendall(before)
        assert flood(sock, b"x" if before == b"GET /" else b"X-Many: 12345678\r\n")


def test_headers_beyond_the_bound_get_431(fixture: Fixture, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "proxyless")
    with Server(echo, MeshHttpToolsProtocol.for_mesh(fixture.mesh)) as server, raw(server.port) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: app\r\nX-Large: " + b"x" * MAX_HEAD)
        assert answer(sock)[0] == 431
        assert sock.recv(1) == b""
    assert "more than 65536 bytes of headers" in caplog.text


def test_a_body_has_no_bound(fixture: Fixture) -> None:
    with Server(echo, MeshHttpToolsProtocol.for_mesh(fixture.mesh)) as server, raw(server.port) as sock:
        size = 1024 * 1024
        sock.sendall(b"POST / HTTP/1.1\r\nHost: app\r\nContent-Length: %d\r\n\r\n" % size)
        assert ask(sock, b"x" * size)[0] == 200


def test_a_trailer_is_no_header_for_policy(fixture: Fixture) -> None:
    world = fixture.world
    own = Fixture(world)
    own.configure("PERMISSIVE", allow(policy("p", header_rule("x-role", "admin"))))
    with Server(echo, MeshHttpToolsProtocol.for_mesh(own.mesh)) as server:
        with raw(server.port) as sock:
            assert ask(sock, HEAD + b"\r\n0\r\nX-Role: admin\r\n\r\n")[0] == 403
        with raw(server.port) as sock:
            assert ask(sock, HEAD + b"X-Role: admin\r\n\r\n0\r\n\r\n")[0] == 200
