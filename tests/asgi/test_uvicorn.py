"""uvicorn with the mesh's protocol: one port, plain text and mutual TLS, on every parser and loop."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
import ssl
from typing import Any

import httpx
import pytest

from proxyless.asgi import MeshMiddleware
from proxyless.core.matchers import HeaderMatcher, StringMatcher
from proxyless.core.rbac import HeaderRule
from proxyless.uvicorn import MeshH11Protocol, MeshHttpToolsProtocol
from tests.asgi.helpers import (
    Fixture,
    Server,
    World,
    allow,
    answer,
    ask,
    client_context,
    deny,
    echo,
    eventually,
    get,
    identity,
    paths,
    policy,
    principal,
    raw,
)

SERVERS = list(itertools.product(["asyncio", "uvloop"], [MeshHttpToolsProtocol, MeshH11Protocol]))
IDS = [f"{loop}-{protocol.__name__}" for loop, protocol in SERVERS]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(params=SERVERS, ids=IDS)
def served(request, world):
    """(fixture, port), with MeshMiddleware around the application as a user has it."""
    loop, protocol = request.param
    fixture = Fixture(world)
    fixture.configure("PERMISSIVE")
    with Server(MeshMiddleware(echo, mesh=fixture.mesh), protocol, loop) as server:
        yield fixture, server.port


def test_one_port_serves_mutual_tls_and_plain_text_in_permissive_mode(served, world):
    _, port = served
    status, seen = get(port, "/", world.client("billing"))
    assert (status, seen["peer"], seen["scheme"]) == (200, identity("billing"), "https")
    status, seen = get(port, "/")
    assert (status, seen["peer"], seen["scheme"]) == (200, "", "http")


def test_strict_mode_ends_a_plain_text_connection_before_any_request(served, world):
    fixture, port = served
    fixture.configure("STRICT")
    assert get(port, "/") == (0, b"")
    assert get(port, "/", world.client("billing"))[0] == 200
    assert fixture.value("proxyless_inbound_handshake_failures_total", reason="plaintext") == 1
    assert fixture.value("istio_requests_total") == 1


def test_a_peer_without_certificate_never_reaches_http(served, world):
    fixture, port = served
    for mode in ("STRICT", "PERMISSIVE"):
        fixture.configure(mode)
        assert get(port, "/", client_context(None, world.authority.bundle, ["istio"])) == (0, b"")
    assert fixture.value("istio_requests_total") == 0


def test_a_peer_of_another_authority_never_reaches_http(served, world):
    fixture, port = served
    stranger = World()
    context = client_context(stranger.svid("billing"), world.authority.bundle, ["istio"])
    assert get(port, "/", context) == (0, b"")
    assert fixture.value("istio_requests_total") == 0


def test_tls_that_no_filter_chain_terminates_is_refused(served, world):
    fixture, port = served
    assert get(port, "/", world.client("billing", alpn=["http/1.1"])) == (0, b"")  # PERMISSIVE wants an ALPN of Istio
    assert fixture.value("proxyless_inbound_handshake_failures_total", reason="no_chain") == 1
    fixture.configure("DISABLE")
    assert get(port, "/", world.client("billing")) == (0, b"")


def test_the_mode_of_the_moment_judges_a_connection_that_is_already_open(served):
    fixture, port = served
    with raw(port) as sock:
        assert ask(sock, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200
        fixture.configure("STRICT")
        status, body = ask(sock, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (status, body) == (403, b"RBAC: access denied")
        assert sock.recv(1) == b""


def test_policy_decides_by_the_verified_identity_and_never_by_a_header(served, world):
    fixture, port = served
    fixture.configure("PERMISSIVE", allow(policy("ns[default]-policy[p]-rule[0]", who=principal("billing"))))
    assert get(port, "/", world.client("billing"))[0] == 200
    assert get(port, "/", world.client("orders")) == (403, b"RBAC: access denied")
    forged = (
        f"X-Forwarded-Client-Cert: URI={identity('billing')}\r\nX_Forwarded_Client_Cert: URI={identity('billing')}\r\n"
    )
    assert get(port, "/", extra=forged) == (403, b"RBAC: access denied")


def test_client_certificate_headers_do_not_reach_the_application(served, world):
    _, port = served
    extra = "X-Forwarded-Client-Cert: a\r\nx-forwarded_client-cert: b\r\nX_FORWARDED_CLIENT_CERT: c\r\nX-Other: d\r\n"
    seen = get(port, "/", world.client(), extra=extra)[1]
    assert [name for name in seen["headers"] if "forwarded" in name] == []
    assert "x-other" in seen["headers"]


def test_policy_is_evaluated_for_every_request_of_a_connection(served, world):
    fixture, port = served
    with raw(port, world.client()) as sock:
        for path, status in (("/a", 200), ("/admin", 403), ("/a", 200)):
            fixture.configure("STRICT", deny(policy("d", paths("/admin", "/admin/*"))))
            assert ask(sock, f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())[0] == status


def test_a_request_right_behind_the_handshake_is_not_lost(served, world):
    _, port = served
    context = world.client()
    for _ in range(20):
        with raw(port, context) as sock:
            assert ask(sock, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200


def test_pipelined_requests_and_large_bodies_arrive_whole(served, world):
    fixture, port = served
    fixture.configure("STRICT")  # httpx sets an ALPN of its own, which PERMISSIVE would not terminate
    with raw(port, world.client()) as sock:
        sock.sendall(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n" * 2)
        assert answer(sock)[0] == 200
    with httpx.Client(verify=world.client(), timeout=10) as client:
        response = client.post(f"https://127.0.0.1:{port}/", content=b"x" * 3_000_000)
        assert response.json()["size"] == 3_000_000


def test_a_client_hello_in_pieces_is_understood(served, world):
    _, port = served
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    handshake = world.client().wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        handshake.do_handshake()
    hello = outgoing.read()
    with raw(port) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (hello[:1], hello[1:7], hello[7:60], hello[60:]):
            sock.sendall(piece)
        assert sock.recv(65536)[:1] == b"\x16"


def test_garbage_that_begins_like_tls_is_refused(served):
    fixture, port = served
    with raw(port) as sock:
        assert ask(sock, b"\x16\x03\x01\xff\xff" + b"\x00" * 100) == (0, b"")
    assert fixture.value("proxyless_inbound_handshake_failures_total", reason="malformed") == 1


@pytest.mark.parametrize("target", ["http://other/admin", "http://other", "/a#/public", "*"])
def test_a_target_that_is_more_than_path_and_query_is_400(served, world, target):
    _, port = served
    assert get(port, target, world.client())[0] == 400


def test_blanks_around_a_header_value_are_no_part_of_it(served, world):
    fixture, port = served
    fixture.configure("STRICT", deny(policy("d", HeaderRule(HeaderMatcher("x-role", StringMatcher("exact", "admin"))))))
    assert get(port, "/", world.client(), extra="X-Role:   admin \t \r\n")[0] == 403


def test_a_websocket_sees_the_verified_peer(served, world):
    from websockets.sync.client import connect

    _, port = served
    with connect(f"wss://127.0.0.1:{port}/", ssl=world.client("billing"), server_hostname="app") as socket_:
        assert json.loads(socket_.recv())["peer"] == identity("billing")


def test_a_websocket_is_refused_by_policy_before_it_is_accepted(served, world):
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    fixture, port = served
    fixture.configure("STRICT", deny(policy("d", paths("/admin*"))))
    with pytest.raises(InvalidStatus) as refused:
        connect(f"wss://127.0.0.1:{port}/admin/ws", ssl=world.client(), server_hostname="app")
    assert refused.value.response.status_code == 403


def test_a_new_certificate_is_served_without_a_restart_and_open_connections_live(served, world):
    fixture, port = served
    with raw(port, world.client()) as sock:
        before = sock.getpeercert(True)
        fixture.source.replace(world.svid("payments"), [world.bundle])
        with raw(port, world.client()) as other:
            assert other.getpeercert(True) not in (None, before)
        assert ask(sock, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200


def test_a_removed_root_stops_new_handshakes_at_once(served, world):
    fixture, port = served
    other = World()
    fixture.source.replace(fixture.source.current.svid, [other.bundle])
    assert get(port, "/", world.client()) == (0, b"")


def test_without_an_identity_tls_is_refused_and_plain_text_gets_503(served, world):
    fixture, port = served
    fixture.source.withdraw()
    assert get(port, "/", world.client()) == (0, b"")
    assert get(port, "/") == (503, b"service is not ready")
    assert fixture.value("proxyless_inbound_handshake_failures_total", reason="no_identity") == 1


def test_a_connection_ends_with_the_certificate_it_was_made_with(served, world):
    _, port = served
    with raw(port, world.client("billing", ttl=3.0)) as sock:
        assert ask(sock, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200
        assert sock.recv(1) == b""


def test_a_response_near_the_end_of_a_certificate_announces_the_close(served, world):
    _, port = served
    with raw(port, world.client("billing", ttl=2.0)) as sock:

        def closes() -> bool:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            head = b""
            while b"\r\n\r\n" not in head or not head.endswith(b"}"):
                head += sock.recv(65536)
            assert head.startswith(b"HTTP/1.1 200")
            return b"connection: close" in head.lower()

        assert not closes()
        eventually(closes)
        assert sock.recv(1) == b""


def test_before_the_first_configuration_requests_get_503(world):
    fixture = Fixture(world)
    app = MeshMiddleware(echo, mesh=fixture.mesh, start_wait=0)
    with Server(app, MeshHttpToolsProtocol) as server:
        assert get(server.port, "/") == (503, b"service is not ready")
        assert get(server.port, "/", world.client()) == (0, b"")
        fixture.configure("PERMISSIVE")
        assert get(server.port, "/")[0] == 200
        assert get(server.port, "/", world.client())[0] == 200


def test_a_silent_connection_is_ended(world, monkeypatch):
    monkeypatch.setattr("proxyless.uvicorn.HANDSHAKE_TIMEOUT", 0.2)
    fixture = Fixture(world)
    fixture.configure("PERMISSIVE")
    with Server(MeshMiddleware(echo, mesh=fixture.mesh), MeshHttpToolsProtocol) as server, raw(server.port) as sock:
        assert sock.recv(1) == b""
        assert fixture.value("proxyless_inbound_handshake_failures_total", reason="timeout") == 1


def test_policy_holds_when_the_application_forgot_the_middleware(world):
    fixture = Fixture(world)
    fixture.configure("STRICT", deny(policy("d", paths("/admin"))))
    with Server(echo, MeshHttpToolsProtocol.for_mesh(fixture.mesh), lifespan="off") as server:
        assert get(server.port, "/admin", world.client())[0] == 403
        assert get(server.port, "/", world.client())[0] == 200


def test_middleware_and_protocol_together_count_a_request_once(served, world):
    fixture, port = served
    get(port, "/", world.client())
    eventually(lambda: fixture.value("istio_requests_total") == 1)


def test_an_idle_client_does_not_hold_back_the_shutdown(world):
    fixture = Fixture(world)
    fixture.configure("PERMISSIVE")
    with Server(MeshMiddleware(echo, mesh=fixture.mesh), MeshHttpToolsProtocol) as server:
        sock = socket.create_connection(("127.0.0.1", server.port))
        secured = world.client().wrap_socket(sock)
        waiting = socket.create_connection(("127.0.0.1", server.port))
    secured.close()
    waiting.close()


def test_a_root_path_that_the_application_gives_itself_hides_nothing(world):
    """`FastAPI(root_path=...)` sets it after the protocol has judged the whole path, and routes by the rest."""
    fixture = Fixture(world)
    fixture.configure("PERMISSIVE", deny(policy("deny-admin", paths("/admin"))))
    inner = MeshMiddleware(echo, mesh=fixture.mesh)

    async def app(scope, receive, send):
        await inner({**scope, "root_path": "/api"}, receive, send)

    with Server(app, MeshHttpToolsProtocol) as server:
        statuses = [get(server.port, path)[0] for path in ("/admin", "/api/admin", "/%61pi/admin", "/api/x", "/x")]
    assert statuses == [403, 403, 403, 200, 200]
    counted = fixture.value("istio_requests_total", reporter="destination")
    assert (counted, fixture.value("proxyless_inbound_denied_total", reason="policy")) == (5, 3)


def test_the_root_path_of_the_server_is_judged_once(world):
    fixture = Fixture(world)
    fixture.configure("PERMISSIVE", deny(policy("deny-admin", paths("/admin"))))
    app = MeshMiddleware(echo, mesh=fixture.mesh)
    with Server(app, MeshHttpToolsProtocol, root_path="/api") as server:
        assert [get(server.port, path)[0] for path in ("/admin", "/x")] == [403, 200]


def test_without_lifespan_a_wrong_setting_refuses_connections_and_says_so(monkeypatch, caplog):
    from proxyless.runtime import inbound
    from proxyless.runtime.mesh import Mesh

    monkeypatch.setenv("PROXYLESS_XDS", "nonsense")
    monkeypatch.setattr(Mesh, "_default", None)
    monkeypatch.setattr(inbound, "_serving", None)
    with Server(echo, MeshHttpToolsProtocol, lifespan="off") as server:
        assert get(server.port, "/") == (0, b"")
        assert server.server.server_state.connections == set()
    assert "connections are refused: PROXYLESS_XDS" in caplog.text


def test_an_application_that_raises_after_its_answer_does_not_end_the_connection(world, caplog, monkeypatch):
    """Starlette sends its 500 and raises; the next call on the connection must not meet its end."""
    from fastapi import FastAPI

    fixture = Fixture(world)
    fixture.configure("PERMISSIVE")
    app = FastAPI()
    app.add_middleware(MeshMiddleware, mesh=fixture.mesh)

    @app.get("/boom")
    async def boom() -> None:
        raise RuntimeError("a fault of the application")

    with Server(app, MeshHttpToolsProtocol.for_mesh(fixture.mesh)) as server, raw(server.port) as sock:
        caplog.set_level("ERROR", "uvicorn.error")  # the server of the tests is quiet
        monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
        for _ in range(3):
            assert ask(sock, b"GET /boom HTTP/1.1\r\nHost: app\r\n\r\n")[0] == 500
        assert ask(sock, b"GET /none HTTP/1.1\r\nHost: app\r\n\r\n")[0] == 404
    assert caplog.text.count("Exception in ASGI application") == 3
    assert fixture.value("istio_requests_total", response_code="500") == 3


def test_a_server_on_its_way_out_ends_connections_with_their_next_response(served, world):
    fixture, port = served
    with raw(port, world.client("billing")) as sock:
        assert ask(sock, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200
        fixture.mesh.drain()
        assert ask(sock, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")[0] == 200
        assert sock.recv(1) == b""
    assert get(port, "/", world.client("billing"))[0] == 200


def test_a_websocket_that_is_over_leaves_no_timer(world):
    from websockets.sync.client import connect

    from proxyless import uvicorn

    fixture = Fixture(world)
    fixture.configure("STRICT")
    loops: set[Any] = set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        loops.add(asyncio.get_running_loop())
        await echo(scope, receive, send)

    def timers() -> int:
        (loop,) = loops
        return sum(not each.cancelled() and each._callback is uvicorn._expire for each in list(loop._scheduled))

    for protocol in (MeshHttpToolsProtocol, MeshH11Protocol):
        with Server(MeshMiddleware(app, mesh=fixture.mesh), protocol) as server:
            for _ in range(3):
                url, context = f"wss://127.0.0.1:{server.port}/", world.client("billing")
                with connect(url, ssl=context, server_hostname="app") as socket_:
                    assert json.loads(socket_.recv())["peer"] == identity("billing")
            eventually(lambda: timers() == 0)
            loops.clear()
