"""For the tests of applications: a whole mesh in the test's own process, on loopback, with real TLS and real xDS.

    with LocalMesh(MANIFESTS, workloads={"billing": ["billing"], "payments": ["payments"]}) as local:
        with local.serve(make_app, "payments", labels={"app": "payments"}):
            client = httpx.Client(transport=MeshTransport(local.mesh("billing")))
            assert client.get("http://payments/").status_code == 200

    def make_app(mesh: Mesh) -> FastAPI:
        app = FastAPI()
        app.add_middleware(MeshMiddleware, mesh=mesh)
        ...

Nothing is mocked and nothing of the environment is read; everything ends with its block.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import yaml

from proxyless.controlplane.server import WORKLOAD_API_SOCKET, XDS_SOCKET, ControlPlane
from proxyless.errors import NotReadyError
from proxyless.runtime.mesh import Mesh
from proxyless.settings import NodeKind, Settings

if TYPE_CHECKING:
    from proxyless.testing.servers import Served

__all__ = ["LocalMesh", "ManualClock"]

FILE = "manifests.yaml"


class ManualClock:
    """A clock that moves when it is told to: pass it where a `now` or `clock` function is wanted."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        """Move on; the new time."""
        if seconds < 0:
            raise ValueError("time does not go back")
        self.now += seconds
        return self.now


class LocalMesh:
    """A control plane and development CA in this process; a context manager.

    Args:
        manifests: Istio YAML, as it would stand in a file.
        workloads: service account to the services it may serve; the operator's list.
        settings: further fields of mesh.yaml.
        svid_ttl: seconds that a certificate lives.
        listen: ``127.0.0.1:0``: serve xDS on TCP too, with mutual TLS; see `ControlPlane.address`.

    Raises:
        ConfigError: on entering, when the configuration has errors.
    """

    def __init__(
        self,
        manifests: str = "",
        *,
        workloads: Mapping[str, Sequence[str]],
        settings: Mapping[str, object] | None = None,
        namespace: str = "default",
        svid_ttl: float = 3600.0,
        listen: str = "",
    ) -> None:
        self._manifests, self._namespace, self._svid_ttl, self._listen = manifests, namespace, svid_ttl, listen
        self._workloads = {account: list(services) for account, services in workloads.items()}
        own = {
            "defaultNamespace": namespace,
            "workloads": [
                {"namespace": namespace, "serviceAccount": account, "services": services}
                for account, services in self._workloads.items()
            ],
        }
        given = dict(settings or {})
        extra = given.pop("proxyless", {})
        self._settings = {**given, "proxyless": {**own, **(extra if isinstance(extra, Mapping) else {})}}
        self._meshes: list[Mesh] = []

    def __enter__(self) -> LocalMesh:
        self._folder = tempfile.TemporaryDirectory(prefix="proxyless-")
        root = Path(self._folder.name)
        self._config = root / "config"
        self._config.mkdir()
        (self._config / "mesh.yaml").write_text(yaml.safe_dump(self._settings))
        (self._config / FILE).write_text(self._manifests)
        self.control_plane = ControlPlane(self._config, root / "run", svid_ttl=self._svid_ttl, listen=self._listen)
        try:
            self.control_plane.start()
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for mesh in self._meshes:
            mesh.close()
        self.control_plane.close()
        self._folder.cleanup()

    def settings(
        self,
        service_account: str,
        *,
        service: str = "",
        port: int = 0,
        labels: Mapping[str, str] | None = None,
        node_kind: NodeKind = "sidecar",
    ) -> Settings:
        """What a process of this workload would read from its environment."""
        sockets = self.control_plane.workload_directory(self._namespace, service_account)
        return Settings(
            xds=f"unix:{sockets / XDS_SOCKET}",
            spiffe_socket=f"unix:{sockets / WORKLOAD_API_SOCKET}",
            service=service,
            port=port,
            labels=labels or {},
            namespace=self._namespace,
            service_account=service_account,
            node_kind=node_kind,
        )

    def environment(self, service_account: str, **more: str) -> dict[str, str]:
        """The same as variables, for a process of its own; `more` are further ones, without ``PROXYLESS_``."""
        settings = self.settings(service_account)
        return {
            "PROXYLESS_XDS": settings.xds,
            "SPIFFE_ENDPOINT_SOCKET": settings.spiffe_socket,
            "PROXYLESS_NAMESPACE": settings.namespace,
            "PROXYLESS_SERVICE_ACCOUNT": service_account,
        } | {f"PROXYLESS_{name.upper()}": value for name, value in more.items()}

    def mesh(
        self,
        service_account: str,
        *,
        service: str = "",
        port: int = 0,
        labels: Mapping[str, str] | None = None,
        node_kind: NodeKind = "sidecar",
        timeout: float = 10.0,
    ) -> Mesh:
        """A started mesh of this workload, configured and with an identity.

        Raises:
            NotReadyError: not within `timeout` seconds; the text says why.
        """
        mesh = Mesh(self.settings(service_account, service=service, port=port, labels=labels, node_kind=node_kind))
        self._meshes.append(mesh)
        if not mesh.wait_configured(timeout):
            raise NotReadyError("; ".join(mesh.not_ready_reasons()))
        return mesh

    @contextlib.contextmanager
    def serve(
        self,
        make_app: Callable[[Mesh], Any],
        service_account: str,
        *,
        service: str = "",
        labels: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> Iterator[Served]:
        """Serve an ASGI application as `proxyless run` would, in a thread, until the block ends.

        Inside of the block it is registered and takes calls; whoever starts a mesh there knows it from the start.

        Args:
            make_app: gets the mesh of the workload, for `MeshMiddleware(mesh=...)` and transports.
            service: one of those that the service account may serve; empty: the first.

        Raises:
            NotReadyError: it does not serve within `timeout` seconds; the text says why.
        """
        from proxyless.testing.servers import serving

        service = service or next(iter(self._workloads.get(service_account, [])), "")
        mesh = Mesh(self.settings(service_account, service=service, labels=labels))
        with serving(make_app(mesh), mesh, timeout) as served:
            self.control_plane.flush()
            yield served

    @contextlib.contextmanager
    def gateway(self, service_account: str, labels: Mapping[str, str], *, timeout: float = 10.0) -> Iterator[Mesh]:
        """Run a gateway with these labels in a thread, until the block ends. Its ports are those of the Gateways that select
        it, by `proxyless.gatewayPorts` of the settings.

        Raises:
            NotReadyError: not all ports are open within `timeout` seconds; the text says why.
        """
        from proxyless.testing.servers import gateway_running

        mesh = Mesh(self.settings(service_account, labels=labels, node_kind="router"))
        with gateway_running(mesh, timeout):
            yield mesh

    def edit(self, manifests: str) -> None:
        """Replace the manifests, as an operator would; with errors the ones before stay.

        Raises:
            ConfigError: they have errors.
        """
        (self._config / FILE).write_text(manifests)
        self.control_plane.reload().require()
