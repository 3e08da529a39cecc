from __future__ import annotations

from typing import Any

import pytest

from proxyless.core.matchers import StringMatcher
from proxyless.core.request import Address
from proxyless.core.resources import CircuitBreakers, ClusterType, Health, LbPolicy, TlsMaterial
from proxyless.errors import InvalidResourceError
from tests.xds.decoding import TYPE, assignment, cluster, cluster_and_report, endpoint

UPSTREAM = TYPE + "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
RAW = TYPE + "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
POLICIES = TYPE + "envoy.extensions.load_balancing_policies."


# ------------------------------------------------------------------------------------------------------------- discovery


def test_the_load_assignment_is_named_by_the_service_or_by_the_cluster() -> None:
    assert cluster({}).eds_name == "c"
    named = {"service_name": "s", "eds_config": {"ads": {}}}
    assert cluster({"eds_cluster_config": named}).eds_name == "s"


@pytest.mark.parametrize("kind", ["STATIC", "STRICT_DNS", "LOGICAL_DNS"])
def test_other_types_carry_their_endpoints(kind: str) -> None:
    inline = {"cluster_name": "c", "endpoints": [{"lb_endpoints": [endpoint()]}]}
    found = cluster({"type": kind, "load_assignment": inline})
    assert found.assignment is not None
    assert found.assignment.localities[0].endpoints[0].address == Address("10.0.0.1", 80)


def test_a_black_hole_has_no_endpoints_and_an_original_destination_none_of_its_own() -> None:
    hole = cluster({"type": "STATIC"})
    assert hole.assignment is not None
    assert hole.assignment.localities == ()
    passthrough = cluster({"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"})
    assert (passthrough.type, passthrough.assignment) == (ClusterType.ORIGINAL_DST, None)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"eds_cluster_config": {"eds_config": {"path": "/x"}}}, "eds_cluster_config.eds_config"),
        ({"cluster_type": {"name": "envoy.clusters.aggregate"}}, "cluster_type"),
        ({"type": "STATIC", "load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": [endpoint("h.test")]}]}},
         "load_assignment"),
        ({"type": "LOGICAL_DNS", "load_assignment": {"cluster_name": "c"}}, "load_assignment"),
        ({"connect_timeout": "0s"}, "connect_timeout"),
        ({"lb_subset_config": {"subset_selectors": []}}, "lb_subset_config"),
        ({"common_lb_config": {"healthy_panic_threshold": {"value": 101}}}, "common_lb_config.healthy_panic_threshold"),
        ({"outlier_detection": {"max_ejection_percent": 101}}, "outlier_detection.max_ejection_percent"),
        ({"outlier_detection": {"interval": "-1s"}}, "outlier_detection.interval"),
        ({"outlier_detection": {"base_ejection_time": "10s", "max_ejection_time": "5s"}},
         "outlier_detection.max_ejection_time"),
        ({"load_balancing_policy": {"policies": [{"typed_extension_config": {"name": "x"}}]}},
         "load_balancing_policy.policies"),
        ({"lb_policy": "LOAD_BALANCING_POLICY_CONFIG"}, "lb_policy"),
    ],
)  # fmt: skip
def test_a_cluster_that_cannot_be_used_is_refused_by_its_field(value: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidResourceError) as caught:
        cluster(value)
    assert (caught.value.name, caught.value.field) == ("c", field)


# ------------------------------------------------------------------------------------------------------------- settings


def test_envoys_defaults() -> None:
    found = cluster({})
    assert (found.connect_timeout, found.idle_timeout, found.panic_threshold) == (5.0, 3600.0, 50.0)
    assert (found.lb_policy, found.breakers, found.outlier) == (LbPolicy.ROUND_ROBIN, CircuitBreakers(), None)


def test_an_empty_panic_threshold_is_zero() -> None:
    assert cluster({"common_lb_config": {"healthy_panic_threshold": {}}}).panic_threshold == 0


def test_breakers_are_those_of_the_default_priority() -> None:
    thresholds = [{"priority": "HIGH", "max_requests": 1}, {"max_requests": 2, "retry_budget": {}}]
    breakers = cluster({"circuit_breakers": {"thresholds": thresholds}}).breakers
    assert (breakers.max_requests, breakers.max_connections) == (2, 1024)
    assert (breakers.retry_budget_percent, breakers.min_retry_concurrency) == (20.0, 3)


def test_an_empty_outlier_detection_has_envoys_defaults() -> None:
    found = cluster({"outlier_detection": {}}).outlier
    assert found is not None
    assert (found.consecutive_5xx, found.interval, found.base_ejection_time) == (5, 10.0, 30.0)
    assert (found.max_ejection_percent, found.enforcing_consecutive_gateway_failure) == (10, 0)
    long = cluster({"outlier_detection": {"base_ejection_time": "400s"}}).outlier
    assert long is not None
    assert long.max_ejection_time == 400


def test_the_first_load_balancing_policy_that_is_known_counts() -> None:
    def policy(name: str, **config: Any) -> dict[str, Any]:
        return {"typed_extension_config": {"name": "x", "typed_config": {"@type": name, **config}}}

    unknown = policy(TYPE + "google.protobuf.StringValue", value="x")
    least = policy(POLICIES + "least_request.v3.LeastRequest")
    random = policy(POLICIES + "random.v3.Random")
    wrapped = policy(POLICIES + "wrr_locality.v3.WrrLocality", endpoint_picking_policy={"policies": [random]})
    assert cluster({"load_balancing_policy": {"policies": [unknown, least]}}).lb_policy is LbPolicy.LEAST_REQUEST
    assert cluster({"load_balancing_policy": {"policies": [wrapped, least]}}).lb_policy is LbPolicy.RANDOM


def test_a_load_balancing_policy_that_nobody_acts_on_is_reported() -> None:
    found, report = cluster_and_report({"lb_policy": "RING_HASH"})
    assert found.lb_policy is LbPolicy.RING_HASH
    assert report == ("lb_policy: RING_HASH",)


def test_http_options() -> None:
    options = {
        "@type": TYPE + HTTP_OPTIONS,
        "explicit_http_config": {"http2_protocol_options": {}},
        "common_http_protocol_options": {"idle_timeout": "5s", "max_requests_per_connection": 3},
    }
    found = cluster({"typed_extension_protocol_options": {HTTP_OPTIONS: options}})
    assert (found.http2, found.idle_timeout, found.max_requests_per_connection) == (True, 5.0, 3)
    downstream = {"@type": TYPE + HTTP_OPTIONS, "use_downstream_protocol_config": {"http2_protocol_options": {}}}
    assert not cluster({"typed_extension_protocol_options": {HTTP_OPTIONS: downstream}}).http2


def test_istios_names_come_from_metadata() -> None:
    istio = {"services": [{"host": "a.b", "name": "a", "namespace": "ns"}], "subset": "v1", "external": True}
    found = cluster({"metadata": {"filter_metadata": {"istio": istio}}})
    assert (found.service, found.service_namespace, found.subset, found.external) == ("a.b", "ns", "v1", True)


# ------------------------------------------------------------------------------------------------------------------- TLS


def tls_socket(**context: Any) -> dict[str, Any]:
    sni = context.pop("sni", "")
    config = {"@type": UPSTREAM, "sni": sni, "common_tls_context": context}
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}


def test_automatic_mutual_tls_is_a_match_on_the_endpoint() -> None:
    socket = tls_socket(
        sni="outbound_.80_._.a",
        tls_certificate_sds_secret_configs=[{"name": "default"}],
        combined_validation_context={
            "default_validation_context": {"match_subject_alt_names": [{"exact": "spiffe://td/ns/a/sa/b"}]},
            "validation_context_sds_secret_config": {"name": "ROOTCA"},
        },
    )
    matches = [
        {"name": "tlsMode-istio", "match": {"tlsMode": "istio"}, "transport_socket": socket},
        {"name": "off", "transport_socket": {"name": "raw", "typed_config": {"@type": RAW}}},
    ]
    first, second = cluster({"transport_socket_matches": matches}).tls_matches
    assert first.match == {"tlsMode": "istio"}
    assert first.tls is not None
    assert first.tls.san_matchers == (StringMatcher("exact", "spiffe://td/ns/a/sa/b"),)
    assert (first.tls.sni, first.tls.certificate) == ("outbound_.80_._.a", TlsMaterial.MESH)
    assert (second.match, second.tls) == ({}, None)


def test_simple_tls_verifies_with_the_systems_trust_store() -> None:
    found = cluster({"transport_socket": tls_socket(validation_context_sds_secret_config={"name": "file-root:system"})})
    assert found.tls is not None
    assert (found.tls.certificate, found.tls.validation) == (TlsMaterial.NONE, TlsMaterial.SYSTEM)


def test_names_of_a_kind_that_is_not_checked_are_refused() -> None:
    typed = [{"san_type": "EMAIL", "matcher": {"exact": "a@b"}}]
    with pytest.raises(InvalidResourceError, match="EMAIL"):
        cluster({"transport_socket": tls_socket(validation_context={"match_typed_subject_alt_names": typed})})


# ------------------------------------------------------------------------------------------------------------- endpoints


def test_endpoints_carry_what_the_balancer_and_the_metrics_need() -> None:
    metadata = {
        "filter_metadata": {
            "envoy.transport_socket_match": {"tlsMode": "istio"},
            "istio": {"workload": "w;ns;s;v1;Kubernetes"},
        }
    }
    value = assignment(
        {
            "endpoints": [
                {
                    "locality": {"region": "r", "zone": "z"},
                    "priority": 1,
                    "load_balancing_weight": 7,
                    "lb_endpoints": [
                        endpoint(load_balancing_weight=3, health_status="DRAINING", metadata=metadata),
                        {"endpoint": {"address": {"pipe": {"path": "/run/s"}}}},
                    ],
                }
            ]
        }
    )
    locality = value.localities[0]
    assert (locality.region, locality.zone, locality.priority, locality.weight) == ("r", "z", 1, 7)
    first, second = locality.endpoints
    assert (first.weight, first.health, first.workload) == (3, Health.DRAINING, "w;ns;s;v1;Kubernetes")
    assert first.socket_match == {"tlsMode": "istio"}
    assert (second.address, second.weight, second.health) == (Address("/run/s", 0), 1, Health.UNKNOWN)


@pytest.mark.parametrize(
    "group",
    [
        {"priority": 129},
        {"lb_endpoints": [{"endpoint_name": "x"}]},
        {"lb_endpoints": [{"endpoint": {}}]},
        {"lb_endpoints": [endpoint(load_balancing_weight=0)]},
        {"lb_endpoints": [endpoint(port=70000)]},
        {"lb_endpoints": [endpoint(host="")]},
        {"lb_endpoints": [endpoint(load_balancing_weight=2**32 - 1), endpoint(load_balancing_weight=1)]},
        {"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": "a", "named_port": "http"}}}}]},
    ],
)
def test_an_endpoint_that_cannot_be_reached_is_refused(group: dict[str, Any]) -> None:
    with pytest.raises(InvalidResourceError) as caught:
        assignment({"endpoints": [group]})
    assert caught.value.field.startswith("endpoints[0]")


def test_an_empty_assignment_is_valid() -> None:
    assert assignment({}).localities == ()
