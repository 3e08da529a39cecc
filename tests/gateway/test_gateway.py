"""The edge with stock clients on the outside: what goes through, what does not, and what happens to ports and leavers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

import httpx
import pytest

from proxyless.gateway import Gateway
from proxyless.runtime.mesh import Mesh
from proxyless.testing import LocalMesh
from tests.engine.helpers import OK, Peer, Server, replies, wait_until

MANIFESTS = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  selector: {{istio: edge}}
  servers: [{servers}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: shop}}
spec:
  hosts: [shop.test]
  gateways: [edge]
  http:
  - match: [{{uri: {{prefix: /v1/}}}}]
    route: [{{destination: {{host: upstream.test, port: {{number: 80}}}}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: upstream}}
spec:
  hosts: [upstream.test]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, ports: {{http: {upstream}}}}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: edge}}
spec:
  selector: {{matchLabels: {{istio: edge}}}}
  action: DENY
  rules: [{{to: [{{operation: {{paths: [/v1/secret]}}}}]}}]
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def manifests(ports: Sequence[int], upstream: int) -> str:
    server = "{{port: {{number: {0}, name: http-{0}, protocol: HTTP}}, hosts: [shop.test]}}"
    return MANIFESTS.format(servers=", ".join(server.format(port) for port in ports), upstream=upstream)


class Edge:
    """A gateway that runs in a thread, its mesh, and the control plane whose manifests it follows."""

    def __init__(self, local: LocalMesh, mesh: Mesh, upstream: int) -> None:
        self.local, self.mesh, self._upstream = local, mesh, upstream
        self._stop: Callable[[], object] = lambda: None
        self._started = threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),), daemon=True)
        self._thread.start()
        assert self._started.wait(5)

    async def _run(self) -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(stop.set)
        self._started.set()
        await Gateway(self.mesh, "127.0.0.1", drain=0).run(stop)

    def serve(self, *ports: int) -> None:
        self.local.edit(manifests(ports, self._upstream))

    def stop(self, timeout: float = 10.0) -> bool:
        """-> it has ended within `timeout` seconds."""
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._stop()
        self._thread.join(timeout)
        return not self._thread.is_alive()


@contextlib.contextmanager
def edge(upstream: int, *ports: int) -> Iterator[Edge]:
    with LocalMesh(manifests(ports, upstream), workloads={"edge": []}) as local:
        mesh = Mesh(local.settings("edge", labels={"istio": "edge"}, node_kind="router"))
        running = Edge(local, mesh, upstream)
        try:
            yield running
        finally:
            assert running.stop()


def open_at(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def get(port: int, path: str = "/v1/things", **options: object) -> httpx.Response:
    headers = {"host": "shop.test", **dict(options.pop("headers", {}))}  # type: ignore[call-overload]  # of the caller
    return httpx.request("GET", f"http://127.0.0.1:{port}{path}", headers=headers, trust_env=False, **options)  # type: ignore[arg-type]  # httpx's


# ----------------------------------------------------------------------------------------------------------- a request


def test_hosts_paths_and_policy() -> None:
    with Server(replies(OK)) as upstream, edge(upstream.address.port, port := free_port()):
        wait_until(lambda: open_at(port))
        assert get(port).text == "ok"
        assert get(port, "/other").status_code == 404
        assert get(port, headers={"host": "other.test"}).status_code == 404
        assert get(port, "/v1/secret").status_code == 403
        assert get(port, "/v1/%73ecret").status_code in (403, 400)
        assert len(upstream.requests) == 1


def test_outsiders_say_nothing_that_the_mesh_believes() -> None:
    with Server(replies(OK)) as upstream, edge(upstream.address.port, port := free_port()):
        wait_until(lambda: open_at(port))
        said = {
            "x-forwarded-client-cert": "URI=spiffe://cluster.local/ns/default/sa/admin",
            "x-envoy-retry-on": "5xx",
            "x-forwarded-proto": "https",
            "x-forwarded-for": "203.0.113.9",
            "proxy-authorization": "Basic eDp5",
            "connection": "x-secret, host, close",
            "x-secret": "1",
            "te": "trailers",
            "x-kept": "1",
        }
        assert get(port, headers=said).text == "ok"
        head = upstream.requests[0].decode().lower()
        lines = dict(line.split(": ", 1) for line in head.splitlines()[1:] if line)
        assert lines["host"] == "shop.test"
        assert (lines["x-kept"], lines["x-forwarded-proto"]) == ("1", "http")
        assert lines["x-forwarded-for"] == "203.0.113.9,127.0.0.1"
        assert len(lines["x-request-id"]) == 36
        gone = ("x-forwarded-client-cert", "x-envoy-retry-on", "proxy-authorization", "x-secret", "te", "connection")
        assert not lines.keys() & set(gone)


def test_hop_by_hop_headers_of_an_answer_stay_inside() -> None:
    answer = b"HTTP/1.1 200 OK\r\nConnection: x-inner\r\nX-Inner: 1\r\nKeep-Alive: timeout=5\r\nX-Kept: 1\r\nContent-Length: 0\r\n\r\n"
    with Server(replies(answer)) as upstream, edge(upstream.address.port, port := free_port()):
        wait_until(lambda: open_at(port))
        headers = get(port).headers
        assert headers["x-kept"] == "1"
        assert not {"x-inner", "keep-alive"} & set(headers)


@pytest.mark.parametrize("length", [10, 300_000])
def test_bodies_go_through_whole(length: int) -> None:
    def script(peer: Peer) -> None:
        head = peer.head()
        assert f"content-length: {length}".encode() in head.lower()
        body = peer.exactly(length)
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (length, body))

    with Server(script) as upstream, edge(upstream.address.port, port := free_port()):
        wait_until(lambda: open_at(port))
        body = bytes(range(250)) * (length // 250) or b"0123456789"
        assert get(port, content=body).content == body


def test_an_answer_that_breaks_off_is_cut_short_for_the_client_too(caplog: pytest.LogCaptureFixture) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")

    with Server(script) as upstream, edge(upstream.address.port, port := free_port()):
        wait_until(lambda: open_at(port))
        with pytest.raises(httpx.RemoteProtocolError):
            get(port)
    assert "Traceback" not in caplog.text


# ------------------------------------------------------------------------------------------------------ clients that leave


LEAVERS = {
    "while it is answered": (b"GET /v1/a HTTP/1.1\r\nHost: shop.test\r\n\r\n", True),
    "before it is answered": (b"GET /v1/a HTTP/1.1\r\nHost: shop.test\r\n\r\n", False),
    "while it sends": (b"POST /v1/a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 100000\r\n\r\nhalf", False),
}


@pytest.mark.parametrize(("request_bytes", "answered"), LEAVERS.values(), ids=LEAVERS)
def test_a_client_that_leaves_ends_its_request_upstream(
    request_bytes: bytes, answered: bool, caplog: pytest.LogCaptureFixture
) -> None:
    begun = threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        begun.set()
        if answered:
            peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        peer.wait_closed()

    caplog.set_level(logging.INFO)
    with Server(script) as upstream, edge(upstream.address.port, port := free_port()) as running:
        wait_until(lambda: open_at(port))
        leaving = threading.Thread(target=_leave_when, args=(port, request_bytes, answered, begun))
        leaving.start()
        leaving.join(5)
        wait_until(lambda: upstream.peers and upstream.peers[0].closed_by_client, "the end of the request upstream")
        assert running.stop(5), "nothing is left to wait for"
    assert "Traceback" not in caplog.text


def _leave_when(port: int, request: bytes, answered: bool, begun: threading.Event) -> None:
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(request)
        if answered:
            client.recv(100)
        assert begun.wait(5)


# ------------------------------------------------------------------------------------------------------------------- ports


def test_ports_open_close_and_open_again_with_the_configuration() -> None:
    with Server(replies(OK)) as upstream:
        first, second = free_port(), free_port()
        with edge(upstream.address.port, first) as running:
            for _ in range(2):
                wait_until(lambda: open_at(first) and not open_at(second))
                assert get(first).text == "ok"
                running.serve(second)
                wait_until(lambda: open_at(second) and not open_at(first))
                assert get(second).text == "ok"
                running.serve(first)
            running.serve(first, second)
            wait_until(lambda: open_at(first) and open_at(second))


def test_a_port_that_is_taken_is_said_and_opened_when_it_is_free(caplog: pytest.LogCaptureFixture) -> None:
    with Server(replies(OK)) as upstream, socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with edge(upstream.address.port, port) as running:
            wait_until(lambda: any(f"port {port}" in reason for reason in running.mesh.not_ready_reasons()))
            assert not running.mesh.ready
            holder.close()
            wait_until(lambda: running.mesh.ready)
            assert get(port).text == "ok"
    assert caplog.text.count("cannot be bound") == 1


def test_the_end_waits_for_a_request_in_progress() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def script(peer: Peer) -> None:
        peer.head()
        begun.set()
        assert go_on.wait(5)
        peer.send(OK)

    answers: list[str] = []
    with Server(script) as upstream, edge(upstream.address.port, port := free_port()) as running:
        wait_until(lambda: open_at(port))
        asking = threading.Thread(target=lambda: answers.append(get(port).text))
        asking.start()
        assert begun.wait(5)
        assert not running.stop(0.3)
        assert not running.mesh.ready
        go_on.set()
        asking.join(5)
        assert answers == ["ok"]
        assert running.stop()
