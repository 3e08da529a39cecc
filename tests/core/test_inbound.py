from __future__ import annotations

from typing import Any

import pytest

from proxyless.core.inbound import Admission, admit, admit_connection
from proxyless.core.matchers import CidrMatcher, PathMatcher, StringMatcher
from proxyless.core.rbac import AddressRule, AnyRule, AuthenticatedRule, Policy, Rbac, Rule, UrlPathRule
from proxyless.core.request import Address, Peer, Request
from proxyless.core.resources import (
    DirectResponse,
    EscapedSlashes,
    FilterChain,
    HttpConnectionManager,
    PathNormalization,
    Redirect,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    TcpProxy,
    VirtualHost,
    WeightedCluster,
)
from proxyless.core.routing import RouteTable

ANY = AnyRule()
BASE = PathNormalization(normalize=True)
APP = RouteAction(clusters=(WeightedCluster(name="inbound|8080||", weight=1),), total_weight=1)


def route(prefix: str = "/", action: Any = APP, **changes: Any) -> Route:
    return Route(match=RouteMatch(path=PathMatcher("prefix", prefix)), action=action, **changes)


def table(*routes: Route) -> RouteConfiguration:
    return RouteConfiguration(name="inbound", virtual_hosts=(VirtualHost(name="v", domains=("*",), routes=routes),))


def rbac(action: Any, rule: Rule, name: str = "p", **changes: Any) -> Rbac:
    return Rbac(action, (Policy(name, (rule,), (ANY,)),), **changes)


def chain(*filters: tuple[str, Rbac], routes: RouteConfiguration | None = None, **changes: Any) -> FilterChain:
    changes.setdefault("paths", BASE)
    return FilterChain(filter=HttpConnectionManager(routes=routes or table(route()), rbac=filters, **changes))


def judge(found: FilterChain, path: str = "/", peer: Peer | None = None, **headers: str) -> Admission:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return admit(found, Request("GET", path, raw, authority="a.test", query="q=1"), peer or Peer())


DENY_ADMIN = rbac("DENY", UrlPathRule(StringMatcher("prefix", "/admin")))


def test_without_policies_the_application_is_asked() -> None:
    verdict = judge(chain(), "/a")
    assert (verdict.allowed, verdict.status, verdict.flag, verdict.policy) == (True, 200, "-", "")


def test_a_denial_is_a_403_that_names_the_policy_for_the_log_only() -> None:
    verdict = judge(chain(("rbac", rbac("DENY", ANY, "a policy"))))
    assert not verdict.allowed
    assert (verdict.status, verdict.body) == (403, b"RBAC: access denied")
    assert verdict.details == "rbac_access_denied_matched_policy[a_policy]"
    assert verdict.policy == "a policy"


def test_an_allow_filter_without_match_denies_with_none() -> None:
    verdict = judge(chain(("rbac", Rbac("ALLOW"))))
    assert verdict.details == "rbac_access_denied_matched_policy[none]"


def test_filters_decide_in_order_and_the_first_denial_ends_it() -> None:
    filters = (("deny", rbac("DENY", ANY, "first")), ("allow", Rbac("ALLOW")))
    assert judge(chain(*filters)).policy == "first"


def test_the_allowing_policy_is_reported() -> None:
    filters = (("deny", DENY_ADMIN), ("allow", rbac("ALLOW", ANY, "yes")))
    assert judge(chain(*filters), "/a").policy == "yes"


@pytest.mark.parametrize("path", ["/x/../admin", "/%61dmin", "/./admin", r"/x\..\admin", "/x/%2e%2e/admin"])
def test_policy_sees_the_normalised_path_and_so_does_the_application(path: str) -> None:
    assert not judge(chain(("rbac", DENY_ADMIN)), path).allowed
    assert judge(chain(), path).request.path == "/admin"


def test_the_query_survives_normalisation() -> None:
    assert judge(chain(), "/a/./b").request.query == "q=1"


def test_a_path_that_cannot_be_normalised_is_a_400() -> None:
    verdict = judge(chain(), "/a%00")
    assert (verdict.allowed, verdict.status, verdict.details) == (False, 400, "path_normalization_failed")


def test_escaped_slashes_can_redirect_but_not_grpc() -> None:
    found = chain(paths=PathNormalization(escaped_slashes=EscapedSlashes.UNESCAPE_AND_REDIRECT))
    verdict = judge(found, "/a%2Fb")
    assert (verdict.status, verdict.headers) == (307, ((b"location", b"/a/b?q=1"),))
    assert judge(found, "/a%2Fb", content_type="application/grpc").status == 400


def test_no_route_is_a_404_but_policy_comes_first() -> None:
    routes = table(route("/only"))
    verdict = judge(chain(routes=routes), "/other")
    assert (verdict.allowed, verdict.status, verdict.flag) == (False, 404, "NR")
    assert judge(chain(("rbac", Rbac("ALLOW")), routes=routes), "/other").status == 403


def test_a_route_overrides_or_disables_a_filter_by_name() -> None:
    routes = table(
        route("/open", rbac={"rbac": None}),
        route("/strict", rbac={"rbac": Rbac("ALLOW")}),
        route("/", rbac={"x": None}),
    )
    found = chain(("rbac", rbac("DENY", ANY)), routes=routes)
    assert judge(found, "/open").allowed
    assert judge(found, "/strict").policy == "none"
    assert not judge(found, "/else").allowed


def test_a_route_that_does_not_forward_is_the_application() -> None:
    assert judge(chain(routes=table(route(action=None)))).allowed


def test_direct_responses_and_redirects_are_answered() -> None:
    direct = judge(chain(routes=table(route(action=DirectResponse(status=418, body=b"tea")))))
    assert (direct.allowed, direct.status, direct.body) == (False, 418, b"tea")
    moved = judge(chain(routes=table(route(action=Redirect(path="/new")))))
    assert (moved.allowed, moved.status) == (False, 301)
    assert moved.headers[0][1].endswith(b"/new?q=1")


def test_routes_by_name_are_given_by_the_caller_or_there_are_none() -> None:
    found = FilterChain(filter=HttpConnectionManager(rds="inbound"))
    request = Request("GET", "/", (), authority="a")
    assert admit(found, request, Peer()).status == 404
    assert admit(found, request, Peer(), table=RouteTable(table(route()))).allowed


def test_shadow_rules_are_reported_and_change_nothing() -> None:
    dry = rbac("DENY", ANY, "dry")
    verdict = judge(chain(("a", Rbac("ALLOW", rbac("ALLOW", ANY).policies, dry, "istio_dry_run_deny_"))))
    assert verdict.allowed
    assert verdict.shadow == (("istio_dry_run_deny_", False, "dry"),)


def test_a_chain_without_a_proxy_admits_nothing() -> None:
    assert not judge(FilterChain()).allowed
    assert not admit_connection(FilterChain(), Peer()).allowed


def test_a_connection_is_judged_by_network_filters() -> None:
    named = AuthenticatedRule(StringMatcher("exact", "spiffe://td/ns/a/sa/b"))
    proxy = TcpProxy(clusters=APP.clusters, rbac=(("rbac", Rbac("ALLOW", (Policy("p", (ANY,), (named,)),))),))
    found = FilterChain(filter=proxy)
    assert admit_connection(found, Peer(tls=True, uri_sans=("spiffe://td/ns/a/sa/b",))).allowed
    assert not admit_connection(found, Peer()).allowed
    assert not judge(found).allowed


# ------------------------------------------------------------------------------------------------------- client address

FROM_10 = Policy("p", (ANY,), (AddressRule("remote", CidrMatcher("10.0.0.0", 8)),))


@pytest.mark.parametrize(
    ("forwarded", "settings", "allowed"),
    [
        ("10.1.1.1", {}, True),
        ("10.1.1.1, 192.0.2.1", {}, False),
        ("192.0.2.1,10.1.1.1", {}, True),
        ("10.1.1.1,192.0.2.1", {"xff_num_trusted_hops": 1}, True),
        ("10.1.1.1", {"use_remote_address": True}, False),
        ("10.1.1.1", {"use_remote_address": True, "xff_num_trusted_hops": 1}, True),
        ("10.1.1.1", {"xff_num_trusted_hops": 5}, False),
        ("not an address", {}, False),
        ("", {}, False),
    ],
)
def test_the_remote_address_comes_from_forwarded_for_as_envoy_reads_it(
    forwarded: str, settings: dict[str, Any], allowed: bool
) -> None:
    found = chain(("rbac", Rbac("ALLOW", (FROM_10,))), **settings)
    peer = Peer(address=Address("192.0.2.9", 1))
    assert judge(found, peer=peer, x_forwarded_for=forwarded).allowed is allowed


def test_without_the_header_the_peer_is_the_remote_address() -> None:
    found = chain(("rbac", Rbac("ALLOW", (FROM_10,))))
    assert judge(found, peer=Peer(address=Address("10.0.0.1", 1))).allowed
