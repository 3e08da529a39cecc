"""What comes from outside, byte by byte: what a gateway takes, refuses, counts, and how it goes."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from proxyless.gateway import protocol
from proxyless.identity.source import StaticSource
from proxyless.runtime.mesh import Mesh
from proxyless.settings import Disabled, Settings
from proxyless.telemetry.recorder import Telemetry
from proxyless.testing import LocalMesh
from proxyless.testing.servers import gateway_running
from tests.asgi.helpers import World, answer, echo, eventually
from tests.engine.helpers import OK, Peer, Server, replies
from tests.gateway.test_gateway import free_port, get, manifests, open_at

LABELS = {"istio": "edge"}


class Edge:
    """A gateway with one port before an upstream that a test scripts."""

    def __init__(self, port: int, mesh: Mesh, local: LocalMesh, registry: CollectorRegistry) -> None:
        self.port, self.mesh, self.local, self._registry = port, mesh, local, registry

    def raw(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own; everything that comes until its end."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as sock:
            with contextlib.suppress(OSError):
                sock.sendall(data)
            return received(sock)

    def value(self, name: str, **labels: str) -> float:
        """Sum of the samples of a metric with these labels."""
        return sum(
            sample.value
            for family in self._registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


def received(sock: socket.socket) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            data += piece
    return data


@contextlib.contextmanager
def edge(upstream: Server, more: str = "", **settings: object) -> Iterator[Edge]:
    port = free_port()
    text = manifests([port], upstream.address.port) + more
    with LocalMesh(text, workloads={"edge": []}) as local:
        mesh = Mesh(replace(local.settings("edge", labels=LABELS, node_kind="router"), **settings))  # type: ignore[arg-type]
        registry = CollectorRegistry()
        mesh._telemetry = Telemetry(
            workload="edge", namespace="default", labels=LABELS, access_log=mesh.settings.access_log, registry=registry
        )
        with gateway_running(mesh, 10):
            yield Edge(port, mesh, local, registry)


# ------------------------------------------------------------------------------------------------- what is not forwarded


BAD_REQUESTS = {
    "no host": (b"GET /v1/a HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /v1/a HTTP/1.1\r\nHost: shop.test\r\nHost: other.test\r\n\r\n", 400),
    "control characters": (b"GET /v1/%00 HTTP/1.1\r\nHost: shop.test\r\n\r\n", 400),
    "two lengths": (
        b"POST /v1/a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        400,
    ),
    "length and coding": (
        b"POST /v1/a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "another coding": (
        b"POST /v1/a HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        501,
    ),
    "a websocket": (
        b"GET /v1/a HTTP/1.1\r\nHost: shop.test\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        501,
    ),
    "a tunnel": (b"CONNECT shop.test:443 HTTP/1.1\r\nHost: shop.test\r\n\r\n", 400),
    "nonsense": (b"\x16\x03\x01\x02\x00\x01\x00", 400),
}


@pytest.fixture(scope="module")
def quiet() -> Iterator[tuple[Server, Edge]]:
    """An upstream that answers 200, shared by tests that only look at one request."""
    with Server(replies(OK)) as upstream, edge(upstream) as running:
        yield upstream, running


@pytest.mark.parametrize(("request_bytes", "status"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_what_can_be_read_in_two_ways_ends_here(
    quiet: tuple[Server, Edge], request_bytes: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    upstream, running = quiet
    before = len(upstream.requests)
    answer = running.raw(request_bytes)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"connection: close" in answer.lower()
    assert len(upstream.requests) == before
    assert "Traceback" not in caplog.text


def test_an_offer_of_another_protocol_is_passed_over(quiet: tuple[Server, Edge]) -> None:
    upstream, running = quiet
    offer = b"GET /v1/a HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n"
    assert running.raw(offer).endswith(b"ok")
    head = upstream.requests[-1].lower()
    assert b"upgrade" not in head
    assert b"http2-settings" not in head


def test_a_head_has_a_bound(quiet: tuple[Server, Edge]) -> None:
    _, running = quiet
    endless = b"GET /v1/a HTTP/1.1\r\nHost: shop.test\r\n" + b"X-Many: 1234567890\r\n" * 400_000
    answer = running.raw(endless)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")


def test_trailers_are_no_headers_and_have_a_bound(quiet: tuple[Server, Edge]) -> None:
    upstream, running = quiet
    head = b"POST /v1/a HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    assert running.raw(head + b"X-Trailer: 1\r\nHost: other.test\r\n\r\n").endswith(b"ok")
    assert b"x-trailer" not in upstream.requests[-1].lower()
    assert b"other.test" not in upstream.requests[-1]
    assert b"200 OK" not in running.raw(head + b"X-Many: 1234567890\r\n" * 400_000)


def test_a_head_that_comes_too_slowly_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT", 0.2)
    with Server(replies(OK)) as upstream, edge(upstream) as running:
        began = time.monotonic()
        assert running.raw(b"GET /v1/a HTTP/1.1\r\nHost: ").startswith(b"HTTP/1.1 408 ")
        assert running.raw(b"").startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began < 4
        with socket.create_connection(("127.0.0.1", running.port), 5) as sock:
            while time.monotonic() - began < 1.0:  # a connection as a whole may take longer than a head
                sock.sendall(b"GET /v1/a HTTP/1.1\r\nHost: shop.test\r\n\r\n")
                assert answer(sock)[0] == 200
            sock.sendall(b"GET")
            assert sock.recv(4096).startswith(b"HTTP/1.1 408 ")


# -------------------------------------------------------------------------------------------------- what is forwarded


def test_expectations_are_answered_here(quiet: tuple[Server, Edge]) -> None:
    upstream, running = quiet
    with socket.create_connection(("127.0.0.1", running.port), 5) as sock:
        sock.sendall(
            b"POST /v1/a HTTP/1.1\r\nHost: shop.test\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"
        )
        assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
        sock.sendall(b"hi")
        assert received(sock).endswith(b"ok")
    assert b"expect" not in upstream.requests[-1].lower()


@pytest.mark.parametrize(
    ("method", "answer", "status", "headers"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n", 200, {"content-length": "500"}),
        ("GET", b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n", 204, {"x-a": "1"}),
        ("GET", b'HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\nETag: "a"\r\n\r\n', 304, {"etag": '"a"'}),
        ("GET", b"HTTP/1.1 999 Odd\r\nContent-Length: 2\r\n\r\nok", 502, {}),
        ("GET", b"HTTP/1.1 200 OK\r\nX-Envoy-Peer-Metadata: x\r\nContent-Length: 2\r\n\r\nok", 200, {}),
    ],
)
def test_answers_without_a_body_and_odd_ones(
    method: str, answer: bytes, status: int, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    with Server(replies(answer)) as upstream, edge(upstream) as running, httpx.Client(trust_env=False) as client:
        for _ in range(2):  # the second on the same connection: the first left nothing behind
            response = client.request(method, f"http://127.0.0.1:{running.port}/v1/a", headers={"host": "shop.test"})
            assert response.status_code == status
            assert headers.items() <= dict(response.headers).items()
            assert "x-envoy-peer-metadata" not in response.headers
    assert "Traceback" not in caplog.text


def test_services_of_the_mesh_know_the_gateway_by_its_identity() -> None:
    port = free_port()
    text = manifests([port], 1).replace("upstream.test, port: {number: 80}", "payments")
    with (
        LocalMesh(text, workloads={"edge": [], "payments": ["payments"]}) as local,
        local.serve(lambda _: echo, "payments"),
        local.gateway("edge", LABELS) as mesh,
    ):
        assert mesh.ready
        eventually(lambda: get(port).status_code == 200)
        assert get(port).json()["peer"] == "spiffe://cluster.local/ns/default/sa/edge"


# ------------------------------------------------------------------------------------------------------- what is counted


ROUTES = """
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: more}
spec:
  hosts: [shop.test]
  gateways: [edge]
  http:
  - match: [{uri: {prefix: /old}}]
    redirect: {uri: /v1/new}
  - match: [{uri: {prefix: /said}}]
    directResponse: {status: 418, body: {string: short and stout}}
"""


def test_every_answer_is_counted_and_logged_once(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    with Server(replies(OK)) as upstream, edge(upstream, ROUTES, access_log=str(log)) as running:
        for path, status in {"/v1/a": 200, "/v1/secret": 403, "/nowhere": 404, "/old": 301, "/said": 418}.items():
            assert get(running.port, path).status_code == status
            assert running.value("istio_requests_total", reporter="source", response_code=str(status)) == 1
        assert running.value("istio_requests_total") == 5
        assert running.value("istio_requests_total", source_workload="edge") == 5
        assert running.value("istio_requests_total", destination_service="upstream.test") == 1
        assert running.value("proxyless_inbound_denied_total", reason="policy") == 1
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["path"], line["response_code"]) for line in lines] == [
        ("/v1/a", 200), ("/v1/secret", 403), ("/nowhere", 404), ("/old", 301), ("/said", 418),
    ]  # fmt: skip
    assert "rbac_access_denied" in lines[1]["response_code_details"]
    assert all(len(line["request_id"]) == 36 for line in lines)
    assert all(line["x_forwarded_for"] == "127.0.0.1" for line in lines)


def test_a_client_that_leaves_is_counted_as_one(tmp_path: Path) -> None:
    log = tmp_path / "access.log"

    def script(peer: Peer) -> None:
        peer.head()
        peer.wait_closed()

    with Server(script) as upstream, edge(upstream, access_log=str(log)) as running:
        with socket.create_connection(("127.0.0.1", running.port), 5) as sock:
            sock.sendall(b"GET /v1/a HTTP/1.1\r\nHost: shop.test\r\n\r\n")
            eventually(lambda: upstream.requests)
        eventually(lambda: running.value("istio_requests_total", response_flags="DC") == 1)
        states = running.mesh.learned.cluster("outbound|80||upstream.test")
        assert (states.requests, states.pending, states.connections) == (0, 0, 0)


def test_an_answer_that_breaks_off_is_counted_and_no_error_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        peer.reset()

    with Server(script) as upstream, edge(upstream) as running:
        answer = running.raw(b"GET /v1/a HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        assert not answer.endswith(b"0\r\n\r\n"), "a whole answer"
        eventually(lambda: running.value("istio_requests_total", response_flags="UPE") == 1)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


# ------------------------------------------------------------------------------------------------------------ fail closed


def test_without_an_identity_every_request_is_503_and_the_reason_stays_inside(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world, source = World(), StaticSource()
    with Server(replies(OK)) as upstream:
        port = free_port()
        with LocalMesh(manifests([port], upstream.address.port), workloads={"edge": []}) as local:
            settings = replace(local.settings("edge", labels=LABELS, node_kind="router"), spiffe_socket="")
            mesh = Mesh(settings, identity_source=source)
            source.replace(world.svid("edge"), [world.bundle])
            with gateway_running(mesh, 10):
                assert get(port).status_code == 200
                source.withdraw()
                answers = [get(port) for _ in range(3)]
                assert [(answer.status_code, answer.text) for answer in answers] == [(503, "service is not ready")] * 3
                assert caplog.text.count("no identity was given") == 1
                source.replace(world.svid("edge"), [world.bundle])
                assert get(port).status_code == 200
    assert len(upstream.requests) == 2


def test_the_kill_switch_opens_policy_only_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with Server(replies(OK)) as upstream:
        with edge(upstream, disabled=Disabled.OUTBOUND) as running:
            assert get(running.port).status_code == 200
            assert get(running.port, "/v1/secret").status_code == 403
            assert "does not switch the routes of a gateway off" in caplog.text
        with edge(upstream, disabled=Disabled.ALL) as running:
            assert get(running.port, "/v1/secret").status_code == 200
            assert get(running.port, "/nowhere").status_code == 404
            assert running.value("proxyless_disabled", scope="inbound") == 1
            assert "without its policy" in caplog.text


TLS = """
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: secure}
spec:
  selector: {istio: edge}
  servers:
  - {port: {number: 8443, name: https, protocol: HTTPS}, hosts: [shop.test], tls: {mode: SIMPLE, credentialName: cert}}
"""


def test_a_listener_that_is_not_served_is_named(caplog: pytest.LogCaptureFixture) -> None:
    with Server(replies(OK)) as upstream, edge(upstream, TLS) as running:
        assert get(running.port).status_code == 200
        assert len(re.findall("listener 0.0.0.0_8443 is not served: TLS", caplog.text)) == 1


# --------------------------------------------------------------------------------------------------------------- the end


def test_ports_stay_open_while_the_world_learns_that_we_go() -> None:
    from proxyless.gateway import Gateway

    with Server(replies(OK)) as upstream:
        port = free_port()
        with LocalMesh(manifests([port], upstream.address.port), workloads={"edge": []}) as local:
            mesh = Mesh(local.settings("edge", labels=LABELS, node_kind="router"))
            stop, ended = run(Gateway(mesh, "127.0.0.1", drain=0.5))
            eventually(lambda: mesh.ready)
            assert "connection" not in get(port).headers
            stop()
            eventually(lambda: not mesh.ready)
            assert mesh.not_ready_reasons() == ["draining"]
            assert get(port).headers["connection"] == "close"
            assert ended.wait(5)
            assert not open_at(port)


def run(gateway: object) -> tuple[object, threading.Event]:
    """-> how to stop it, and when it has ended."""
    import asyncio

    loop, stop, ended = asyncio.new_event_loop(), asyncio.Event(), threading.Event()

    def live() -> None:
        loop.run_until_complete(gateway.run(stop))  # type: ignore[attr-defined]
        loop.close()
        ended.set()

    threading.Thread(target=live, daemon=True).start()
    return lambda: loop.call_soon_threadsafe(stop.set), ended


def test_asked_twice_it_does_not_wait() -> None:
    from proxyless.gateway import Gateway

    def script(peer: Peer) -> None:
        peer.head()
        peer.wait_closed()

    with Server(script) as upstream:
        port = free_port()
        with LocalMesh(manifests([port], upstream.address.port), workloads={"edge": []}) as local:
            mesh = Mesh(local.settings("edge", labels=LABELS, node_kind="router"))
            gateway = Gateway(mesh, "127.0.0.1", drain=30)
            stop, ended = run(gateway)
            eventually(lambda: mesh.ready)
            with socket.create_connection(("127.0.0.1", port), 5) as sock:
                sock.sendall(b"GET /v1/a HTTP/1.1\r\nHost: shop.test\r\n\r\n")
                eventually(lambda: upstream.requests)
                stop()  # type: ignore[operator]
                eventually(lambda: not mesh.ready)
                gateway.hurry()
                assert ended.wait(5)


def test_settings_without_anything_serve_nothing_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxyless.gateway.ports.START_WAIT", 0.01)
    with gateway_unready(Mesh(Settings(node_kind="router"))) as reasons:
        assert reasons[0].startswith("no control plane is configured")


@contextlib.contextmanager
def gateway_unready(mesh: Mesh) -> Iterator[list[str]]:
    from proxyless.gateway import Gateway

    stop, ended = run(Gateway(mesh, "127.0.0.1", drain=0))
    eventually(lambda: mesh._started)
    yield mesh.not_ready_reasons()
    stop()  # type: ignore[operator]
    assert ended.wait(5)
