from __future__ import annotations

from typing import Any

import pytest

from proxyless.core.inbound import admit
from proxyless.core.rbac import Rbac
from proxyless.core.request import Address, Peer, Request
from proxyless.core.resources import HttpConnectionManager, TcpProxy
from proxyless.errors import InvalidResourceError
from tests.xds.decoding import (
    ANY_POLICY,
    TCP_PROXY,
    TYPE,
    allow,
    chain_of,
    http_rbac,
    listener,
    listener_and_report,
    manager,
)

NETWORK_RBAC = TYPE + "envoy.extensions.filters.network.rbac.v3.RBAC"
TEMPLATE = TYPE + "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
JWT = "envoy.filters.http.jwt_authn"
INLINE = {
    "virtual_hosts": [
        {"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]}
    ]
}


def allowed(value: dict[str, Any], request: Request | None = None, peer: Peer | None = None) -> bool:
    hcm = value["filter_chains"][0]["filters"][-1]["typed_config"]
    hcm.pop("rds", None)
    hcm["route_config"] = INLINE
    chain = listener(value).filter_chains[0]
    return admit(chain, request or Request("GET", "/", (), authority="a.test"), peer or Peer()).allowed


PEER = Peer(
    tls=True,
    uri_sans=("spiffe://td/ns/a/sa/b",),
    sni="a.test",
    address=Address("10.0.0.1", 9),
    proxied=Address("10.0.0.2", 9),
    local=Address("10.0.0.4", 8080),
    claims={"payload": {"iss": "me", "groups": ["x", "y"]}},
)


@pytest.mark.parametrize(
    "permission",
    [
        {"and_rules": {"rules": [{"any": True}, {"destination_port": 8080}]}},
        {"or_rules": {"rules": [{"destination_port": 1}, {"destination_port": 8080}]}},
        {"not_rule": {"destination_port": 1}},
        {"destination_port_range": {"start": 8000, "end": 8081}},
        {"destination_ip": {"address_prefix": "10.0.0.0", "prefix_len": 29}},
        {"requested_server_name": {"exact": "a.test"}},
        {"header": {"name": ":method", "string_match": {"exact": "GET"}}},
        {"url_path": {"path": {"prefix": "/"}}},
        {"uri_template": {"name": "t", "typed_config": {"@type": TEMPLATE, "path_template": "/**"}}},
        {"metadata": {"filter": JWT, "path": [{"key": "payload"}, {"key": "iss"}], "value": {"present_match": True}}},
    ],
)
def test_each_kind_of_permission_is_understood(permission: dict[str, Any]) -> None:
    assert allowed(allow(permission=permission), peer=PEER)
    assert not allowed(allow(permission={"not_rule": permission}), peer=PEER)


@pytest.mark.parametrize(
    "principal",
    [
        {"and_ids": {"ids": [{"any": True}, {"authenticated": {}}]}},
        {"or_ids": {"ids": [{"authenticated": {"principal_name": {"exact": "x"}}}, {"any": True}]}},
        {"not_id": {"authenticated": {"principal_name": {"exact": "x"}}}},
        {"authenticated": {"principal_name": {"safe_regex": {"regex": ".*/ns/a/.*"}}}},
        {"direct_remote_ip": {"address_prefix": "10.0.0.1", "prefix_len": 32}},
        {"source_ip": {"address_prefix": "10.0.0.2", "prefix_len": 32}},
        {"remote_ip": {"address_prefix": "10.0.0.2", "prefix_len": 32}},
        {"header": {"name": "host", "string_match": {"exact": "a.test"}}},
        {"url_path": {"path": {"exact": "/"}}},
        {
            "metadata": {
                "filter": JWT,
                "path": [{"key": "payload"}, {"key": "groups"}],
                "value": {
                    "or_match": {
                        "value_matchers": [
                            {"string_match": {"exact": "y"}},
                            {"list_match": {"one_of": {"string_match": {"exact": "y"}}}},
                        ]
                    }
                },
            }
        },
    ],
)
def test_each_kind_of_principal_is_understood(principal: dict[str, Any]) -> None:
    assert allowed(allow(principal=principal), peer=PEER)
    assert not allowed(allow(principal={"not_id": principal}), peer=PEER)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (allow(permission={}), "permissions[0]"),
        (allow(permission={"any": False}), "permissions[0].any"),
        (allow(permission={"and_rules": {}}), "permissions[0].and_rules.rules"),
        (allow(permission={"destination_port_range": {"start": 5, "end": 5}}), "permissions[0].destination_port_range"),
        (allow(permission={"destination_ip": {"address_prefix": "10.0.0"}}), "permissions[0].destination_ip"),
        (allow(principal={"filter_state": {"key": "k", "string_match": {"exact": "x"}}}), "principals[0].filter_state"),
        (allow(principal={"not_id": {"not_id": {}}}), "principals[0].not_id.not_id"),
        (
            allow(principal={"metadata": {"filter": "other", "path": [{"key": "a"}], "value": {"null_match": {}}}}),
            "principals[0].metadata",
        ),
    ],
)
def test_a_rule_that_is_not_understood_is_refused_never_skipped(value: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidResourceError) as caught:
        listener(value)
    assert caught.value.field.endswith(f"typed_config.rules.policies[p].{field}")


@pytest.mark.parametrize(
    "rules",
    [
        {"policies": {"p": {"permissions": [{"any": True}]}}},
        {"policies": {"p": {"principals": [{"any": True}]}}},
        {"policies": {"p": {**ANY_POLICY, "condition": {"const_expr": {"bool_value": True}}}}},
    ],
)
def test_incomplete_policies_and_conditions_are_refused(rules: dict[str, Any]) -> None:
    with pytest.raises(InvalidResourceError):
        listener(chain_of(manager(http_rbac(rules=rules))))


def test_a_matcher_tree_is_refused() -> None:
    with pytest.raises(InvalidResourceError, match="matcher"):
        listener(chain_of(manager(http_rbac(matcher={}))))


def test_nesting_is_bounded() -> None:
    rule: dict[str, Any] = {"any": True}
    for _ in range(66):
        rule = {"not_rule": rule}
    with pytest.raises(InvalidResourceError, match="nested"):
        listener(allow(permission=rule))


def test_a_filter_without_rules_allows_and_one_with_empty_rules_denies() -> None:
    assert allowed(chain_of(manager(http_rbac())))
    assert not allowed(chain_of(manager(http_rbac(rules={}))))
    assert allowed(chain_of(manager(http_rbac(rules={"action": "DENY"}))))


def test_filters_keep_their_order_even_under_one_name() -> None:
    value = chain_of(
        manager(http_rbac(rules={"action": "DENY", "policies": {"d": ANY_POLICY}}), http_rbac(rules={"policies": {}}))
    )
    proxy = listener(value).filter_chains[0].filter
    assert isinstance(proxy, HttpConnectionManager)
    assert [rbac.action for _, rbac in proxy.rbac] == ["DENY", "ALLOW"]


PER_ROUTE = {
    "envoy.extensions.filters.http.rbac.v3.RBAC": (
        "envoy.extensions.filters.http.rbac.v3.RBACPerRoute", {"rbac": {"rules": {}}},
    ),
    "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication": (
        "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig", {"requirement_name": "r"},
    ),
    "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz": (
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute", {"check_settings": {}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", PER_ROUTE)
def test_a_disabled_filter_is_switched_on_by_a_route(kind: str) -> None:
    per_route, config = PER_ROUTE[kind]
    route = {"match": {"prefix": "/"}, "route": {"cluster": "c"}}
    filters = {"name": "f", "disabled": True, "typed_config": {"@type": TYPE + kind}}

    def ask(**fields: Any) -> bool:
        routes = {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{**route, **fields}]}]}
        hcm = manager(filters, route_config=routes)
        del hcm["typed_config"]["rds"]
        chain = listener(chain_of(hcm)).filter_chains[0]
        return admit(chain, Request("GET", "/", (), authority="a.test"), Peer()).allowed

    assert ask()
    assert not ask(typed_per_filter_config={"f": {"@type": TYPE + per_route, **config}})


def test_a_disabled_filter_is_as_absent() -> None:
    assert allowed(chain_of(manager({**http_rbac(rules={}), "disabled": True})))


# ------------------------------------------------------------------------------------------------ authorisation not built


def test_jwt_authentication_denies_and_is_reported() -> None:
    jwt = {
        "name": "jwt",
        "typed_config": {
            "@type": TYPE + "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            "rules": [{"match": {"prefix": "/"}}],
        },
    }
    assert not allowed(chain_of(manager(jwt)))
    assert any("jwt" in name for name in listener_and_report(chain_of(manager(jwt)))[1])


EXT_AUTHZ = TYPE + "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz"


def test_external_authorization_denies_everything_without_a_condition() -> None:
    assert not allowed(chain_of(manager({"name": "ext", "typed_config": {"@type": EXT_AUTHZ}})))


def test_istios_custom_policies_deny_only_what_they_match() -> None:
    admin = {"permissions": [{"url_path": {"path": {"prefix": "/admin"}}}], "principals": [{"any": True}]}
    shadow = http_rbac(
        shadow_rules={"action": "DENY", "policies": {"istio-ext-authz-p-ns[a]-policy[b]-rule[0]": admin}},
        shadow_rules_stat_prefix="istio_ext_authz_",
    )
    ext = {
        "name": "ext",
        "typed_config": {
            "@type": EXT_AUTHZ,
            "filter_enabled_metadata": {
                "filter": "envoy.filters.http.rbac",
                "path": [{"key": "istio_ext_authz_shadow_effective_policy_id"}],
                "value": {"string_match": {"prefix": "istio-ext-authz-p-"}},
            },
        },
    }

    def ask(path: str) -> bool:
        return allowed(chain_of(manager(shadow, ext)), Request("GET", path, (), authority="a"))

    assert ask("/open")
    assert not ask("/admin/x")


def test_an_http_filter_that_nobody_knows_is_refused_unless_optional() -> None:
    lua = {
        "name": "lua",
        "typed_config": {"@type": TYPE + "google.protobuf.StringValue", "value": "x"},
    }
    with pytest.raises(InvalidResourceError, match="lua"):
        listener(chain_of(manager(lua)))
    _, report = listener_and_report(chain_of(manager({**lua, "is_optional": True})))
    assert report == ("filter_chains.filters[hcm].http_filters[lua]",)


def test_a_harmless_filter_of_istio_is_neither_refused_nor_reported() -> None:
    stats = {
        "name": "istio.stats",
        "typed_config": {"@type": TYPE + "udpa.type.v1.TypedStruct", "type_url": TYPE + "stats.PluginConfig"},
    }
    assert listener_and_report(chain_of(manager(stats)))[1] == ()


# ---------------------------------------------------------------------------------------------------------------- network


def network_rbac(**fields: Any) -> dict[str, Any]:
    return {"name": "nrbac", "typed_config": {"@type": NETWORK_RBAC, "stat_prefix": "s", **fields}}


PROXY = {"name": "tcp", "typed_config": {"@type": TCP_PROXY, "stat_prefix": "s", "cluster": "c"}}


def test_network_rbac_stands_before_the_proxy() -> None:
    tcp = listener(chain_of(network_rbac(rules={}), PROXY)).filter_chains[0].filter
    assert isinstance(tcp, TcpProxy)
    assert tcp.rbac == (("nrbac", Rbac("ALLOW")),)
    http = listener(chain_of(network_rbac(rules={}), manager())).filter_chains[0].filter
    assert isinstance(http, HttpConnectionManager)
    assert http.rbac == (("nrbac", Rbac("ALLOW")),)


def test_network_rbac_sees_no_http() -> None:
    policy = {"permissions": [{"url_path": {"path": {"exact": "/"}}}], "principals": [{"any": True}]}
    with pytest.raises(InvalidResourceError, match="network RBAC"):
        listener(chain_of(network_rbac(rules={"policies": {"p": policy}}), PROXY))


def test_network_external_authorization_denies() -> None:
    ext = {
        "name": "ext",
        "typed_config": {
            "@type": TYPE + "udpa.type.v1.TypedStruct",
            "type_url": TYPE + "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz",
        },
    }
    tcp = listener(chain_of(ext, PROXY)).filter_chains[0].filter
    assert isinstance(tcp, TcpProxy)
    assert not tcp.rbac[0][1].evaluate(Request("", "", (), authority=""), Peer()).allowed
