"""A mesh whose configuration is made by hand, certificates, real servers and independent clients."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from prometheus_client import CollectorRegistry

from proxyless.controlplane.authority import Authority
from proxyless.core.matchers import PathMatcher, StringMatcher
from proxyless.core.rbac import AnyRule, AuthenticatedRule, OrRule, Policy, Rbac, Rule, UrlPathRule
from proxyless.core.resources import (
    DownstreamTls,
    FilterChain,
    FilterChainMatch,
    HttpConnectionManager,
    Listener,
    PathNormalization,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
    WeightedCluster,
)
from proxyless.core.snapshot import Resources, Snapshot, compile_snapshot
from proxyless.identity.bundle import TrustBundle
from proxyless.identity.source import StaticSource
from proxyless.identity.svid import X509Svid
from proxyless.runtime.mesh import Mesh
from proxyless.settings import Settings
from proxyless.spiffe import SpiffeId
from proxyless.telemetry.recorder import Telemetry

DOMAIN = "cluster.local"
ISTIO_ALPN = ("istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2")


def identity(account: str, namespace: str = "default") -> str:
    return f"spiffe://{DOMAIN}/ns/{namespace}/sa/{account}"


def eventually(condition: Callable[[], Any], timeout: float = 10.0, what: str = "condition") -> Any:
    """Wait until it holds; fail after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not come true in {timeout} s"
        time.sleep(0.01)
    return value


# ---------------------------------------------------------------------------------------------------- certificates


class World:
    """One trust domain: its CA, our workload, and its callers."""

    def __init__(self) -> None:
        self.authority = Authority(DOMAIN)
        self.bundle = TrustBundle(DOMAIN, self.authority.bundle)

    def svid(self, account: str, **options: Any) -> X509Svid:
        return self.authority.issue(SpiffeId.parse(identity(account)), **options)

    def source(self, account: str = "payments", **options: Any) -> StaticSource:
        return StaticSource(self.svid(account, **options), [self.bundle])

    def client(
        self, account: str = "billing", alpn: Sequence[str] = ("istio", "http/1.1"), **options: Any
    ) -> ssl.SSLContext:
        """A context of the standard library, as another implementation would make it; the server's name is not checked."""
        return client_context(self.svid(account, **options), self.authority.bundle, alpn)


def client_context(svid: X509Svid | None, anchors: Sequence[bytes], alpn: Sequence[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata="".join(ssl.DER_cert_to_PEM_cert(der) for der in anchors))
    if alpn:
        context.set_alpn_protocols(list(alpn))
    if svid is not None:
        key = load_der_private_key(svid.private_key, None)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        pem += "".join(ssl.DER_cert_to_PEM_cert(der) for der in svid.chain)
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(pem)
            file.flush()
            context.load_cert_chain(file.name)
    return context


# --------------------------------------------------------------------------------------------------- configuration


def paths(*patterns: str) -> Rule:
    """`/a` exact, `/a/*` prefix."""
    return OrRule(
        tuple(
            UrlPathRule(StringMatcher("prefix", each[:-1]) if each.endswith("*") else StringMatcher("exact", each))
            for each in patterns
        )
    )


def principal(account: str) -> Rule:
    return AuthenticatedRule(StringMatcher("exact", identity(account)))


ANY: Rule = AnyRule()


def policy(name: str, permission: Rule = ANY, who: Rule = ANY) -> Policy:
    return Policy(name, (permission,), (who,))


def allow(*policies: Policy) -> tuple[str, Rbac]:
    return "allow", Rbac("ALLOW", policies)


def deny(*policies: Policy) -> tuple[str, Rbac]:
    return "deny", Rbac("DENY", policies)


ROUTES = RouteConfiguration(
    name="inbound",
    virtual_hosts=(
        VirtualHost(
            name="inbound|http",
            domains=("*",),
            routes=(
                Route(
                    name="default",
                    match=RouteMatch(path=PathMatcher("prefix", "/")),
                    action=RouteAction(clusters=(WeightedCluster(name="inbound|8000||", weight=1),), total_weight=1),
                ),
            ),
        ),
    ),
)

BASE = PathNormalization(normalize=True)


def listener(mode: str, *rbac: tuple[str, Rbac], normalization: PathNormalization = BASE) -> Listener:
    """An inbound listener as istiod makes it for an HTTP port under PeerAuthentication `mode`; any port."""
    manager = HttpConnectionManager(routes=ROUTES, rbac=rbac, paths=normalization)
    tls = DownstreamTls(require_client_certificate=True, alpn=("h2", "http/1.1"))
    plain = FilterChain(match=FilterChainMatch(transport_protocol="raw_buffer"), filter=manager, name="plain")
    alpn = () if mode == "STRICT" else ISTIO_ALPN
    mutual = FilterChain(
        match=FilterChainMatch(transport_protocol="tls", application_protocols=alpn),
        filter=manager,
        tls=tls,
        name="mutual",
    )
    chains = {"STRICT": (mutual,), "PERMISSIVE": (mutual, plain), "DISABLE": (plain,)}[mode]
    return Listener(name="virtualInbound", direction="INBOUND", use_original_dst=True, filter_chains=chains)


class Fixture:
    """A real `Mesh` that gets its snapshots from the test."""

    def __init__(
        self,
        world: World,
        *,
        account: str = "payments",
        access_log: str = "off",
        source: StaticSource | None = None,
        **settings: Any,
    ) -> None:
        self.world = world
        self.source = world.source(account) if source is None else source
        self.registry = CollectorRegistry()
        self.mesh = Mesh(
            Settings(service="payments.default.svc.cluster.local", **settings), identity_source=self.source
        )
        self.mesh._telemetry = Telemetry(
            workload="payments", namespace="default", service="payments.default.svc.cluster.local",
            access_log=access_log, registry=self.registry,
        )  # fmt: skip
        self._generation = 0

    def configure(self, mode: str, *rbac: tuple[str, Rbac], **options: Any) -> Snapshot:
        self._generation += 1
        resources = Resources(listeners={"virtualInbound": listener(mode, *rbac, **options)})
        snapshot = compile_snapshot(resources, self.mesh.snapshot, self._generation)
        self.mesh._publish(snapshot)
        return snapshot

    def value(self, name: str, **labels: str) -> float:
        """Sum of the samples of a metric with these labels."""
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


# ---------------------------------------------------------------------------------------------------------- servers


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Says what it saw. Knows lifespan and websockets."""
    from proxyless.asgi import mesh_peer

    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"].endswith("shutdown"):
                return
    peer = mesh_peer(scope)
    seen = {
        "peer": str(peer.identity or ""),
        "path": scope["path"],
        "raw_path": scope["raw_path"].decode(),
        "scheme": scope["scheme"],
        "headers": [name.decode() for name, _ in scope["headers"]],
    }
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": json.dumps(seen)})
        await send({"type": "websocket.close"})
        return
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = json.dumps({**seen, "size": size}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


class Server:
    """uvicorn in a thread, on a free port."""

    def __init__(self, app: Any, http: Any, loop: str = "asyncio", **options: Any) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(app, http=http, loop=loop, log_level="critical", **options)
        self.server = uvicorn.Server(config)
        self.failures: list[Any] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            self.server.run(sockets=[self._socket])
        except SystemExit as error:
            self.failures.append(error)

    def __enter__(self) -> Server:
        self._thread.start()
        eventually(lambda: self.server.started or self.failures or not self._thread.is_alive(), what="server start")
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self._thread.join(10)
        self._socket.close()
        assert not self._thread.is_alive(), "the server did not stop"


@contextlib.contextmanager
def raw(port: int, context: ssl.SSLContext | None = None) -> Iterator[socket.socket]:
    """A socket, with TLS of the standard library when there is a context."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        if context is None:
            yield plain
        else:
            with context.wrap_socket(plain) as secured:
                yield secured


def ask(sock: socket.socket, data: bytes) -> tuple[int, bytes]:
    """Send bytes; the status and body of the first response, (0, b"") when the connection ends without one."""
    try:
        sock.sendall(data)
        return answer(sock)
    except (ConnectionError, ssl.SSLError):
        return 0, b""


def answer(sock: socket.socket) -> tuple[int, bytes]:
    received = b""
    while b"\r\n\r\n" not in received:
        piece = sock.recv(65536)
        if not piece:
            return 0, received
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
    )
    while len(body) < length:
        body += sock.recv(65536)
    return int(head.split(b" ", 2)[1]), body


def get(
    port: int, path: str, context: ssl.SSLContext | None = None, *, host: str = "app", extra: str = ""
) -> tuple[int, Any]:
    """One request on a connection of its own; the body decoded when it is JSON."""
    try:
        with raw(port, context) as sock:
            request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{extra}Connection: close\r\n\r\n".encode("latin-1")
            status, body = ask(sock, request)
    except (ConnectionError, ssl.SSLError):
        return 0, b""
    try:
        return status, json.loads(body)
    except ValueError:
        return status, body


def file_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
