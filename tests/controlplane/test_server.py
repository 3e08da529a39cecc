"""The control plane as a whole: files in, xDS out, over real sockets."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from proxyless import protos
from proxyless.controlplane.configuration import load_configuration
from proxyless.controlplane.server import WORKLOAD_API_SOCKET, XDS_SOCKET, ControlPlane
from proxyless.errors import ConfigError, SettingsError
from proxyless.protos import CLUSTER, ENDPOINT, LISTENER, ROUTE

from .helpers import AdsClient, Worker, eventually, names_of, sidecar, write

MESH = """
proxyless:
  workloads:
  - {serviceAccount: payments, services: [payments]}
  - {serviceAccount: billing, services: [billing.myapp.com]}
"""
SPLIT = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: payments, namespace: default}}
spec:
  hosts: [payments.myapp.com]
  http:
  - route:
    - {{destination: {{host: payments, subset: v1}}, weight: {v1}}}
    - {{destination: {{host: payments, subset: v2}}, weight: {v2}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: payments, namespace: default}}
spec:
  host: payments
  subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]
"""
PAYMENTS = "outbound|80||payments.default.svc.cluster.local"

Connect = Callable[[str], grpc.Channel]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write(tmp_path / "config", mesh=MESH, split=SPLIT.format(v1=90, v2=10))


@pytest.fixture
def run() -> Iterator[Path]:
    """A run directory with a short name: paths of sockets are limited to 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="plx") as folder:
        yield Path(folder) / "run"


@pytest.fixture
def plane(config: Path, run: Path) -> Iterator[ControlPlane]:
    with ControlPlane(config, run) as started:
        yield started


@pytest.fixture
def connect(plane: ControlPlane) -> Iterator[Connect]:
    """Open a channel to the socket of a workload."""
    with ExitStack() as stack:

        def open_channel(account: str) -> grpc.Channel:
            path = plane.workload_directory("default", account) / XDS_SOCKET
            return stack.enter_context(grpc.insecure_channel(f"unix:{path}"))

        yield open_channel


@pytest.fixture
def billing(connect: Connect) -> Iterator[AdsClient]:
    client = AdsClient(connect("billing"), sidecar("billing"))
    yield client
    client.close()


def weights(response: Any) -> list[int]:
    (packed,) = response.resources
    hosts = {host.name: host for host in protos.any_to_message(packed).virtual_hosts}
    return [c.weight.value for c in hosts["payments.myapp.com:80"].routes[0].route.weighted_clusters.clusters]


def assignment(response: Any) -> list[tuple[int, int]]:
    """(port, health status) of the endpoints of the one assignment."""
    (packed,) = response.resources
    found = protos.any_to_message(packed)
    return [
        (e.endpoint.address.socket_address.port_value, e.health_status)
        for locality in found.endpoints
        for e in locality.lb_endpoints
    ]


def test_a_client_gets_clusters_listeners_and_what_it_names(billing: AdsClient) -> None:
    assert PAYMENTS in names_of(billing.ask(CLUSTER))
    assert {"0.0.0.0_80", "virtualInbound", "virtualOutbound"} <= set(names_of(billing.ask(LISTENER)))
    assert weights(billing.ask(ROUTE, "80")) == [90, 10]


def test_an_edit_is_pushed_and_only_what_it_changes(billing: AdsClient, config: Path) -> None:
    billing.ask(CLUSTER)
    billing.ask(ROUTE, "80")
    write(config, split=SPLIT.format(v1=50, v2=50))
    pushed = billing.receive()
    assert pushed.type_url == ROUTE
    assert weights(pushed) == [50, 50]
    billing.nothing_before()


def test_a_broken_file_keeps_the_configuration_before_whole_and_says_why(
    billing: AdsClient, plane: ControlPlane, config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    billing.ask(ROUTE, "80")
    with caplog.at_level(logging.ERROR):
        write(config, split="apiVersion: networking.istio.io/v1\nkind: VirtualService\nspec: {hosts: 7")
        eventually(lambda: "the configuration before stays" in caplog.text)
    assert "split.yaml:" in caplog.text
    billing.nothing_before()
    write(config, split=SPLIT.format(v1=1, v2=99))
    assert weights(billing.receive()) == [1, 99]


def test_a_configuration_with_errors_does_not_start(config: Path, run: Path) -> None:
    write(config, more="apiVersion: networking.istio.io/v1\nkind: VirtualSrevice\nmetadata: {name: a}\nspec: {}")
    with pytest.raises(ConfigError, match=r"more\.yaml:2"):
        ControlPlane(config, run).start()


def test_a_missing_directory_does_not_start(tmp_path: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match="not a directory"):
        ControlPlane(tmp_path / "nothing", run).start()


def test_a_workload_that_registers_is_an_endpoint_drains_and_goes(billing: AdsClient, connect: Connect) -> None:
    assert assignment(billing.ask(ENDPOINT, PAYMENTS)) == []
    worker = Worker(connect("payments"))
    assert worker.say(service="payments", port=9001, readiness=2).accepted
    assert assignment(billing.receive()) == [(9001, 1)]
    worker.say(service="payments", port=9001, readiness=3)
    assert assignment(billing.receive()) == [(9001, 3)]
    worker.end()
    assert assignment(billing.receive()) == []


def test_several_workers_are_one_endpoint_until_the_last_has_gone(billing: AdsClient, connect: Connect) -> None:
    billing.ask(ENDPOINT, PAYMENTS)
    first, second = Worker(connect("payments")), Worker(connect("payments"))
    first.say(service="payments", port=9001, readiness=2)
    assert assignment(billing.receive()) == [(9001, 1)]
    second.say(service="payments", port=9001, readiness=2)
    first.end()
    billing.nothing_before(ROUTE)
    second.end()
    assert assignment(billing.receive()) == []


def test_a_worker_that_dies_is_gone_too(billing: AdsClient, plane: ControlPlane) -> None:
    billing.ask(ENDPOINT, PAYMENTS)
    path = plane.workload_directory("default", "payments") / XDS_SOCKET
    with grpc.insecure_channel(f"unix:{path}") as channel:
        worker = Worker(channel)
        worker.say(service="payments", port=9001, readiness=2)
        assert assignment(billing.receive()) == [(9001, 1)]
    assert assignment(billing.receive()) == []


def test_registration_is_bound_to_the_identity_of_the_socket(billing: AdsClient, connect: Connect) -> None:
    billing.ask(ENDPOINT, PAYMENTS)
    answer = Worker(connect("billing")).say(service="payments", port=9001, readiness=2)
    assert not answer.accepted
    assert "spiffe://cluster.local/ns/default/sa/billing" in answer.reason
    billing.nothing_before(ROUTE)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (sidecar("payments"), "service account 'payments'"),
        (sidecar("billing", namespace="shop"), "namespace 'shop'"),
    ],
)
def test_a_node_must_be_who_its_socket_says(
    connect: Connect, node: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = AdsClient(connect("billing"), node)
    client.send(CLUSTER)
    with pytest.raises(grpc.RpcError):
        client.receive()
    assert client.code() == grpc.StatusCode.PERMISSION_DENIED
    assert reason in client.details()
    eventually(lambda: "spiffe://cluster.local/ns/default/sa/billing refused" in caplog.text)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ({}, "missing node information"),
        ({"id": "sidecar~127.0.0.1~web"}, "missing parts"),
        ({"id": "pod~127.0.0.1~web.default~default.svc.cluster.local"}, "invalid node type"),
        ({"id": "sidecar~nowhere~web.default~default.svc.cluster.local"}, "no valid IP address"),
        (sidecar("billing", INSTANCE_IPS=["127.0.0.1"]), "INSTANCE_IPS must be a string"),
        (sidecar("billing", LABELS="app=billing"), "LABELS must be a struct"),
        (sidecar("billing", GENERATOR="grpc"), "GENERATOR 'grpc' is not served"),
    ],
)
def test_a_bad_first_request_ends_the_stream_with_the_reason(
    connect: Connect, node: dict[str, Any], reason: str
) -> None:
    client = AdsClient(connect("billing"), node)
    client.send(CLUSTER)
    with pytest.raises(grpc.RpcError):
        client.receive()
    assert client.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert reason in client.details()


def test_a_refusal_is_logged_and_counted_and_does_not_end_the_stream(
    billing: AdsClient, plane: ControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    billing.nack(billing.ask(CLUSTER), "cluster x: connect_timeout is negative")
    billing.nothing_before()
    assert plane.status["refusals"] == {CLUSTER: 1}
    assert "cluster x: connect_timeout is negative" in caplog.text


def test_what_a_client_has_accepted_is_known(billing: AdsClient, plane: ControlPlane) -> None:
    billing.ack(billing.ask(CLUSTER))
    billing.nothing_before()
    (client,) = plane.status["clients"]
    assert client["identity"] == "spiffe://cluster.local/ns/default/sa/billing"
    assert client["types"]["Cluster"]["accepted"] == plane.status["version"]


def test_sockets_lie_in_private_directories(plane: ControlPlane) -> None:
    for account in ("payments", "billing"):
        folder = plane.workload_directory("default", account)
        for place, mode in ((folder, 0o700), (folder / XDS_SOCKET, 0o600), (folder / WORKLOAD_API_SOCKET, 0o600)):
            assert stat.S_IMODE(os.stat(place).st_mode) == mode, place


def test_a_run_directory_that_others_can_enter_is_refused(config: Path, run: Path) -> None:
    run.mkdir(mode=0o755)
    with pytest.raises(SettingsError, match="closed to others"):
        ControlPlane(config, run).start()


def test_two_control_planes_cannot_share_a_run_directory(plane: ControlPlane, config: Path, run: Path) -> None:
    with pytest.raises(SettingsError, match="another control plane"):
        ControlPlane(config, run).start()


def test_a_workload_new_on_the_list_gets_sockets_and_one_taken_off_loses_them(
    plane: ControlPlane, config: Path
) -> None:
    write(config, mesh=MESH.replace("billing.myapp.com", "x.example.com").replace("billing,", "api,"))
    api, billing = (plane.workload_directory("default", account) / XDS_SOCKET for account in ("api", "billing"))
    eventually(lambda: api.exists() and not billing.exists())


def test_the_trust_domain_cannot_change_while_running(
    plane: ControlPlane, config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(config, mesh="trustDomain: other.example\n" + MESH)
    eventually(lambda: "cannot become other.example while running" in caplog.text)


def test_close_removes_the_sockets_and_may_be_called_twice(config: Path, run: Path) -> None:
    started = ControlPlane(config, run)
    started.start()
    path = started.workload_directory("default", "payments") / XDS_SOCKET
    assert path.exists()
    started.close()
    started.close()
    assert not path.exists()
    with ControlPlane(config, run):
        assert path.exists()


def test_a_client_that_does_not_read_holds_up_nobody_else(connect: Connect, config: Path, billing: AdsClient) -> None:
    body = "x" * 200_000  # more than HTTP/2 lets a server send unread
    large = f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: large, namespace: default}}
spec: {{hosts: [large.example.com], http: [{{directResponse: {{status: 200, body: {{string: {body}}}}}}}]}}
"""
    write(config, large=large)
    stuck = AdsClient(connect("payments"), sidecar("payments"))
    stuck.send(ROUTE, ("80",))
    billing.ask(ROUTE, "80")
    for v2 in (20, 30):
        write(config, split=SPLIT.format(v1=100 - v2, v2=v2))
        while weights(billing.receive()) != [100 - v2, v2]:
            pass
    while weights(stuck.receive()) != [70, 30]:
        pass  # it was given what was on its way, then the newest; nothing in between was kept for it
    stuck.close()


def test_a_configuration_that_cannot_be_translated_changes_nothing(
    billing: AdsClient, plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    billing.ask(ROUTE, "80")
    other = write(tmp_path / "other", mesh=MESH, split=SPLIT.format(v1=1, v2=99))
    configuration = load_configuration(other).require()

    def broken(*_: object) -> None:
        raise RuntimeError("a defect of ours")

    with monkeypatch.context() as patch:
        patch.setattr("proxyless.controlplane.views.translate", broken)
        with pytest.raises(ConfigError, match="a defect of ours"):
            plane.apply(configuration)
    assert weights(billing.ask(ROUTE, "80")) == [90, 10]
    plane.apply(configuration)
    assert weights(billing.receive()) == [1, 99]


def test_what_the_loader_has_to_say_is_logged_once(
    plane: ControlPlane, config: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rule = "{{hosts: [{host}], http: [{{route: [{{destination: {{host: nowhere.example.com}}}}]}}]}}"
    document = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: lost, namespace: default}\n"
    write(config, lost=document + "spec: " + rule.format(host="a.example.com"))
    with caplog.at_level(logging.WARNING):
        plane.reload()
        plane.reload()
    assert caplog.text.count("nowhere.example.com") == 1


@pytest.mark.parametrize("leave", ["nothing", "an empty file"])
def test_mesh_settings_that_vanish_take_no_workload_away(
    billing: AdsClient, plane: ControlPlane, config: Path, caplog: pytest.LogCaptureFixture, leave: str
) -> None:
    kept = (config / "mesh.yaml").read_text()
    if leave == "nothing":
        (config / "mesh.yaml").unlink()
    else:
        (config / "mesh.yaml").write_text("")
    eventually(lambda: "mesh.yaml is gone or empty" in caplog.text)
    assert (plane.workload_directory("default", "billing") / XDS_SOCKET).exists()
    (config / "mesh.yaml").write_text(kept.replace("billing.myapp.com", "other.myapp.com"))
    eventually(lambda: "configuration" in caplog.messages[-1])
    assert PAYMENTS in names_of(billing.ask(CLUSTER))


@pytest.mark.parametrize("ttl", [0.0, -5.0, float("nan"), float("inf")])
def test_a_certificate_has_a_life(config: Path, run: Path, ttl: float) -> None:
    with pytest.raises(SettingsError, match="seconds above 0"):
        ControlPlane(config, run, svid_ttl=ttl).start()


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.0.0.1:99999", "127.0.0.1:http", "127.0.0.1:"])
def test_a_port_that_is_none_is_refused(config: Path, run: Path, listen: str) -> None:
    with pytest.raises(SettingsError, match="write host:port"):
        ControlPlane(config, run, listen=listen).start()


def test_a_manifest_that_is_a_link_to_nowhere_is_an_error(config: Path, run: Path) -> None:
    (config / "policy.yaml").symlink_to("nowhere.yaml")
    with pytest.raises(ConfigError, match=r"policy\.yaml.*no such file"):
        ControlPlane(config, run).start()


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every directory")
def test_a_directory_that_cannot_be_read_is_an_error(config: Path, run: Path) -> None:
    write(config / "policies", deny=SPLIT.format(v1=50, v2=50))
    (config / "policies").chmod(0)
    try:
        with pytest.raises(ConfigError, match="policies cannot be read"):
            ControlPlane(config, run).start()
    finally:
        (config / "policies").chmod(0o700)


def test_who_is_taken_off_the_operators_list_is_no_endpoint_any_more_though_its_stream_is_open(
    plane: ControlPlane, config: Path, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    worker, view = Worker(connect("payments")), AdsClient(connect("billing"), sidecar("billing"))
    answer = view.ask(ENDPOINT, PAYMENTS)

    def endpoints() -> int:
        (assignment,) = answer.resources
        return sum(len(locality.lb_endpoints) for locality in protos.any_to_message(assignment).endpoints)

    assert worker.say(service="payments", port=9001, readiness=2).accepted
    for services, expected in (("payments", 1), ("other", 0), ("payments", 1)):
        write(config, mesh=MESH.replace("services: [payments]", f"services: [{services}]"))
        plane.reload()
        while endpoints() != expected:
            answer = view.receive()
        assert len(plane.status["workloads"]) == expected
    assert "may no longer serve payments.default.svc.cluster.local" in caplog.text
    worker.end()
