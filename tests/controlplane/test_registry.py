"""What can be called, and who is behind it."""

from __future__ import annotations

from dataclasses import replace

from proxyless.controlplane.registry import RegisteredWorkload
from proxyless.spiffe import SpiffeId

from .helpers import service, world

PAYMENTS = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/payments")
GRANTS = """
proxyless:
  workloads:
  - {serviceAccount: payments, services: [payments], labels: {app: payments}}
  - {serviceAccount: billing, services: [billing.myapp.com]}
"""
PAYMENTS_HOST = "payments.default.svc.cluster.local"


def workload(port: int = 9001, **more: object) -> RegisteredWorkload:
    return RegisteredWorkload(identity=PAYMENTS, service=PAYMENTS_HOST, address="127.0.0.1", port=port, **more)  # type: ignore[arg-type]


def test_a_service_of_the_operators_list_exists_without_any_endpoint() -> None:
    services = world(mesh=GRANTS).registry.visible("default")
    assert [*services] == ["billing.myapp.com", PAYMENTS_HOST]
    assert [(port.number, port.name, port.protocol) for port in services[PAYMENTS_HOST].ports] == [(80, "http", "HTTP")]


def test_a_registered_workload_is_an_endpoint_with_its_own_port_and_takes_mutual_tls() -> None:
    of = world(mesh=GRANTS, registered=(workload(labels={"version": "v1"}),))
    found = of.registry.visible("default")[PAYMENTS_HOST]
    (endpoint,) = found.endpoints
    assert endpoint.port_of(found.ports[0]) == 9001
    assert endpoint.tls_mode == "istio"
    assert endpoint.service_account == "payments"
    assert endpoint.labels == {"security.istio.io/tlsMode": "istio", "version": "v1", "app": "payments"}


def test_labels_of_the_operator_win_over_those_of_the_workload() -> None:
    of = world(mesh=GRANTS, registered=(workload(labels={"app": "billing"}),))
    assert of.registry.visible("default")[PAYMENTS_HOST].endpoints[0].labels["app"] == "payments"


def test_a_registered_workload_joins_the_service_entry_of_its_host() -> None:
    of = world(service("payments", port=8443, target=9001, address="10.0.0.1"), mesh=GRANTS, registered=(workload(),))
    found = of.registry.visible("default")[PAYMENTS_HOST]
    assert [port.number for port in found.ports] == [8443]
    assert [endpoint.address for endpoint in found.endpoints] == ["10.0.0.1", "127.0.0.1"]


def test_a_registered_workload_serves_the_port_with_its_target_else_the_first_http_port() -> None:
    entry = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: payments, namespace: default}
spec:
  hosts: [payments.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - {number: 5000, name: raw, protocol: TCP}
  - {number: 80, name: http, protocol: HTTP}
  - {number: 50, name: grpc, protocol: GRPC, targetPort: 9050}
"""
    of = world(entry, mesh=GRANTS, registered=(workload(9050), workload(9001)))
    found = of.registry.visible("default")[PAYMENTS_HOST]
    by_port = {port.number: [e.port_of(port) for e in found.endpoints_of(port)] for port in found.ports}
    assert by_port == {5000: [], 80: [9001], 50: [9050]}


def test_an_address_recognises_declared_endpoints_only() -> None:
    """Workloads that register share addresses; and every process of a host has the loopback one."""
    of = world(
        service("api", address="10.0.0.1"),
        service("local", address="127.0.0.1"),
        mesh=GRANTS,
        registered=(workload(), replace(workload(9002), address="10.0.0.1")),
    )
    assert [found.host for found, _ in of.registry.at(["10.0.0.1", "127.0.0.1"])] == ["api.default.svc.cluster.local"]


def test_workload_entries_are_selected_by_labels_in_their_own_namespace() -> None:
    entry = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: vm, namespace: default}
spec:
  hosts: [vm.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  workloadSelector: {labels: {app: vm}}
"""
    vm = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{address: {address}, labels: {{app: {app}}}, ports: {{http: 7080}}}}
"""
    of = world(
        entry,
        vm.format(name="b", namespace="default", address="10.0.0.2", app="vm"),
        vm.format(name="a", namespace="default", address="10.0.0.1", app="vm"),
        vm.format(name="c", namespace="default", address="10.0.0.3", app="other"),
        vm.format(name="d", namespace="ops", address="10.0.0.4", app="vm"),
    )
    found = of.registry.visible("default")["vm.example.com"]
    assert [(e.address, e.port_of(found.ports[0])) for e in found.endpoints] == [("10.0.0.1", 7080), ("10.0.0.2", 7080)]


def test_a_client_sees_its_own_namespaces_service_before_an_older_one_of_the_same_host() -> None:
    entry = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: x, namespace: {namespace}, creationTimestamp: "{created}"}}
spec:
  hosts: [x.example.com]
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: {address}}}]
"""
    registry = world(
        entry.format(namespace="old", created="2026-01-01T00:00:00Z", address="10.0.0.1"),
        entry.format(namespace="own", created="2026-02-01T00:00:00Z", address="10.0.0.2"),
    ).registry
    assert registry.visible("own")["x.example.com"].endpoints[0].address == "10.0.0.2"
    assert registry.visible("else")["x.example.com"].endpoints[0].address == "10.0.0.1"


def test_export_to_hides_a_service() -> None:
    hidden = service("secret", namespace="shop").replace("spec:", 'spec:\n  exportTo: ["."]')
    registry = world(hidden).registry
    assert [*registry.visible("shop")] == ["secret.shop.svc.cluster.local"]
    assert [*registry.visible("default")] == []


def test_a_host_stands_for_the_identities_that_may_serve_it() -> None:
    registry = world(mesh=GRANTS).registry
    assert registry.identities_of("billing.myapp.com") == (("default", "billing"),)
    assert registry.identities_of(PAYMENTS_HOST) == (("default", "payments"),)
    assert registry.identities_of("nobody.example.com") == ()
