"""`proxyless.testing`, used as the tests of an application would."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from proxyless.asgi import MeshMiddleware, mesh_peer
from proxyless.errors import ConfigError, NotReadyError
from proxyless.httpx import AsyncMeshTransport, MeshTransport
from proxyless.runtime.mesh import Mesh
from proxyless.settings import Settings
from proxyless.testing import LocalMesh, ManualClock
from tests.asgi.helpers import eventually
from tests.cli.helpers import free_port

DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody}
spec:
  selector: {matchLabels: {app: payments}}
"""
EDGE = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: edge}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge}
spec:
  hosts: ["*"]
  gateways: [edge]
  http: [{route: [{destination: {host: payments}}]}]
"""
WORKLOADS = {"billing": ["billing"], "payments": ["payments"], "edge": []}


def payments(mesh: Mesh) -> FastAPI:
    app = FastAPI()
    app.add_middleware(MeshMiddleware, mesh=mesh)

    @app.get("/")
    async def root(request: Request) -> dict[str, str]:
        return {"peer": str(mesh_peer(request).identity)}

    return app


def billing(mesh: Mesh) -> FastAPI:
    """Calls payments for whoever calls it."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as app.state.client:
            yield

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(MeshMiddleware, mesh=mesh)

    @app.get("/pay")
    async def pay() -> dict[str, Any]:
        answer = await app.state.client.get("http://payments/")
        return {"status": answer.status_code, "said": answer.json()}

    return app


def test_two_services_and_a_caller() -> None:
    with (
        LocalMesh(workloads=WORKLOADS) as local,
        local.serve(payments, "payments"),
        local.serve(billing, "billing"),
        httpx.Client(transport=MeshTransport(local.mesh("edge"))) as client,
    ):
        assert client.get("http://billing/pay").json() == {
            "status": 200,
            "said": {"peer": "spiffe://cluster.local/ns/default/sa/billing"},
        }


def test_manifests_may_be_edited_and_bad_ones_change_nothing() -> None:
    with (
        LocalMesh(workloads=WORKLOADS) as local,
        local.serve(payments, "payments", labels={"app": "payments"}),
        httpx.Client(transport=MeshTransport(local.mesh("billing"))) as client,
    ):
        assert client.get("http://payments/").status_code == 200
        with pytest.raises(ConfigError, match=r"manifests.yaml:3:.*AuthorizationPolizy"):
            local.edit(DENY.replace("Policy", "Polizy"))
        assert client.get("http://payments/").status_code == 200
        local.edit(DENY)
        eventually(lambda: client.get("http://payments/").status_code == 403)


def test_bad_manifests_are_an_error_of_the_test() -> None:
    before = set(Path(tempfile.gettempdir()).glob("proxyless-*"))
    with pytest.raises(ConfigError, match="Polizy"), LocalMesh(DENY.replace("Policy", "Polizy"), workloads=WORKLOADS):
        pass
    assert set(Path(tempfile.gettempdir()).glob("proxyless-*")) <= before


def test_a_gateway_runs_until_its_block_ends() -> None:
    port = free_port()
    settings = {"proxyless": {"gatewayPorts": {80: port}}}
    with LocalMesh(EDGE, workloads=WORKLOADS, settings=settings) as local, local.serve(payments, "payments"):
        with local.gateway("edge", {"istio": "edge"}):
            answer = httpx.get(f"http://127.0.0.1:{port}/", trust_env=False)
            assert answer.json() == {"peer": "spiffe://cluster.local/ns/default/sa/edge"}
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/", trust_env=False)


def test_what_does_not_start_says_why() -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise RuntimeError("no database")

    with LocalMesh(workloads=WORKLOADS) as local:
        with pytest.raises(NotReadyError, match="ended"), local.serve(lambda _: fails, "payments"):
            pass
        with (
            pytest.raises(NotReadyError, match="registration as payments refused"),
            local.serve(payments, "billing", service="payments", timeout=1),
        ):
            pass
        with pytest.raises(NotReadyError, match="Workload API"):
            local.mesh("nobody", timeout=0.2)


def test_nothing_is_left_and_nothing_of_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXYLESS_XDS", "unix:/nonexistent")
    monkeypatch.setenv("PROXYLESS_SERVICE", "other")
    before = {thread.name for thread in threading.enumerate()}
    with LocalMesh(workloads=WORKLOADS) as local, local.serve(payments, "payments") as served:
        assert served.mesh.settings.service == "payments"
        local.mesh("billing")
        folder = local.control_plane.workload_directory("default", "billing")
        assert folder.is_dir()
    assert not folder.exists()
    ours = {thread.name for thread in threading.enumerate() if thread.name.startswith("proxyless-")}
    assert ours <= before


def test_a_process_gets_the_same_by_its_environment() -> None:
    with LocalMesh(workloads=WORKLOADS, namespace="shop") as local:
        environment = local.environment("payments", service="payments", port="8001")
        assert Settings.from_environment(environment) == local.settings("payments", service="payments", port=8001)
        assert environment["PROXYLESS_NAMESPACE"] == "shop"


def test_a_clock_moves_when_it_is_told_to() -> None:
    clock = ManualClock(5.0)
    assert (clock(), clock.advance(2.5), clock()) == (5.0, 7.5, 7.5)
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)
