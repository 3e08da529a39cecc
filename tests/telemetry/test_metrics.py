"""Istio's metrics: names, labels, buckets, bounds, and several processes behind one scrape."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry

from proxyless.telemetry import families
from proxyless.telemetry.labels import Bounded, Service, Workload
from proxyless.telemetry.metrics import MAX_SERIES, Metrics
from proxyless.telemetry.recorder import Telemetry

ISTIO_BUCKETS = (
    "0.5", "1.0", "5.0", "10.0", "25.0", "50.0", "100.0", "250.0", "500.0", "1000.0", "2500.0", "5000.0", "10000.0", "30000.0",
    "60000.0", "300000.0", "600000.0", "1.8e+06", "3.6e+06", "+Inf",
)  # fmt: skip


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def samples(registry, name, **labels):
    return [
        sample
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]


def total(registry, name, **labels):
    return sum(sample.value for sample in samples(registry, name, **labels))


def inbound(metrics, principal="", host="app", status=200, seconds=0.01, received=3, sent=5, **options):
    metrics.inbound(principal, host, "http", status, None, "-", seconds, received, sent, tls=bool(principal), **options)


def test_nothing_is_created_before_the_first_use(registry):
    Metrics(Workload(), Service(), registry)
    assert list(registry.collect()) == []


def test_one_inbound_request_has_all_of_istios_labels(registry):
    own = Workload.of_labels("payments-v1", "shop", {"app": "payments", "version": "v1"})
    metrics = Metrics(own, Service.of_host("payments.shop.svc.cluster.local"), registry)
    metrics.identify("spiffe://cluster.local/ns/shop/sa/payments")
    inbound(metrics, "spiffe://cluster.local/ns/web/sa/billing")
    (sample,) = samples(registry, "istio_requests_total")
    assert sample.labels == {
        "reporter": "destination",
        "source_workload": "unknown",
        "source_workload_namespace": "web",
        "source_principal": "spiffe://cluster.local/ns/web/sa/billing",
        "source_app": "unknown",
        "source_version": "unknown",
        "source_canonical_service": "unknown",
        "source_canonical_revision": "unknown",
        "source_cluster": "unknown",
        "destination_workload": "payments-v1",
        "destination_workload_namespace": "shop",
        "destination_principal": "spiffe://cluster.local/ns/shop/sa/payments",
        "destination_app": "payments",
        "destination_version": "v1",
        "destination_canonical_service": "payments",
        "destination_canonical_revision": "v1",
        "destination_cluster": "Kubernetes",
        "destination_service": "payments.shop.svc.cluster.local",
        "destination_service_name": "payments",
        "destination_service_namespace": "shop",
        "request_protocol": "http",
        "response_code": "200",
        "grpc_response_status": "",
        "response_flags": "-",
        "connection_security_policy": "mutual_tls",
    }


def test_plain_text_names_no_principal(registry):
    metrics = Metrics(registry=registry)
    metrics.identify("spiffe://cluster.local/ns/shop/sa/payments")
    inbound(metrics)
    (sample,) = samples(registry, "istio_requests_total")
    assert sample.labels["source_principal"] == sample.labels["destination_principal"] == "unknown"
    assert sample.labels["connection_security_policy"] == "none"


def test_an_outbound_call_takes_the_destination_from_the_endpoint(registry):
    metrics = Metrics(Workload.of_labels("billing", "web", {}), None, registry)
    metrics.outbound(
        "payments-v2;shop;payments;v2;Kubernetes", "spiffe://cluster.local/ns/shop/sa/payments",
        Service.of_host("payments.shop.svc.cluster.local"), "grpc", 200, 14, "UC", 0.2, 10, 20,
    )  # fmt: skip
    (sample,) = samples(registry, "istio_requests_total")
    expected = {
        "reporter": "source",
        "source_workload": "billing",
        "destination_workload": "payments-v2",
        "destination_workload_namespace": "shop",
        "destination_canonical_revision": "v2",
        "destination_service_name": "payments",
        "grpc_response_status": "14",
        "response_flags": "UC",
        "request_protocol": "grpc",
        "connection_security_policy": "unknown",
    }
    assert expected.items() <= sample.labels.items()
    assert total(registry, "istio_request_bytes_sum") == 10
    assert total(registry, "istio_response_bytes_sum") == 20


def test_histograms_have_envoys_buckets_and_milliseconds(registry):
    metrics = Metrics(registry=registry)
    inbound(metrics, seconds=0.0123, received=700, sent=0)
    for name in ("istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes"):
        assert tuple(sample.labels["le"] for sample in samples(registry, f"{name}_bucket")) == ISTIO_BUCKETS
    assert total(registry, "istio_request_duration_milliseconds_sum") == pytest.approx(12.3)
    assert total(registry, "istio_request_duration_milliseconds_bucket", le="25.0") == 1
    assert total(registry, "istio_request_duration_milliseconds_bucket", le="10.0") == 0
    assert total(registry, "istio_request_bytes_bucket", le="1000.0") == 1


@pytest.mark.parametrize(
    ("labels", "service", "revision"),
    [
        ({"service.istio.io/canonical-name": "a", "app.kubernetes.io/name": "b", "app": "c"}, "a", "latest"),
        ({"app.kubernetes.io/name": "b", "app": "c", "app.kubernetes.io/version": "1", "version": "2"}, "b", "1"),
        ({"app": "c", "version": "2"}, "c", "2"),
        ({}, "name", "latest"),
    ],
)
def test_canonical_names_follow_istios_order_of_labels(labels, service, revision):
    workload = Workload.of_labels("name", "ns", labels)
    assert (workload.canonical_service, workload.canonical_revision) == (service, revision)


@pytest.mark.parametrize("text", ["", ";;;;", "w", "w;n;s;r;c;too;much"])
def test_endpoint_metadata_of_any_shape_becomes_labels(text):
    workload = Workload.of_endpoint(text)
    assert all(workload)


def test_hosts_and_principals_are_bounded(registry):
    metrics = Metrics(registry=registry)
    for number in range(1000):
        inbound(metrics, f"spiffe://cluster.local/ns/a/sa/{number}", host=f"host-{number}")
    assert total(registry, "istio_requests_total") == 1000
    principals = {sample.labels["source_principal"] for sample in samples(registry, "istio_requests_total")}
    assert len(principals) == 101
    assert "other" in principals
    assert len({sample.labels["destination_service"] for sample in samples(registry, "istio_requests_total")}) <= 101


def test_the_number_of_series_is_bounded(registry):
    metrics = Metrics(registry=registry)
    for number in range(MAX_SERIES + 500):
        inbound(metrics, f"spiffe://a/{number % 60}", status=100 + number // 10)
    assert len(samples(registry, "istio_requests_total")) <= MAX_SERIES + 1
    assert total(registry, "istio_requests_total") == MAX_SERIES + 500


def test_a_grpc_status_out_of_range_is_unknown(registry):
    metrics = Metrics(registry=registry)
    for status in (0, 16, 17, 10**30, -1):
        metrics.inbound("", "a", "grpc", 200, status, "-", 0.1, 0, 0, tls=False)
    statuses = {sample.labels["grpc_response_status"] for sample in samples(registry, "istio_requests_total")}
    assert statuses == {"0", "16", "unknown"}


def test_a_second_mesh_on_the_registry_shares_the_families(registry):
    for _ in range(2):
        inbound(Metrics(registry=registry))
    assert total(registry, "istio_requests_total") == 2


def test_a_reloaded_module_finds_the_families_of_the_first(registry):
    inbound(Metrics(registry=registry))
    saved = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("proxyless.telemetry")}
    try:
        again = importlib.import_module("proxyless.telemetry.metrics")
        assert again is not saved["proxyless.telemetry.metrics"]
        inbound(again.Metrics(registry=registry))
    finally:
        sys.modules.update(saved)
    assert total(registry, "istio_requests_total") == 2


def test_our_own_families(registry):
    metrics = Metrics(registry=registry)
    metrics.set(families.CONFIG_GENERATION, 7)
    metrics.add(families.XDS_NACKS)
    metrics.add(families.XDS_NACKS, amount=2)
    metrics.add(families.INBOUND_DENIED, "policy")
    assert total(registry, "proxyless_config_generation") == 7
    assert total(registry, "proxyless_xds_nacks_total") == 3
    assert total(registry, "proxyless_inbound_denied_total", reason="policy") == 1


def test_bounded_lets_known_values_pass_after_the_limit():
    bounded = Bounded(2, "other")
    assert [bounded(value) for value in ("a", "b", "c", "a", "")] == ["a", "b", "other", "a", "other"]


def test_importing_telemetry_imports_no_prometheus():
    code = "import sys, proxyless.telemetry.recorder as r; r.Telemetry(); print('prometheus_client' in sys.modules, 'opentelemetry' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False False\n"
    )


WORKER = """
import sys
from prometheus_client import CollectorRegistry
from proxyless.telemetry import families
from proxyless.telemetry.recorder import Telemetry
from proxyless.telemetry.metrics import Metrics
metrics = Metrics()
for _ in range(int(sys.argv[1])):
    metrics.inbound("", "app", "http", 200, None, "-", 0.01, 0, 0, tls=False)
metrics.set(families.READY, 1)
metrics.set(families.CONFIG_GENERATION, int(sys.argv[1]))
metrics.set(families.UNSUPPORTED_FIELDS, int(sys.argv[1]))
print("done", flush=True)
sys.stdin.read()
"""


@pytest.mark.field("FC-63")
def test_workers_are_counted_together_and_gauges_are_those_of_the_living(tmp_path):
    """FC-63, by the files alone."""
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        for n in (10, 20, 30)
    ]
    try:
        for worker in workers:
            assert worker.stdout.readline() == b"done\n"
        text = scrape(env)
        assert value(text, "istio_requests_total") == 60
        assert value(text, "proxyless_config_generation") == 10
        assert value(text, "proxyless_config_unsupported_fields") == 30
        assert "pid=" not in text
        workers[0].kill()
        workers[0].communicate()
        for _ in range(2):
            text = scrape(env)
            assert value(text, "istio_requests_total") == 60
            assert value(text, "proxyless_config_generation") == 20
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def scrape(env) -> str:
    code = "import prometheus_client as p; from proxyless.telemetry.exposition import render; print(render(p.REGISTRY)[0].decode())"
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout


def value(text: str, name: str) -> float:
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{")))


def test_a_short_service_name_is_that_of_our_namespace():
    def destination(service: str) -> Service:
        return Telemetry(workload="w", namespace="shop", service=service).metrics.service

    assert destination("payments") == ("payments.shop.svc.cluster.local", "payments", "shop")
    assert destination("payments.myapp.com") == ("payments.myapp.com", "payments.myapp.com", "shop")
    assert destination("") == ("unknown", "unknown", "unknown")
