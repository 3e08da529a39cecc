"""Our httpx transports call a real Envoy that terminates the mesh's mutual TLS, checks us, and says what it saw."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxyless.controlplane.authority import Authority
from proxyless.errors import ConnectFailureError, ConnectionTerminatedError, RequestError
from proxyless.httpx import AsyncMeshTransport, MeshTransport
from proxyless.runtime.mesh import Mesh
from proxyless.testing import LocalMesh
from tests.asgi.helpers import eventually, identity
from tests.interop.helpers import (
    Backend,
    Envoy,
    Tree,
    allow,
    answer,
    chain,
    cluster,
    downstream_tls,
    forward,
    issue,
    listener,
    manager,
    needs_envoy,
    static,
    upstream_tls,
)

pytestmark = needs_envoy

MIB = 1 << 20
SEEN = {
    "x-peer": "%DOWNSTREAM_PEER_URI_SAN%",
    "x-serial": "%DOWNSTREAM_PEER_SERIAL%",
    "x-sni": "%REQUESTED_SERVER_NAME%",
    "x-chain": "%FILTER_CHAIN_NAME%",
    "x-tls": "%DOWNSTREAM_TLS_VERSION%",
    "x-connection": "%CONNECTION_ID%",
    "x-attempt": "%REQ(X-ENVOY-ATTEMPT-COUNT)%",
}
SERVICE = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: default}}
spec:
  hosts: [{name}.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints:
{endpoints}
---
"""
ENDPOINT = (
    "  - {{address: 127.0.0.1, ports: {{http: {port}}}, serviceAccount: shop,"
    " labels: {{security.istio.io/tlsMode: istio}}}}"
)


def service(name: str, *ports: int) -> str:
    """A service whose endpoints take the mesh's mutual TLS and must be `shop`."""
    return SERVICE.format(name=name, endpoints="\n".join(ENDPOINT.format(port=port) for port in ports))


def listeners(authority: Authority, folder: Path) -> Iterator[Tree]:
    """Each is a service of its own."""
    routes = [
        answer("/direct", 200, "from Envoy"),
        answer("/empty", 204),
        answer("/unavailable", 503, "busy"),
        forward("/", "backend", timeout="0s"),
    ]

    def http(name: str, **options: Any) -> Tree:
        return manager(name, routes, folder, response_headers=SEEN, **options)

    def alone(name: str, tls: Tree, **options: Any) -> Tree:
        return listener(name, chain(http(name, **options), tls, name="any"))

    shop = downstream_tls(authority, "shop")
    istio = chain(http("shop", filters=[allow("billing")]), shop, name="istio-http/1.1", alpn=["istio-http/1.1"])
    yield listener("shop", istio, chain(http("other"), shop, name="other"))
    yield alone("edge", downstream_tls(authority, "shop", alpn=("h2", "http/1.1")))
    yield alone("three", shop, common_http_protocol_options={"max_requests_per_connection": 3})
    hasty = {"drain_timeout": "0.01s", "delayed_close_timeout": "0.01s"}
    yield alone("hasty", shop, common_http_protocol_options={"idle_timeout": "0.05s"}, **hasty)
    yield alone("impostor", downstream_tls(authority, "somebody"))
    yield alone("foreign", downstream_tls(authority, "shop", svid=issue(Authority("cluster.local"), "shop")))
    for version in ("TLSv1_2", "TLSv1_3"):
        nobody = identity("nobody")
        yield alone(f"picky-{version[-1]}", downstream_tls(authority, "shop", callers=nobody, maximum=version))


SERVICES = ("shop", "edge", "three", "hasty", "impostor", "foreign", "picky-2", "picky-3")


class Shop:
    """The mesh, its Envoy, and who calls it."""

    def __init__(self, local: LocalMesh, envoy: Envoy, backend: Backend) -> None:
        self.local, self.envoy, self.backend = local, envoy, backend
        self.billing = local.mesh("billing")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("envoy")
    backend = Backend("backend")
    with LocalMesh(workloads={"billing": [], "intruder": [], "shop": []}) as local, socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))  # and never listens
        settings = static(listeners(local.control_plane.authority, folder), [cluster("backend", backend.port)])
        with Envoy(folder, settings) as envoy:
            services = "".join(service(name, envoy.port(name)) for name in SERVICES)
            local.edit(services + service("half", refusing.getsockname()[1], envoy.port("shop")))
            yield Shop(local, envoy, backend)
    backend.close()


Send = Callable[..., list[httpx.Response]]


def send_blocking(mesh: Mesh, *requests: httpx.Request, **options: Any) -> list[httpx.Response]:
    with httpx.Client(transport=MeshTransport(mesh, **options), timeout=5) as client:
        return [client.send(request) for request in requests]


def send_async(mesh: Mesh, *requests: httpx.Request, **options: Any) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh, **options), timeout=5) as client:
            return [await client.send(request) for request in requests]

    return asyncio.run(run())


@pytest.fixture(params=[send_blocking, send_async], ids=["sync", "async"])
def send(request: pytest.FixtureRequest) -> Send:
    return request.param


def get(host: str, path: str = "/direct", **headers: str) -> httpx.Request:
    return httpx.Request("GET", f"http://{host}{path}", headers=headers)


# ------------------------------------------------------------------------------------------------------ who and what


def test_envoy_sees_our_identity_the_services_name_and_istios_protocol(shop: Shop, send: Send) -> None:
    (response,) = send(shop.billing, get("shop"))
    assert (response.status_code, response.text) == (200, "from Envoy")
    seen = {name: response.headers[name] for name in ("x-peer", "x-sni", "x-chain", "x-tls", "x-attempt")}
    assert seen == {
        "x-peer": identity("billing"),
        "x-sni": "outbound_.80_._.shop.default.svc.cluster.local",
        "x-chain": "istio-http/1.1",
        "x-tls": "TLSv1.3",
        "x-attempt": "1",
    }
    info = response.extensions["proxyless"]
    assert (info["peer"], info["attempts"], info["flag"]) == (identity("shop"), 1, "-")


def test_an_envoy_that_prefers_http_2_gets_http_1(shop: Shop, send: Send) -> None:
    (response,) = send(shop.billing, get("edge"))
    assert response.status_code == 200


def test_the_policy_of_envoy_refuses_another_principal(shop: Shop, send: Send) -> None:
    (response,) = send(shop.local.mesh("intruder"), get("shop"))
    assert (response.status_code, response.text) == (403, "RBAC: access denied")
    assert eventually(lambda: shop.envoy.requests(listener="shop", peer=identity("intruder"), status=403))
    assert response.extensions["proxyless"]["details"] == "via_upstream"


def test_the_request_arrives_as_it_was_sent(shop: Shop, send: Send) -> None:
    headers = [("x-list", "one"), ("x-list", "two"), ("x-empty", ""), ("cookie", "a=b; c=d"), ("x-latin", "caf\xe9")]
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    request = httpx.Request("PATCH", "http://shop/a%2Fb/c;d=1?q=%20&q=2&empty", headers=raw, content=b"0123456789")
    (response,) = send(shop.billing, request)
    seen = response.json()
    assert (seen["method"], seen["path"], seen["size"]) == ("PATCH", "/a%2Fb/c;d=1?q=%20&q=2&empty", 10)
    arrived = [(name, value) for name, value in seen["headers"]]
    assert [pair for pair in arrived if pair[0] in dict(headers)] == headers
    assert ("host", "shop") in arrived
    assert ("content-length", "10") in arrived
    assert ("x-envoy-attempt-count", "1") in arrived


# -------------------------------------------------------------------------------------------------------- connections


def test_one_connection_serves_many_requests(shop: Shop, send: Send) -> None:
    responses = send(shop.billing, *(get("shop", "/direct") for _ in range(20)))
    assert len({response.headers["x-connection"] for response in responses}) == 1


def test_a_connection_that_envoy_ends_is_replaced_without_an_error(shop: Shop, send: Send) -> None:
    responses = send(shop.billing, *(get("three") for _ in range(7)))
    assert [response.status_code for response in responses] == [200] * 7
    connections = [response.headers["x-connection"] for response in responses]
    assert [connections.count(each) for each in dict.fromkeys(connections)] == [3, 3, 1]


def test_a_connection_that_envoy_closed_while_idle_is_not_used(shop: Shop) -> None:
    active = "http.hasty.downstream_cx_active"
    with httpx.Client(transport=MeshTransport(shop.billing)) as client:
        for _ in range(3):
            assert client.post("http://hasty/x", content=b"once").status_code == 200
            eventually(lambda: shop.envoy.stat(active) == 0)

    async def run() -> None:
        async with httpx.AsyncClient(transport=AsyncMeshTransport(shop.billing)) as client:
            for _ in range(3):
                assert (await client.post("http://hasty/x", content=b"once")).status_code == 200
                await asyncio.to_thread(eventually, lambda: shop.envoy.stat(active) == 0)

    asyncio.run(run())


def test_concurrent_calls_share_envoy(shop: Shop) -> None:
    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=AsyncMeshTransport(shop.billing)) as client:
            return await asyncio.gather(*(client.get(f"http://shop/bytes/{number}") for number in range(60)))

    responses = asyncio.run(run())
    assert [len(response.content) for response in responses] == list(range(60))


# -------------------------------------------------------------------------------------------------------------- bodies


@pytest.mark.parametrize("path", [f"/bytes/{MIB}", f"/chunks/{MIB}"], ids=["length", "chunked"])
def test_a_large_response(shop: Shop, send: Send, path: str) -> None:
    first, second = send(shop.billing, get("shop", path), get("shop", path))
    assert first.content == second.content == b"x" * MIB
    assert first.headers["x-connection"] == second.headers["x-connection"]


class Pieces(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body of unknown length, for both kinds of client."""

    def __iter__(self) -> Iterator[bytes]:
        return (b"y" * 1000 for _ in range(1000))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


def test_a_chunked_upload(shop: Shop, send: Send) -> None:
    request = httpx.Request("POST", "http://shop/upload", headers={"transfer-encoding": "chunked"}, stream=Pieces())
    responses = send(shop.billing, request, get("shop"))
    seen = responses[0].json()
    assert seen["size"] == 1_000_000
    assert ["transfer-encoding", "chunked"] in seen["headers"]
    assert responses[0].headers["x-connection"] == responses[1].headers["x-connection"]


def test_an_upload_that_waits_to_be_asked_for(shop: Shop, send: Send) -> None:
    request = httpx.Request("PUT", "http://shop/upload", headers={"expect": "100-continue"}, content=b"z" * 100_000)
    (response,) = send(shop.billing, request)
    assert response.json()["size"] == 100_000


def test_answers_without_a_body_leave_the_connection_in_order(shop: Shop, send: Send) -> None:
    head = httpx.Request("HEAD", "http://shop/bytes/1000")
    responses = send(shop.billing, head, get("shop", "/empty"), get("shop"))
    assert [(each.status_code, each.text) for each in responses] == [(200, ""), (204, ""), (200, "from Envoy")]
    assert responses[0].headers["content-length"] == "1000"
    assert len({each.headers["x-connection"] for each in responses}) == 1


# ------------------------------------------------------------------------------------------------------------- retries


def test_a_refused_connection_is_repeated_on_another_endpoint(shop: Shop, send: Send) -> None:
    responses = send(shop.billing, *(get("half") for _ in range(6)))
    assert [response.status_code for response in responses] == [200] * 6
    attempts = {response.headers["x-attempt"] for response in responses}
    assert "2" in attempts
    assert attempts == {str(response.extensions["proxyless"]["attempts"]) for response in responses}


def test_envoys_503_is_the_answer(shop: Shop, send: Send) -> None:
    before = shop.envoy.stat("http.shop.downstream_rq_total")
    (response,) = send(shop.billing, get("shop", "/unavailable"))
    assert (response.status_code, response.text, response.headers["x-attempt"]) == (503, "busy", "1")
    assert shop.envoy.stat("http.shop.downstream_rq_total") == before + 1


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("host", ["impostor", "foreign"])
def test_a_server_that_is_not_who_it_must_be_gets_no_byte(shop: Shop, send: Send, host: str) -> None:
    request = httpx.Request("POST", f"http://{host}/", content=b"secret")
    with pytest.raises(httpx.ConnectError) as raised:
        send(shop.billing, request)
    error = raised.value
    assert isinstance(error, ConnectFailureError)
    assert (error.flag, error.status, error.attempts) == ("URX,UF", 503, 3)
    assert identity("shop") not in str(error)
    assert shop.envoy.stat(f"http.{host}.downstream_rq_total") == 0
    assert shop.envoy.stat(f"http.{host}.downstream_cx_rx_bytes_total") == 0
    assert not shop.envoy.requests(listener=host)


@pytest.mark.parametrize("version", ["2", "3"])
def test_an_envoy_that_refuses_our_certificate_is_named_as_envoy_names_it(
    shop: Shop, send: Send, version: str, tmp_path: Path
) -> None:
    """Over TLS 1.3 a client is refused after its handshake is over, so that it is the request that fails."""
    host = f"picky-{version}"
    with pytest.raises(httpx.TransportError) as raised:
        send(shop.billing, get(host))
    error = raised.value
    assert isinstance(error, RequestError)
    theirs = envoy_calls(shop, host, tmp_path)
    assert (error.flag, error.status) == (theirs["flags"], theirs["status"])
    assert error.details.partition("|")[0] in theirs["details"]
    assert isinstance(error, ConnectFailureError if version == "2" else ConnectionTerminatedError)
    assert shop.envoy.stat(f"http.{host}.downstream_rq_total") == 0


def envoy_calls(shop: Shop, host: str, folder: Path) -> Tree:
    """What an Envoy as the client, with our identity, writes about the same call."""
    tls = upstream_tls(shop.local.control_plane.authority, "billing", "shop")
    target = cluster("target", shop.envoy.port(host), tls=tls)
    retries = {"retry_on": "connect-failure", "num_retries": 2}  # as Istio has it
    routes = [forward("/", "target", retry_policy=retries)]
    settings = static([listener("in", chain(manager("in", routes, folder)))], [target])
    with Envoy(folder, settings) as other:
        httpx.get(f"http://127.0.0.1:{other.port('in')}/", trust_env=False)
        return eventually(other.requests)[0]


# ------------------------------------------------------------------------------------------------------------ rotation


def test_our_certificate_rotates_while_we_call(tmp_path: Path) -> None:
    with LocalMesh(workloads={"billing": [], "shop": []}, svid_ttl=3.0) as local:
        authority = local.control_plane.authority
        tls = downstream_tls(authority, "shop", svid=issue(authority, "shop", ttl=3600.0))
        http = manager("shop", [answer("/", 200)], tmp_path, response_headers=SEEN)
        with Envoy(tmp_path, static([listener("shop", chain(http, tls))])) as envoy:
            local.edit(service("shop", envoy.port("shop")))
            serials = asyncio.run(_until_rotated(local.mesh("billing")))
    assert len(serials) == 3


async def _until_rotated(mesh: Mesh) -> list[str]:
    serials: dict[str, None] = {}
    async with asyncio.timeout(9), httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
        while len(serials) < 3:
            responses = await asyncio.gather(*(client.get("http://shop/") for _ in range(4)))
            assert [response.status_code for response in responses] == [200] * 4
            serials |= dict.fromkeys(response.headers["x-serial"] for response in responses)
    return list(serials)
