"""A control plane in this process, members of its mesh, and gRPC services of raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key
from prometheus_client import REGISTRY

from proxyless.controlplane.server import WORKLOAD_API_SOCKET, XDS_SOCKET, ControlPlane
from proxyless.core.resources import Health
from proxyless.grpc import MeshServer, mesh_server
from proxyless.identity.source import IdentitySource
from proxyless.identity.svid import X509Svid
from proxyless.runtime.mesh import Mesh
from proxyless.settings import Settings
from proxyless.spiffe import SpiffeId

SERVICE = "shop.Payments"
PAY = f"/{SERVICE}/Pay"
HOST = "payments.default.svc.cluster.local"
CLUSTER = f"outbound|50051||{HOST}"
DOMAIN = "cluster.local"

MESH = """
proxyless:
  workloads:
  - {serviceAccount: payments, services: [payments]}
  - {serviceAccount: billing, services: []}
  - {serviceAccount: intruder, services: []}
"""
ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: payments}
spec:
  hosts: [payments]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 50051, name: grpc, protocol: GRPC}]
"""
DECLARED = """
  endpoints: [{{address: 127.0.0.1, ports: {{grpc: {port}}}, serviceAccount: payments}}]
"""
ROUTE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: payments}}
spec:
  hosts: [payments]
  http:
  - route: [{{destination: {{host: payments}}}}]
    {rest}
"""
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
"""
ONLY_BILLING = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-billing}
spec:
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/billing]}}]
    to: [{operation: {paths: [/shop.Payments/Pay, /shop.Payments/Watch]}}]
"""


def identity(account: str) -> str:
    return f"spiffe://{DOMAIN}/ns/default/sa/{account}"


@contextlib.contextmanager
def control_plane(*documents: str, mesh: str = MESH, **options: Any) -> Iterator[ControlPlane]:
    with tempfile.TemporaryDirectory(prefix="plx") as folder:
        config = Path(folder) / "config"
        config.mkdir()
        (config / "mesh.yaml").write_text(mesh)
        (config / "all.yaml").write_text("\n---\n".join(documents))
        with ControlPlane(config, Path(folder) / "run", **options) as plane:
            yield plane


def configure(plane: ControlPlane, *documents: str) -> None:
    """Replace the manifests."""
    (plane._directory / "all.yaml").write_text("\n---\n".join(documents))
    assert plane.reload().configuration is not None


@contextlib.contextmanager
def member(
    plane: ControlPlane, account: str, *, identity_source: IdentitySource | None = None, **settings: Any
) -> Iterator[Mesh]:
    """A mesh of this identity, configured."""
    folder = plane.workload_directory("default", account)
    mesh = Mesh(
        Settings(
            xds=f"unix:{folder / XDS_SOCKET}",
            spiffe_socket=f"unix:{folder / WORKLOAD_API_SOCKET}",
            service_account=account,
            **settings,
        ),
        identity_source=identity_source,
    )
    try:
        assert mesh.wait_configured(15), mesh.not_ready_reasons()
        yield mesh
    finally:
        mesh.close()


async def eventually(condition: Callable[[], Any], timeout: float = 15.0, what: str = "condition") -> Any:
    """Wait until it holds; fail after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not come true in {timeout} s"
        await asyncio.sleep(0.01)
    return value


def handlers(**methods: Any) -> grpc.GenericRpcHandler:
    """A generic handler of `SERVICE`; a plain function is a unary method of raw bytes."""
    made = {
        name: method if isinstance(method, grpc.RpcMethodHandler) else grpc.unary_unary_rpc_method_handler(method)
        for name, method in methods.items()
    }
    return grpc.method_handlers_generic_handler(SERVICE, made)


class Counter:
    """A unary method that counts its calls and remembers who called."""

    def __init__(self, answer: Any = b"paid") -> None:
        self.calls: list[bytes] = []
        self._answer = answer

    async def pay(self, request: bytes, context: Any) -> bytes:
        self.calls.append(request)
        if callable(self._answer):
            answer: bytes = await self._answer(request, context)
            return answer
        return bytes(self._answer)


@contextlib.asynccontextmanager
async def serving(mesh: Mesh, *services: grpc.GenericRpcHandler, **options: Any) -> AsyncIterator[int]:
    """A mesh server on a free port, whose own filter chain has arrived; -> its port."""
    server: MeshServer = mesh_server(mesh, handlers=services, **options)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        if mesh.settings.service:
            await eventually(lambda: _knows_port(mesh, port), what="the filter chain of the server's port")
        yield port
    finally:
        await server.stop(0)


def _knows_port(mesh: Mesh, port: int) -> bool:
    snapshot = mesh.snapshot
    if snapshot is None or snapshot.inbound is None:
        return False
    return any(chain.match.destination_port == port for chain in snapshot.inbound.filter_chains)


async def endpoints(mesh: Mesh, count: int = 1, cluster: str = CLUSTER) -> None:
    """Wait until the client sees so many endpoints, all of them healthy."""

    def there() -> bool:
        upstream = mesh.snapshot.upstreams.get(cluster) if mesh.snapshot is not None else None
        if upstream is None or len(upstream.endpoints) != count:
            return False
        return all(endpoint.health in (Health.UNKNOWN, Health.HEALTHY) for endpoint in upstream.endpoints)

    await eventually(there, what=f"{count} endpoints of {cluster}")


def requests(reporter: str, **labels: str) -> float:
    """How often `istio_requests_total` was counted with these labels."""
    return sum(
        sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == "istio_requests_total"
        and sample.labels["reporter"] == reporter
        and all(sample.labels[name] == value for name, value in labels.items())
    )


def svid_pem(svid: X509Svid) -> tuple[bytes, bytes]:
    """Key and chain, PEM."""
    key = load_der_private_key(svid.private_key, None)
    chain = "".join(ssl.DER_cert_to_PEM_cert(der) for der in svid.chain).encode()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), chain


def server_context(key: bytes, chain: bytes) -> ssl.SSLContext:
    """TLS of the standard library that offers h2 and asks nobody for a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    with tempfile.NamedTemporaryFile(suffix=".pem") as file:
        file.write(key + chain)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def issue(plane: ControlPlane, account: str, **options: Any) -> X509Svid:
    return plane.authority.issue(SpiffeId.parse(identity(account)), **options)


def bundle_pem(plane: ControlPlane) -> bytes:
    return "".join(ssl.DER_cert_to_PEM_cert(der) for der in plane.authority.bundle).encode()


async def counted(reporter: str, expected: float, **labels: str) -> None:
    """Wait until the metric has that value: a call is counted a moment after it is answered."""
    await eventually(lambda: requests(reporter, **labels) == expected, what=f"{expected} requests {labels}")
