"""Connections between workloads: who is judged, when, and what the caller learns. Real handshakes on every engine."""

from __future__ import annotations

import ssl
import time

import pytest

from proxyless.core.resources import TlsMaterial, UpstreamTls
from proxyless.errors import EngineError, PeerVerificationError
from proxyless.identity.source import StaticSource
from proxyless.identity.tls import TlsContexts
from tests.engine.helpers import FLAVOURS, OK, Peer, Server, Target, engine, replies, wait_until
from tests.engine.identities import Identities, mutual, spiffe, web_contexts


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def identities() -> Identities:
    return Identities()


def test_the_peer_is_verified_and_named(flavour: str, identities: Identities) -> None:
    with (
        Server(replies(OK), tls=identities.server("server")) as server,
        engine(flavour, identities.client()) as client,
    ):
        target = Target(server.address, tls=mutual("server"))
        exchange = client.open(target.attempt())
        assert (exchange.body or client.read(exchange)) == b"ok"
        assert exchange.peer == spiffe("server")
        assert client.request(target.attempt()).reused


def test_a_peer_that_is_someone_else_gets_no_byte(flavour: str, identities: Identities) -> None:
    with (
        Server(replies(OK), tls=identities.server("thief")) as server,
        engine(flavour, identities.client()) as client,
    ):
        target = Target(server.address, tls=mutual("server"))
        with pytest.raises(EngineError) as caught:
            client.request(target.attempt())
        assert (caught.value.kind, caught.value.request_sent) == ("identity", False)
        assert isinstance(caught.value.__cause__, PeerVerificationError)
        wait_until(lambda: server.handshake_errors or server.peers)
        assert server.requests == []
        assert (server.accepted, target.state.connections, target.state.pending) == (1, 0, 0)


def test_a_peer_of_another_ca_is_refused(flavour: str, identities: Identities) -> None:
    with (
        Server(replies(OK), tls=Identities().server("server")) as server,
        engine(flavour, identities.client()) as client,
    ):
        with pytest.raises(EngineError) as caught:
            client.request(Target(server.address, tls=mutual("server")).attempt())
        assert caught.value.kind == "identity"
        assert server.requests == []


def test_our_certificate_refused_is_reported_at_the_first_read(flavour: str, identities: Identities) -> None:
    """TLS 1.3: our handshake is over before the server judges us."""
    strangers = Identities()
    judge = identities.server("server")
    with Server(replies(OK), tls=judge) as server:
        source = strangers.source("client")
        bundles = identities.source("client").current
        assert bundles is not None
        assert source.current is not None
        source.replace(source.current.svid, bundles.bundles.values())
        with engine(flavour, TlsContexts(source)) as client:
            with pytest.raises(EngineError) as caught:
                client.request(Target(server.address, tls=mutual("server")).attempt())
            assert caught.value.kind in ("read", "closed")
            assert not caught.value.reused
            assert not caught.value.bytes_seen
        assert server.requests == []


def test_a_plain_text_server_is_no_tls_peer(flavour: str, identities: Identities) -> None:
    def script(peer: Peer) -> None:
        peer.exactly(1)
        peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with Server(script) as server, engine(flavour, identities.client()) as client:
        with pytest.raises(EngineError) as caught:
            client.request(Target(server.address, tls=mutual("server")).attempt())
        assert caught.value.kind in ("tls", "connect")


def test_a_silent_handshake_ends_with_the_connect_timeout(flavour: str, identities: Identities) -> None:
    with Server(Peer.wait_closed) as server, engine(flavour, identities.client()) as client:
        target = Target(server.address, tls=mutual("server"))
        with pytest.raises(EngineError) as caught:
            client.request(target.attempt(connect_timeout=0.1))
        assert caught.value.kind == "connect_timeout"
        with pytest.raises(EngineError) as caught:
            client.request(target.attempt(within=0.1))
        assert caught.value.kind == "deadline"
        assert (target.state.connections, target.state.pending) == (0, 0)


def test_without_an_identity_nothing_is_connected(flavour: str) -> None:
    with Server(replies(OK)) as server, engine(flavour, TlsContexts(StaticSource())) as client:
        with pytest.raises(EngineError, match="no identity was given") as caught:
            client.request(Target(server.address, tls=mutual("server")).attempt())
        assert caught.value.kind == "tls"
        assert server.accepted == 0


@pytest.mark.parametrize("orderly", [True, False], ids=["close_notify", "cut"])
def test_a_body_without_length_is_complete_only_after_close_notify(
    flavour: str, identities: Identities, orderly: bool
) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
        if not orderly:
            peer.cut()

    with (
        Server(script, tls=identities.server("server")) as server,
        engine(flavour, identities.client()) as client,
    ):
        attempt = Target(server.address, tls=mutual("server")).attempt()
        if orderly:
            assert client.request(attempt).body == b"abc"
        else:
            with pytest.raises(EngineError) as caught:
                client.request(attempt)
            assert caught.value.kind in ("closed", "read")


def test_an_endpoint_that_speaks_http2_only_is_refused_in_words(
    flavour: str, web: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    server_context, client_context = web
    server_context.set_alpn_protocols(["h2"])
    client_context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        with (
            Server(Peer.wait_closed, tls=server_context) as server,
            engine(flavour, app_context=lambda: client_context) as client,
        ):
            target = Target(server.address)
            with pytest.raises(EngineError, match="HTTP/2 only"):
                client.request(target.attempt(app_tls=True, server_name="shop.example"))
            assert target.state.connections == 0
            client.settle(lambda: server.peers and server.peers[0].closed_by_client)
    finally:
        server_context.set_alpn_protocols(["http/1.1"])
        client_context.set_alpn_protocols(["http/1.1"])


def test_a_large_body_both_ways_over_tls(flavour: str, identities: Identities) -> None:
    body = bytes(range(256)) * 8192

    def script(peer: Peer) -> None:
        while True:
            peer.head()
            assert peer.exactly(len(body)) == body
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    with (
        Server(script, tls=identities.server("server")) as server,
        engine(flavour, identities.client()) as client,
    ):
        target = Target(server.address, tls=mutual("server"))
        assert client.request(target.attempt("POST"), body).body == body
        assert client.request(target.attempt("POST"), body).reused


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("framing", ["length", "end"])
def test_a_slow_reader_gets_all_although_the_server_is_gone(
    flavour: str, identities: Identities, framing: str, tls: bool
) -> None:
    size = 3 * 2**20
    sent: list[bool] = []

    def script(peer: Peer) -> None:
        peer.head()
        length = b"Content-Length: %d\r\n" % size if framing == "length" else b""
        peer.send(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n")
        for _ in range(size // 65536):
            peer.send(b"z" * 65536)
        sent.append(True)

    context = identities.server("server") if tls else None
    with Server(script, tls=context) as server, engine(flavour, identities.client()) as client:
        target = Target(server.address, tls=mutual("server") if tls else None)
        exchange = client.open(target.attempt())
        if flavour != "sync":
            client.settle(lambda: exchange._connection._read_paused)
        first = len(client.read(exchange, 1))
        assert first < size
        assert first + len(client.read(exchange)) == size
        wait_until(lambda: sent)


# --------------------------------------------------------------------------------------------------------------- rotation


def test_a_new_certificate_is_used_by_new_connections_and_old_ones_are_not_used_again(
    flavour: str, identities: Identities
) -> None:
    serials: list[str] = []

    def script(peer: Peer) -> None:
        assert isinstance(peer.sock, ssl.SSLSocket)
        serials.append(str(peer.sock.getpeercert(True)))
        while True:
            peer.head()
            peer.send(OK)

    source = identities.source("client")
    with (
        Server(script, tls=identities.server("server")) as server,
        engine(flavour, TlsContexts(source)) as client,
    ):
        target = Target(server.address, tls=mutual("server"))
        client.request(target.attempt())
        identities.rotate(source, "client")
        assert not client.request(target.attempt()).reused
        client.settle(lambda: server.peers[0].closed_by_client or server.peers[0].sock.fileno() < 0)
        assert len(set(serials)) == 2
        assert target.state.connections == 1


def test_a_response_in_progress_survives_a_rotation_and_its_connection_ends_after_it(
    flavour: str, identities: Identities
) -> None:
    go: list[bool] = []

    def script(peer: Peer) -> None:
        while True:
            slow = b"/slow" in peer.head()
            if slow:
                peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc")
                wait_until(lambda: go)
                peer.send(b"def")
            else:
                peer.send(OK)

    source = identities.source("client")
    with (
        Server(script, tls=identities.server("server")) as server,
        engine(flavour, TlsContexts(source)) as client,
    ):
        target = Target(server.address, tls=mutual("server"))
        exchange = client.open(target.attempt(target=b"/slow"))
        identities.rotate(source, "client")
        assert not client.request(target.attempt()).reused
        go.append(True)
        assert client.read(exchange) == b"abcdef"
        client.settle(lambda: target.state.connections == 1)
        assert client.request(target.attempt()).reused


def test_a_connection_is_not_used_after_the_end_of_the_earlier_certificate(
    flavour: str, identities: Identities
) -> None:
    source = identities.source("client")
    now = [time.time()]
    with (
        Server(replies(OK), tls=identities.server("server")) as server,
        engine(flavour, TlsContexts(source), wall=lambda: now[0]) as client,
    ):
        target = Target(server.address, tls=mutual("server"))
        client.request(target.attempt())
        assert client.request(target.attempt()).reused
        now[0] += 2 * 3600
        assert not client.request(target.attempt()).reused
        assert target.state.connections == 1


# ------------------------------------------------------------------------------------------------- TLS of the application


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return web_contexts("shop.example", tmp_path_factory.mktemp("web"))


def test_tls_of_the_application_verifies_the_name_of_the_url(
    flavour: str, web: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    with Server(replies(OK), tls=web[0]) as server, engine(flavour, app_context=lambda: web[1]) as client:
        target = Target(server.address)
        assert client.request(target.attempt(app_tls=True, server_name="shop.example")).body == b"ok"
        assert client.request(target.attempt(app_tls=True, server_name="shop.example")).reused
        with pytest.raises(EngineError) as caught:
            client.request(target.attempt(app_tls=True, server_name="other.example"))
        assert caught.value.kind == "identity"
        assert len(server.requests) == 2


def test_system_trust_verifies_names_too(flavour: str, web: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    tls = UpstreamTls(sni="shop.example", certificate=TlsMaterial.NONE, validation=TlsMaterial.SYSTEM)
    with (
        Server(replies(OK), tls=web[0]) as server,
        engine(flavour, TlsContexts(StaticSource())) as client,
    ):
        with pytest.raises(EngineError) as caught:
            client.request(Target(server.address, tls=tls).attempt())
        assert caught.value.kind == "identity"  # nobody on this machine signed it


def test_tls_inside_mesh_tls_is_refused_in_words(flavour: str, identities: Identities) -> None:
    with Server(replies(OK)) as server, engine(flavour, identities.client()) as client:
        target = Target(server.address, tls=mutual("server"))
        with pytest.raises(EngineError, match="inside TLS of the mesh"):
            client.request(target.attempt(app_tls=True, server_name="x"))
