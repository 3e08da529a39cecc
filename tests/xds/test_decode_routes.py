from __future__ import annotations

from typing import Any

import pytest

from proxyless.core.rbac import Rbac
from proxyless.core.resources import (
    AppendAction,
    DirectResponse,
    Fraction,
    HeaderMutation,
    Redirect,
    RouteAction,
)
from proxyless.errors import InvalidResourceError
from tests.xds.decoding import ANY_POLICY, TYPE, route_of, routes, routes_and_report

FAULT = TYPE + "envoy.extensions.filters.http.fault.v3.HTTPFault"
RBAC_PER_ROUTE = TYPE + "envoy.extensions.filters.http.rbac.v3.RBACPerRoute"
FILTER_CONFIG = TYPE + "envoy.config.route.v3.FilterConfig"
TEMPLATE = TYPE + "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"


def action(**route: Any) -> RouteAction:
    found = routes(route_of({"route": {"cluster": "c", **route}})).virtual_hosts[0].routes[0].action
    assert isinstance(found, RouteAction)
    return found


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"virtual_hosts": [{"name": "v", "domains": []}]}, "virtual_hosts[0].domains"),
        ({"virtual_hosts": [{"name": "v", "domains": ["a", "A"]}]}, "virtual_hosts[0].domains"),
        (
            {"virtual_hosts": [{"name": "v", "domains": ["*"]}, {"name": "w", "domains": ["*"]}]},
            "virtual_hosts[1].domains",
        ),
        ({"virtual_hosts": [{"name": "v", "domains": ["a.*.b"]}]}, "virtual_hosts[0].domains[0]"),
        ({"virtual_hosts": [{"name": "v", "domains": ["*a*"]}]}, "virtual_hosts[0].domains[0]"),
        ({"vhds": {"config_source": {"ads": {}}}}, "vhds"),
    ],
)
def test_virtual_hosts_that_cannot_be_chosen_are_refused(value: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidResourceError) as caught:
        routes(value)
    assert (caught.value.name, caught.value.field) == ("rc", field)


ROUTE = "virtual_hosts[0].routes[0]"


@pytest.mark.parametrize(
    ("route", "field"),
    [
        ({"match": {}}, "match.path_specifier"),
        ({"match": {"safe_regex": {"regex": ""}}}, "match.safe_regex"),
        ({"match": {"safe_regex": {"regex": "(?=a)"}}}, "match.safe_regex"),
        ({"match": {"path_separated_prefix": "/a/"}}, "match.path_separated_prefix"),
        ({"match": {"prefix": "/", "tls_context": {"presented": True}}}, "match.tls_context"),
        ({"match": {"connect_matcher": {}}}, "match.connect_matcher"),
        (
            {"match": {"prefix": "/", "headers": [{"name": "a"}, {"name": "x", "string_match": {"prefix": ""}}]}},
            "match.headers[1].string_match",
        ),
        (
            {
                "match": {
                    "prefix": "/",
                    "headers": [{"name": "x", "string_match": {"safe_regex": {"regex": "a"}, "ignore_case": True}}],
                }
            },
            "match.headers[0].string_match",
        ),
        ({"route": {"timeout": "1s"}}, "route.cluster_specifier"),
        ({"route": {"cluster": "c", "timeout": "-1s"}}, "route.timeout"),
        (
            {"route": {"weighted_clusters": {"clusters": [{"name": "c", "weight": 0}]}}},
            "route.weighted_clusters.clusters",
        ),
        ({"route": {"weighted_clusters": {}}}, "route.weighted_clusters.clusters"),
        ({"route": {"weighted_clusters": {"clusters": [{"weight": 1}]}}}, "route.weighted_clusters.clusters[0].name"),
        ({"route": {"cluster": "c", "prefix_rewrite": "/a\nb"}}, "route.prefix_rewrite"),
        ({"route": {"cluster": "c", "host_rewrite_literal": "a\rb"}}, "route.host_rewrite_literal"),
        (
            {"route": {"cluster": "c", "prefix_rewrite": "/", "regex_rewrite": {"pattern": {"regex": "a"}}}},
            "route.regex_rewrite",
        ),
        (
            {"route": {"cluster": "c", "regex_rewrite": {"pattern": {"regex": "a"}, "substitution": r"\x"}}},
            "route.regex_rewrite.substitution",
        ),
        (
            {
                "route": {
                    "cluster": "c",
                    "retry_policy": {"retry_back_off": {"base_interval": "2s", "max_interval": "1s"}},
                }
            },
            "route.retry_policy.retry_back_off.max_interval",
        ),
        ({"redirect": {"host_redirect": "a\nb"}}, "redirect.host_redirect"),
        ({"direct_response": {"status": 99}}, "direct_response.status"),
        ({"direct_response": {"status": 200, "body": {"inline_string": "x" * 5000}}}, "direct_response.body"),
        (
            {"request_headers_to_add": [{"header": {"key": "Host", "value": "x"}}]},
            "request_headers_to_add[0].header.key",
        ),
        (
            {"request_headers_to_add": [{"header": {"key": "a", "value": "%A"}}]},
            "request_headers_to_add[0].header.value",
        ),
        (
            {"request_headers_to_add": [{"header": {"key": "a b", "value": "1"}}]},
            "request_headers_to_add[0].header.key",
        ),
        ({"response_headers_to_remove": [":status"]}, "response_headers_to_remove[0]"),
    ],
)
def test_a_route_that_envoy_refuses_is_refused_by_its_path(route: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidResourceError) as caught:
        routes(route_of(route))
    assert caught.value.field == f"{ROUTE}.{field}"
    assert caught.value.reason


def test_a_route_without_action_or_match_is_refused() -> None:
    for route, field in (({"match": {"prefix": "/"}}, "action"), ({"route": {"cluster": "c"}}, "match")):
        with pytest.raises(InvalidResourceError) as caught:
            routes({"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]})
        assert caught.value.field == f"{ROUTE}.{field}"


def test_a_rewrite_of_the_prefix_needs_a_prefix() -> None:
    match = {"path_match_policy": {"name": "t", "typed_config": {"@type": TEMPLATE, "path_template": "/*"}}}
    for route in ({"route": {"cluster": "c", "prefix_rewrite": "/x"}}, {"redirect": {"prefix_rewrite": "/x"}}):
        with pytest.raises(InvalidResourceError, match="template"):
            routes(route_of({"match": match, **route}))


# ---------------------------------------------------------------------------------------------------- what is understood


def test_domains_are_lower_case() -> None:
    value = routes({"virtual_hosts": [{"name": "v", "domains": ["A.Test", "*.B.test", "api.*"]}]})
    assert value.virtual_hosts[0].domains == ("a.test", "*.b.test", "api.*")


def test_weights_keep_entries_of_weight_zero_and_their_sum() -> None:
    clusters = [{"name": "a", "weight": 90}, {"name": "b", "weight": 10}, {"name": "z", "weight": 0}]
    found = action(cluster=None, weighted_clusters={"clusters": clusters})
    assert [(each.name, each.weight) for each in found.clusters] == [("a", 90), ("b", 10), ("z", 0)]
    assert found.total_weight == 100


def test_absent_and_zero_timeouts_differ() -> None:
    assert action().timeout is None
    assert action(timeout="0s").timeout == 0
    assert action(timeout="1.5s").timeout == 1.5


def test_a_retry_policy_has_envoys_defaults() -> None:
    found = action(retry_policy={"retry_on": "5xx, reset,,unknown-word"}).retry
    assert found is not None
    assert found.retry_on == {"5xx", "reset", "unknown-word"}
    assert (found.num_retries, found.base_interval, found.max_interval) == (1, 0.025, 0.25)
    assert found.per_try_timeout is None


def test_the_virtual_hosts_retry_policy_serves_routes_without_one() -> None:
    value = routes(route_of({}, retry_policy={"retry_on": "5xx", "num_retries": 7}))
    found = value.virtual_hosts[0].routes[0].action
    assert isinstance(found, RouteAction)
    assert found.retry is not None
    assert found.retry.num_retries == 7
    own = route_of({"route": {"cluster": "c", "retry_policy": {"retry_on": "reset"}}}, retry_policy={"num_retries": 7})
    found = routes(own).virtual_hosts[0].routes[0].action
    assert isinstance(found, RouteAction)
    assert found.retry is not None
    assert found.retry.num_retries == 1


def test_redirects_and_direct_responses() -> None:
    redirect = routes(route_of({"redirect": {"https_redirect": True, "response_code": "PERMANENT_REDIRECT"}}))
    assert redirect.virtual_hosts[0].routes[0].action == Redirect(status=308, scheme="https")
    direct = routes(route_of({"direct_response": {"status": 503, "body": {"inline_string": "x"}}}))
    assert direct.virtual_hosts[0].routes[0].action == DirectResponse(status=503, body=b"x")


def test_header_mutations_are_literal_and_ordered() -> None:
    value = routes(
        route_of(
            {
                "request_headers_to_add": [
                    {"header": {"key": "X-A", "value": "100%%"}},
                    {"header": {"key": "x-b", "value": "1"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"},
                    {"header": {"key": "x-empty", "value": ""}},
                    {"header": {"key": "x-kept", "value": ""}, "keep_empty_value": True},
                ],
                "request_headers_to_remove": ["X-C"],
            }
        )
    )
    mutations = value.virtual_hosts[0].routes[0].request_headers
    assert mutations.add == (
        HeaderMutation(b"x-a", b"100%"),
        HeaderMutation(b"x-b", b"1", AppendAction.OVERWRITE_IF_EXISTS_OR_ADD),
        HeaderMutation(b"x-kept", b""),
    )
    assert mutations.remove == (b"x-c",)


def test_a_header_with_a_command_is_reported_and_not_sent_raw() -> None:
    add = [{"header": {"key": "x-b", "value": "%REQ(x-c)%"}}]
    value, report = routes_and_report(route_of({"request_headers_to_add": add}))
    assert not value.virtual_hosts[0].routes[0].request_headers
    assert report == ("virtual_hosts.routes.request_headers_to_add.header[x-b]: substitution commands",)


def test_the_istio_resource_behind_a_route_is_kept() -> None:
    metadata = {"filter_metadata": {"istio": {"config": "/apis/x/virtual-service/a"}}}
    assert routes(route_of({"metadata": metadata})).virtual_hosts[0].routes[0].origin == "/apis/x/virtual-service/a"


# ----------------------------------------------------------------------------------------------------- per-filter config


def fault_of(value: dict[str, Any]) -> Any:
    return routes(value).virtual_hosts[0].routes[0].fault


def test_a_fault_without_percentage_never_happens() -> None:
    config = {"fault": {"@type": FAULT, "abort": {"http_status": 503}, "delay": {"fixed_delay": "1s"}}}
    fault = fault_of(route_of({"typed_per_filter_config": config}))
    assert (fault.abort_status, fault.abort_fraction) == (503, Fraction(0, 100))
    assert (fault.delay, fault.delay_fraction) == (1.0, Fraction(0, 100))


def test_the_most_specific_fault_wins_whole() -> None:
    outer = {"fault": {"@type": FAULT, "delay": {"fixed_delay": "9s"}}}
    inner = {"fault": {"@type": FAULT, "abort": {"http_status": 500, "percentage": {"numerator": 5}}}}
    assert fault_of(route_of({}, typed_per_filter_config=outer)).delay == 9
    fault = fault_of(route_of({"typed_per_filter_config": inner}, typed_per_filter_config=outer))
    assert (fault.delay, fault.abort_status) == (0, 500)


def test_a_fault_with_a_condition_that_is_not_tested_is_not_injected_at_all() -> None:
    config = {"fault": {"@type": FAULT, "abort": {"http_status": 503}, "headers": [{"name": "x-only"}]}}
    value, report = routes_and_report(route_of({"typed_per_filter_config": config}))
    assert value.virtual_hosts[0].routes[0].fault is None
    assert report == ("virtual_hosts.routes.typed_per_filter_config[fault].headers",)


def test_rbac_can_be_replaced_or_switched_off_for_a_route() -> None:
    config = {
        "a": {"@type": RBAC_PER_ROUTE, "rbac": {"rules": {"action": "DENY", "policies": {"p": ANY_POLICY}}}},
        "b": {"@type": RBAC_PER_ROUTE},
        "c": {"@type": FILTER_CONFIG, "disabled": True, "config": {"@type": RBAC_PER_ROUTE}},
    }
    found = routes(route_of({"typed_per_filter_config": config})).virtual_hosts[0].routes[0].rbac
    assert isinstance(found["a"], Rbac)
    assert found["a"].action == "DENY"
    assert found["b"] is None
    assert found["c"] is None


def test_a_filter_type_that_nobody_knows_is_refused_unless_optional() -> None:
    unknown = {"@type": TYPE + "google.protobuf.BoolValue", "value": True}
    with pytest.raises(InvalidResourceError, match=r"typed_per_filter_config\[x\]"):
        routes(route_of({"typed_per_filter_config": {"x": unknown}}))
    routes(
        route_of({"typed_per_filter_config": {"x": {"@type": FILTER_CONFIG, "is_optional": True, "config": unknown}}})
    )
