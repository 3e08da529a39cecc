"""A real Envoy (1.40, from PyPI) driven by our control plane: our resources mean to it what the YAML says."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxyless.controlplane.server import XDS_SOCKET, ControlPlane
from tests.controlplane.helpers import eventually, write
from tests.interop.helpers import START, Backend, Envoy, free_port, http2_cluster, needs_envoy

pytestmark = needs_envoy

SHOP = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: shop, namespace: default}}
spec:
  hosts: [shop.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints:
  - {{address: 127.0.0.1, ports: {{http: {v1}}}, labels: {{version: v1}}}}
  - {{address: 127.0.0.1, ports: {{http: {v2}}}, labels: {{version: v2}}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: shop, namespace: default}}
spec:
  host: shop
  subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: public, namespace: default}}
spec:
  selector: {{istio: ingressgateway}}
  servers:
  - {{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ["shop.example.com"]}}
"""
ROUTES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: shop, namespace: default}}
spec:
  hosts: [shop.example.com]
  gateways: [public]
  http:
  - match: [{{uri: {{prefix: /old}}, headers: {{x-group: {{exact: beta}}}}}}]
    rewrite: {{uri: /new, authority: inside.example.com}}
    headers:
      request: {{set: {{x-from: gateway}}, add: {{x-list: two}}, remove: [x-secret]}}
      response: {{set: {{x-served-by: mesh}}}}
    route: [{{destination: {{host: shop, subset: v2}}}}]
  - match: [{{uri: {{exact: /go}}}}]
    redirect: {{uri: /there, authority: other.example.com, redirectCode: 302}}
  - match: [{{uri: {{exact: /teapot}}}}]
    directResponse: {{status: 418, body: {{string: short and stout}}}}
  - match: [{{uri: {{prefix: /missing}}}}]
    route: [{{destination: {{host: shop, subset: v9}}}}]
  - match: [{{uri: {{prefix: /fault}}}}]
    fault: {{abort: {{httpStatus: 555, percentage: {{value: 100}}}}}}
    route: [{{destination: {{host: shop, subset: v1}}}}]
  - route:
    - {{destination: {{host: shop, subset: v1}}, weight: {v1}}}
    - {{destination: {{host: shop, subset: v2}}, weight: {v2}}}
"""
DENY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: default}
spec:
  selector: {matchLabels: {istio: ingressgateway}}
  action: DENY
  rules: [{to: [{operation: {paths: ["/admin*"]}}]}]
"""


def bootstrap(xds: Path, account: str) -> dict[str, Any]:
    """Envoy's configuration: who it is, and where its control plane is."""
    return {
        "node": {
            "id": f"router~127.0.0.1~{account}-1.default~default.svc.cluster.local",
            "cluster": account,
            "metadata": {"NAMESPACE": "default", "LABELS": {"istio": "ingressgateway"}, "SERVICE_ACCOUNT": account},
        },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "control-plane"}}],
            },
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {"clusters": [http2_cluster("control-plane", xds)]},
    }


class Gateway:
    """Envoy as a gateway, its backends, and the directory that its configuration comes from."""

    def __init__(self, config: Path, port: int, backends: dict[str, Backend], plane: ControlPlane, log: Path) -> None:
        self.config, self.backends, self.plane, self.log = config, backends, plane, log
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"host": "shop.example.com"}, trust_env=False
        )

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def share(self, count: int = 400) -> Counter[str]:
        return Counter(self.get("/").json()["name"] for _ in range(count))

    def is_up(self) -> bool:
        try:
            return self.get("/teapot").status_code == 418
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("envoy")
    port = free_port()
    backends = {name: Backend(name) for name in ("v1", "v2")}
    # Without mutual TLS: the backends are plain, and no agent gives this Envoy an SVID.
    mesh = f"""
enableAutoMtls: false
proxyless: {{workloads: [{{serviceAccount: ingress}}], gatewayPorts: {{80: {port}}}}}
"""
    config = write(
        folder / "config",
        mesh=mesh,
        shop=SHOP.format(**{name: backend.port for name, backend in backends.items()}),
        routes=ROUTES.format(v1=75, v2=25),
        deny=DENY,
    )
    with tempfile.TemporaryDirectory(prefix="plx") as run, ControlPlane(config, Path(run) / "run") as plane:
        xds = plane.workload_directory("default", "ingress") / XDS_SOCKET
        with Envoy(folder, bootstrap(xds, "ingress")) as envoy:
            found = Gateway(config, port, backends, plane, envoy.log)
            eventually(found.is_up, START)
            yield found
            found.client.close()
    for backend in backends.values():
        backend.close()


def test_envoy_accepts_everything_that_it_is_sent(gateway: Gateway) -> None:
    status = gateway.plane.status
    assert status["refusals"] == {}, gateway.log.read_text()[-4000:]
    (client,) = status["clients"]
    assert {"Cluster", "Listener", "RouteConfiguration", "ClusterLoadAssignment"} <= client["types"].keys()
    assert "rejected" not in gateway.log.read_text()


def test_weights_are_shares(gateway: Gateway) -> None:
    share = gateway.share()
    assert 0.17 <= share["v2"] / share.total() <= 0.33


def test_match_rewrite_and_header_changes(gateway: Gateway) -> None:
    response = gateway.get("/old/page", x_group="beta", x_secret="s", x_list="one")
    seen = response.json()
    headers = {name.lower(): value for name, value in seen["headers"]}
    assert (seen["name"], seen["path"]) == ("v2", "/new/page")
    assert headers["host"] == "inside.example.com"
    assert headers["x-from"] == "gateway"
    assert "x-secret" not in headers
    assert [value for name, value in seen["headers"] if name.lower() == "x-list"] == ["one", "two"]
    assert response.headers["x-served-by"] == "mesh"


def test_redirect_direct_response_fault_and_missing_subset(gateway: Gateway) -> None:
    redirect = gateway.get("/go")
    assert (redirect.status_code, redirect.headers["location"]) == (302, "http://other.example.com/there")
    assert gateway.get("/teapot").text == "short and stout"
    assert gateway.get("/fault").status_code == 555
    assert gateway.get("/missing").status_code == 503


def test_another_host_is_404(gateway: Gateway) -> None:
    assert gateway.get("/", host="other.example.com").status_code == 404


def test_an_authorization_policy_is_enforced(gateway: Gateway) -> None:
    response = gateway.get("/admin/users")
    assert (response.status_code, response.text) == (403, "RBAC: access denied")


def test_an_edit_reaches_envoy_while_it_serves(gateway: Gateway) -> None:
    try:
        write(gateway.config, routes=ROUTES.format(v1=0, v2=100))
        eventually(lambda: gateway.share(20) == {"v2": 20})
    finally:
        write(gateway.config, routes=ROUTES.format(v1=75, v2=25))
        eventually(lambda: len(gateway.share(40)) == 2)
    assert gateway.plane.status["refusals"] == {}
