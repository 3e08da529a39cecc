"""A real Envoy, as the sidecar of a caller or as a gateway, calls our applications: FastAPI under uvicorn, Flask under gunicorn."""

from __future__ import annotations

import contextlib
import json
import os
import re
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from proxyless.controlplane.authority import Authority
from proxyless.testing import LocalMesh
from tests.asgi.helpers import client_context, eventually, identity
from tests.interop.apps import PIECES
from tests.interop.helpers import (
    ISTIO_HTTP,
    Backend,
    Envoy,
    Tree,
    chain,
    cluster,
    downstream_tls,
    forward,
    free_port,
    issue,
    listener,
    manager,
    needs_envoy,
    static,
    upstream_tls,
)

pytestmark = needs_envoy

ROOT = Path(__file__).parents[2]
MODULE = "tests.interop.apps"
SERVERS = ("uvicorn", "gunicorn")
ACCOUNTS = ("billing", "intruder", "gateway")
POLICY = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: default}}
spec: {{mtls: {{mode: {mode}}}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: callers, namespace: default}}
spec:
  rules:
  - from: [{{source: {{principals: [cluster.local/ns/default/sa/billing]}}}}]
  - from: [{{source: {{principals: [cluster.local/ns/default/sa/gateway]}}}}]
    to: [{{operation: {{paths: [/public/*]}}}}]
  - to: [{{operation: {{paths: [/open/*]}}}}]
"""


# ------------------------------------------------------------------------------------------------------------- our servers


@dataclass
class Running:
    """One of our servers."""

    name: str
    port: int
    admin: int
    log: Path

    def ask(self, path: str) -> tuple[int, str]:
        """The admin listener; status 0 while there is none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=5) as response:
                return int(response.status), str(response.read().decode())
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def generation(self) -> int:
        return int(json.loads(self.ask("/config_dump")[1])["proxyless"]["generation"])

    def metric(self, name: str, **labels: str) -> float:
        total = 0.0
        for found in re.finditer(r"^(\w+)(?:\{(.*)\})? (\S+)$", self.ask("/metrics")[1], re.MULTILINE):
            if found[1] == name and labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', found[2] or "")).items():
                total += float(found[3])
        return total


@contextlib.contextmanager
def serving(name: str, local: LocalMesh, folder: Path) -> Iterator[Running]:
    """The application in a process of its own, as a user would start it."""
    running = Running(name, free_port(), free_port(), folder / f"{name}.log")
    service = f"{name}-app"
    port = str(running.port)
    ours = local.environment(name, service=service, port=port, admin=f"127.0.0.1:{running.admin}")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PROXYLESS_", "PROMETHEUS_"))}
    run = ["-m", "proxyless", "run", f"{MODULE}:fastapi_app", "--port", port]
    gunicorn = ["-m", "gunicorn", "-c", "python:proxyless.gunicorn", "-b", f"127.0.0.1:{port}", f"{MODULE}:flask_app"]
    options = ["-k", "gthread", "--threads", "4", "--keep-alive", "30"]
    command = {"uvicorn": run, "gunicorn": [*gunicorn, *options]}[name]
    with running.log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, env={**inherited, **ours}, stdout=log, stderr=log
        )
    try:
        yield running
    finally:
        process.terminate()
        process.terminate()  # the second one does not wait for callers to notice
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(running: Running) -> None:
    eventually(lambda: running.ask("/ready")[0] == 200, 20, f"{running.name}: {running.log}")


# ------------------------------------------------------------------------------------------------------------------- Envoy


def callers(authority: Authority, server: Running) -> Iterator[tuple[str, Tree | None]]:
    """How Envoy connects: name and TLS."""

    def tls(account: str | None, *alpn: str) -> Tree:
        sni = f"outbound_.{server.port}_._.{server.name}-app.default.svc.cluster.local"
        return upstream_tls(authority, account, server.name, alpn=alpn, sni=sni)

    for account in ACCOUNTS:
        yield account, tls(account, "istio")
    yield "sidecar", tls("billing", "istio-peer-exchange", *ISTIO_HTTP)
    yield "anonymous", tls(None, "istio")
    yield "browser", tls(None, "http/1.1")
    yield "no-alpn", tls("billing")
    yield "either", tls("billing")
    yield "plain", None
    stranger = Authority("cluster.local")
    yield (
        "stranger",
        upstream_tls(authority, None, server.name, alpn=["istio"], svid=issue(stranger, "billing")),
    )


_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
#: HTTP/2 if the server takes it.
AUTO = {_OPTIONS: {"@type": f"type.googleapis.com/{_OPTIONS}", "auto_config": {}}}
SEEN = {"x-server-start": "%UPSTREAM_PEER_CERT_V_START(%s)%"}


def settings(authority: Authority, servers: list[Running], folder: Path, backend: int) -> Tree:
    """A listener for each server and caller; behind each its own cluster, without retries."""
    listeners, clusters = [], [cluster("backend", backend)]
    for server in servers:
        for caller, tls in callers(authority, server):
            name = f"{server.name}-{caller}"
            protocols = {"typed_extension_protocol_options": AUTO} if caller == "either" else {}
            clusters.append(cluster(name, server.port, tls=tls, **protocols))
            http = manager(
                name,
                [forward("/", name)],
                folder,
                response_headers=SEEN,
                upgrade_configs=[{"upgrade_type": "websocket"}],
            )
            listeners.append(listener(name, chain(http)))
        for caller in ("gateway", "plain"):
            name = f"{server.name}-{caller}"
            routes = [forward("/backend", "backend"), forward("/", name)]
            forwarding = manager(name, routes, folder, forward_client_cert_details="ALWAYS_FORWARD_ONLY")
            listeners.append(listener(f"{name}-forward", chain(forwarding)))
            details = {"subject": True, "cert": True, "dns": True, "uri": True}
            setting = manager(
                name,
                routes,
                folder,
                forward_client_cert_details="SANITIZE_SET",
                set_current_client_cert_details=details,
            )
            listeners.append(listener(f"{name}-set", chain(setting, downstream_tls(authority, "gateway"))))
    return static(listeners, clusters)


class World:
    """Mesh, servers and Envoy, in the mode that a test asks for."""

    def __init__(self, local: LocalMesh, servers: list[Running], envoy: Envoy) -> None:
        self.local, self.envoy = local, envoy
        self.servers = {server.name: server for server in servers}
        self._mode = "STRICT"
        self._client = httpx.Client(trust_env=False, timeout=5)

    def mode(self, mode: str) -> None:
        """Change it, and wait until both servers have it."""
        if mode == self._mode:
            return
        before = {name: server.generation() for name, server in self.servers.items()}
        self.local.edit(POLICY.format(mode=mode))
        for name, server in self.servers.items():
            eventually(lambda server=server, name=name: server.generation() > before[name])
        self._mode = mode

    def get(self, server: str, caller: str, path: str = "/x", **options: Any) -> httpx.Response:
        return self._client.get(f"http://127.0.0.1:{self.envoy.port(f'{server}-{caller}')}{path}", **options)

    def post(self, server: str, caller: str, path: str, content: Any) -> httpx.Response:
        return self._client.post(f"http://127.0.0.1:{self.envoy.port(f'{server}-{caller}')}{path}", content=content)

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("inbound")
    accounts = {name: [f"{name}-app"] for name in SERVERS} | {name: [] for name in ACCOUNTS}
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(contextlib.closing(Backend("backend")))
        local = stack.enter_context(LocalMesh(POLICY.format(mode="STRICT"), workloads=accounts))
        servers = [stack.enter_context(serving(name, local, folder)) for name in SERVERS]
        configured = settings(local.control_plane.authority, servers, folder, backend.port)
        envoy = stack.enter_context(Envoy(folder, configured))
        for server in servers:
            wait_for(server)
        yield stack.enter_context(contextlib.closing(World(local, servers, envoy)))


@pytest.fixture(params=["STRICT", "PERMISSIVE"])
def mode(request: pytest.FixtureRequest, world: World) -> str:
    world.mode(request.param)
    return str(request.param)


both = pytest.mark.parametrize("server", SERVERS)


# -------------------------------------------------------------------------------------------------------------- with an SVID


@both
@pytest.mark.parametrize("caller", ["billing", "sidecar"])
def test_an_allowed_principal_is_served_and_named(world: World, mode: str, server: str, caller: str) -> None:
    response = world.get(server, caller, "/x")
    assert (response.status_code, response.json()["peer"]) == (200, identity("billing"))


@both
def test_another_principal_is_refused(world: World, mode: str, server: str) -> None:
    response = world.get(server, "intruder", "/x")
    assert (response.status_code, response.text) == (403, "RBAC: access denied")
    assert world.get(server, "intruder", "/open/x").json()["peer"] == identity("intruder")


@both
def test_envoy_keeps_the_connection_also_over_refusals(world: World, mode: str, server: str) -> None:
    connections = f"cluster.{server}-intruder.upstream_cx_total"
    world.get(server, "intruder", "/open/x")
    before = world.envoy.stat(connections)
    statuses = [world.get(server, "intruder", path).status_code for path in ("/x", "/open/x", "/../x", "/open/y")]
    assert statuses == [403, 200, 403, 200]
    assert world.envoy.stat(connections) == before


@both
def test_bodies_arrive_whole(world: World, mode: str, server: str) -> None:
    body = os.urandom(300_000)
    known = world.post(server, "billing", "/upload", body).json()
    pieces = (body[start : start + 7000] for start in range(0, len(body), 7000))
    chunked = world.post(server, "billing", "/upload", pieces).json()
    assert known["size"] == chunked["size"] == len(body)
    assert known["digest"] == chunked["digest"]


@both
def test_a_streamed_response_is_not_held_back(world: World, mode: str, server: str) -> None:
    """Small pieces on a kept connection: no piece waits for the acknowledgement of the one before (40 ms each)."""
    world.get(server, "billing", "/pieces")
    began = time.monotonic()
    for _ in range(5):
        assert len(world.get(server, "billing", "/pieces").content) == 5 * PIECES
    assert time.monotonic() - began < 1.0


def test_a_websocket_through_envoy(world: World, mode: str) -> None:
    def url(caller: str) -> str:
        return f"ws://127.0.0.1:{world.envoy.port(f'uvicorn-{caller}')}/socket"

    with connect(url("billing"), proxy=None) as websocket:
        websocket.send("hello")
        assert websocket.recv(timeout=5) == f"{identity('billing')}: hello"
    with pytest.raises(InvalidStatus) as raised:
        connect(url("intruder"), proxy=None)
    assert raised.value.response.status_code == 403


# ----------------------------------------------------------------------------------------------------------- without an SVID


@both
@pytest.mark.parametrize("caller", ["anonymous", "stranger"])
def test_a_caller_without_a_certificate_of_ours_is_closed_before_any_request(
    world: World, mode: str, server: str, caller: str
) -> None:
    running = world.servers[server]
    before = running.metric("istio_requests_total"), refusals(running)
    response = world.get(server, caller, "/open/x")
    assert response.status_code == 503
    (line,) = eventually(lambda: world.envoy.requests(listener=f"{server}-{caller}")[-1:])
    assert line["flags"] in (
        "UF",
        "UC",
    )  # the handshake of TLS 1.3 is over for Envoy before we have seen its certificate
    eventually(lambda: refusals(running) > before[1])
    assert running.metric("istio_requests_total") == before[0]


def refusals(server: Running) -> float:
    return server.metric("proxyless_inbound_handshake_failures_total")


@both
def test_strict_closes_plain_text(world: World, server: str) -> None:
    world.mode("STRICT")
    before = world.servers[server].metric("proxyless_inbound_handshake_failures_total", reason="plaintext")
    assert world.get(server, "plain", "/open/x").status_code == 503
    after = world.servers[server].metric("proxyless_inbound_handshake_failures_total", reason="plaintext")
    assert after == before + 1


@both
def test_strict_takes_any_alpn_when_the_certificate_is_right(world: World, server: str) -> None:
    world.mode("STRICT")
    assert world.get(server, "no-alpn").json()["peer"] == identity("billing")
    assert world.get(server, "browser", "/open/x").status_code == 503


@both
def test_an_envoy_that_prefers_http_2_is_answered_with_http_1(world: World, server: str) -> None:
    world.mode("STRICT")
    assert world.get(server, "either").json()["peer"] == identity("billing")
    assert world.envoy.stat(f"cluster.{server}-either.upstream_cx_http1_total") > 0
    assert world.envoy.stat(f"cluster.{server}-either.upstream_cx_http2_total") == 0


@both
def test_permissive_serves_plain_text_to_nobody_in_particular(world: World, server: str) -> None:
    world.mode("PERMISSIVE")
    response = world.get(server, "plain", "/open/x")
    assert (response.status_code, response.json()["peer"]) == (200, "")
    assert world.get(server, "plain", "/x").status_code == 403


@both
@pytest.mark.parametrize("caller", ["browser", "no-alpn"])
def test_permissive_has_no_chain_for_tls_that_is_not_istios(world: World, server: str, caller: str) -> None:
    world.mode("PERMISSIVE")
    running = world.servers[server]
    before = running.metric("proxyless_inbound_handshake_failures_total", reason="no_chain")
    # A connection from before, under STRICT, is told so and closed.
    eventually(lambda: world.get(server, caller, "/open/x").status_code == 503)
    assert running.metric("proxyless_inbound_handshake_failures_total", reason="no_chain") > before


@both
def test_a_kept_plain_connection_ends_when_the_mode_becomes_strict(world: World, server: str) -> None:
    world.mode("PERMISSIVE")
    assert world.get(server, "plain", "/open/x").status_code == 200
    world.mode("STRICT")
    assert world.get(server, "plain", "/open/x").status_code in (403, 503)
    eventually(lambda: world.get(server, "plain", "/open/x").status_code == 503)


# ---------------------------------------------------------------------------------------------------- a header is no identity

CLAIM = f"By={identity('uvicorn')};Hash=00;URI={identity('billing')}"


@both
@pytest.mark.parametrize("kind", ["forward", "set"])
def test_what_a_gateway_says_of_its_caller_is_no_identity(world: World, server: str, kind: str) -> None:
    world.mode("PERMISSIVE")
    ask = gateway_client(world, server, kind)
    sent = {name.lower(): value for name, value in ask("gateway", "/backend").json()["headers"]}
    assert identity("billing") in sent["x-forwarded-client-cert"]
    through = ask("gateway", "/public/x").json()
    assert through["peer"] == identity("gateway")
    assert not [name for name in through["headers"] if name.replace("_", "-") == "x-forwarded-client-cert"]
    assert ask("gateway", "/x").status_code == 403
    assert ask("plain", "/x").status_code == 403
    assert ask("plain", "/open/x").json()["peer"] == ""


def gateway_client(world: World, server: str, kind: str) -> Any:
    """A caller that is billing: by its own words, or by a certificate that Envoy verified and passes on."""
    if kind == "forward":
        return lambda hop, path: world.get(server, f"{hop}-forward", path, headers={"x-forwarded-client-cert": CLAIM})
    authority = world.local.control_plane.authority
    context: ssl.SSLContext = client_context(issue(authority, "billing"), authority.bundle, ["http/1.1"])

    def ask(hop: str, path: str) -> httpx.Response:
        port = world.envoy.port(f"{server}-{hop}-set")
        return httpx.get(f"https://127.0.0.1:{port}{path}", verify=context, trust_env=False)

    return ask


# ----------------------------------------------------------------------------------------------------------------- rotation


@both
def test_our_certificate_rotates_while_envoy_calls(server: str, tmp_path: Path) -> None:
    accounts = {server: [f"{server}-app"], "billing": []}
    with contextlib.ExitStack() as stack:
        local = stack.enter_context(LocalMesh(POLICY.format(mode="STRICT"), workloads=accounts, svid_ttl=2.0))
        running = stack.enter_context(serving(server, local, tmp_path))
        authority = local.control_plane.authority
        tls = upstream_tls(authority, None, server, alpn=["istio"], svid=issue(authority, "billing", ttl=3600.0))
        http = manager("in", [forward("/", "app")], tmp_path, response_headers=SEEN)
        configured = static([listener("in", chain(http))], [cluster("app", running.port, tls=tls)])
        envoy = stack.enter_context(Envoy(tmp_path, configured))
        wait_for(running)
        started = call_until_rotated(f"http://127.0.0.1:{envoy.port('in')}/x")
        assert len(started) >= 3
        assert envoy.stat("cluster.app.upstream_cx_total") < envoy.stat("cluster.app.upstream_rq_total") / 5


def call_until_rotated(url: str) -> set[str]:
    """Four callers at once, without a pause or a retry, until the server has shown three certificates."""
    started: set[str] = set()
    with httpx.Client(trust_env=False, timeout=5) as client, ThreadPoolExecutor(4) as pool:
        end = time.monotonic() + 9
        while len(started) < 3 and time.monotonic() < end:
            responses = list(pool.map(client.get, [url] * 8))
            assert [(each.status_code, each.json()["peer"]) for each in responses] == [(200, identity("billing"))] * 8
            started |= {each.headers["x-server-start"] for each in responses}
    return started
