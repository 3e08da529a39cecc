from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyless.core.matchers import HeaderMatcher, PathMatcher, QueryMatcher, StringMatcher
from proxyless.core.resources import Fraction, Route, RouteConfiguration, RouteMatch, VirtualHost
from proxyless.core.routing import RouteTable, select_route
from tests.core.outbound import Chance, forward, match, request, route, routes


def host(name: str, *domains: str) -> VirtualHost:
    return VirtualHost(name=name, domains=domains, routes=(route(forward(name)),))


def chosen(table: RouteTable, authority: str) -> str | None:
    decision = select_route(table, request(host=authority), Chance())
    return decision.virtual_host if decision is not None else None


HOSTS = RouteTable(
    RouteConfiguration(
        name="r",
        virtual_hosts=(
            host("exact", "a.test"),
            host("suffix", "*.a.test"),
            host("longer-suffix", "*.b.a.test"),
            host("dash-suffix", "*-x.test"),
            host("prefix", "api.*"),
            host("longer-prefix", "api.v1.*"),
            host("any", "*"),
        ),
    )
)


@pytest.mark.parametrize(
    ("authority", "expected"),
    [
        pytest.param("a.test", "exact", id="exact"),
        pytest.param("A.TeSt", "exact", id="case does not matter"),
        pytest.param("x.a.test", "suffix", id="suffix wildcard"),
        pytest.param("x.b.a.test", "longer-suffix", id="the longest suffix wins"),
        pytest.param("y.x.b.a.test", "longer-suffix", id="a wildcard spans labels"),
        pytest.param("my-x.test", "dash-suffix", id="a suffix need not begin at a label"),
        pytest.param(".a.test", "any", id="a wildcard never stands for nothing"),
        pytest.param("api.v1.org", "longer-prefix", id="the longest prefix wins"),
        pytest.param("api.a.test", "suffix", id="suffix beats prefix"),
        pytest.param("api.", "any", id="a prefix wildcard never stands for nothing"),
        pytest.param("other", "any", id="star"),
        pytest.param("a.test:81", "any", id="the port belongs to the name"),
        pytest.param("", "any", id="no host"),
    ],
)
def test_domain_order(authority: str, expected: str) -> None:
    assert chosen(HOSTS, authority) == expected


@pytest.mark.parametrize("authority", ["a.test", "a.test:80", "a.test:x", "A.test:8080"])
def test_port_is_cut_off_when_the_configuration_says_so(authority: str) -> None:
    table = RouteTable(RouteConfiguration(name="r", virtual_hosts=(host("h", "a.test"),), ignore_port_in_host=True))
    assert chosen(table, authority) == "h"


def test_an_ipv6_literal_is_not_mistaken_for_a_port() -> None:
    hosts = (host("h", "[::1]"),)
    table = RouteTable(RouteConfiguration(name="r", virtual_hosts=hosts, ignore_port_in_host=True))
    assert chosen(table, "[::1]") == "h"
    assert chosen(table, "[::1]:80") == "h"


def test_no_virtual_host_and_no_route_are_both_no_decision() -> None:
    table = RouteTable(routes(route(forward("c"), "/only"), domains=("a.test",)))
    assert select_route(table, request("/only", "other"), Chance()) is None
    assert select_route(table, request("/else", "a.test"), Chance()) is None


def test_first_match_wins_not_the_longest() -> None:
    """Two prefixes where one is the beginning of the other: text, in order."""
    table = RouteTable(routes(route(forward("nb"), "/book/a/root"), route(forward("nb1"), "/book/a/root1")))
    assert [
        decision.cluster if (decision := select_route(table, request(path), Chance())) else None
        for path in ("/book/a/root/", "/book/a/root1/x", "/book/a/rootless", "/book/a/roo")
    ] == ["nb", "nb", "nb", None]


def one_route(what: RouteMatch) -> RouteTable:
    return RouteTable(routes(Route(match=what, action=forward("c"))))


@pytest.mark.parametrize(
    ("what", "path", "headers", "expected"),
    [
        pytest.param(match("/a", "exact"), "/a?x", {}, True, id="exact ignores the query"),
        pytest.param(match("/a", "exact"), "/a/", {}, False, id="exact is exact"),
        pytest.param(match("color=red", "regex"), "/list?color=red", {}, False, id="regex sees no query"),
        pytest.param(match("(?i)/LIST(/.*)?", "regex"), "/list", {}, True, id="regex flags are inside"),
        pytest.param(match("/api", "path_separated_prefix"), "/apix", {}, False, id="path separated prefix"),
        pytest.param(match(headers=(HeaderMatcher("X-A", StringMatcher("exact", "1")),)), "/", {"x-a": "1"}, True, id="header"),
        pytest.param(match(headers=(HeaderMatcher("x-a", StringMatcher("exact", "1")),)), "/", {}, False, id="header absent"),
        pytest.param(match(query=(QueryMatcher("c", StringMatcher("exact", "red")),)), "/?c=red&c=blue", {}, True, id="first of a repeated parameter"),
        pytest.param(match(query=(QueryMatcher("c"),)), "/?c", {}, True, id="parameter present"),
        pytest.param(match(grpc=True), "/", {"content-type": "application/grpc+proto"}, True, id="grpc"),
        pytest.param(match(grpc=True), "/", {"content-type": "application/json"}, False, id="no grpc"),
    ],
)  # fmt: skip
def test_everything_of_a_match_must_hold(what: RouteMatch, path: str, headers: dict[str, str], expected: bool) -> None:
    assert (select_route(one_route(what), request(path, headers=headers), Chance()) is not None) is expected


def test_case_insensitive_prefix() -> None:
    table = one_route(RouteMatch(path=PathMatcher("prefix", "/ApI", case_sensitive=False)))
    assert select_route(table, request("/api/x"), Chance()) is not None


def test_fraction_lets_a_share_of_requests_through() -> None:
    table = RouteTable(
        routes(
            Route(match=match(fraction=Fraction(25)), action=forward("some")),
            Route(match=match(), action=forward("rest")),
        )
    )
    rng = random.Random(1)
    counts = Counter(
        decision.cluster for _ in range(4000) if (decision := select_route(table, request(), rng)) is not None
    )
    assert counts["some"] == pytest.approx(1000, abs=120)
    assert counts["rest"] == 4000 - counts["some"]


# -------------------------------------------------------------------------------------------------------- weighted splits


def shares(*clusters: tuple[str, int], draws: int = 4000) -> dict[str, float]:
    table = RouteTable(routes(route(forward(*clusters))))
    rng = random.Random(7)
    counts: Counter[str] = Counter()
    for _ in range(draws):
        decision = select_route(table, request(), rng)
        assert decision is not None
        counts[decision.cluster] += 1
    return {name: count / draws for name, count in counts.items()}


def test_a_destination_of_weight_zero_is_never_chosen_nor_referred_to() -> None:
    assert shares(("v1", 100), ("v2", 0)) == {"v1": 1.0}
    assert RouteTable(routes(route(forward(("v1", 100), ("v2", 0))))).clusters == {"v1"}


def test_one_destination_takes_all_whatever_its_weight() -> None:
    assert shares(("v1", 0)) == {"v1": 1.0}


def test_weights_are_relative() -> None:
    assert shares(("v1", 1), ("v2", 3)) == pytest.approx({"v1": 0.25, "v2": 0.75}, abs=0.03)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(0, 2**53 - 1))
def test_split_takes_the_cluster_whose_range_the_random_value_falls_into(weights: list[int], value: int) -> None:
    names = [f"c{index}" for index in range(len(weights))]
    table = RouteTable(routes(route(forward(*zip(names, weights, strict=True)))))
    decision = select_route(table, request(), Chance(value / 2**53))
    assert decision is not None
    if sum(weights) == 0:
        assert decision.cluster == names[0]
        return
    left = value % sum(weights)
    for name, weight in zip(names, weights, strict=True):
        if left < weight:
            assert decision.cluster == name
            break
        left -= weight


def test_one_random_value_serves_fraction_and_split() -> None:
    split = forward(("a", 50), ("b", 50))
    table = RouteTable(routes(Route(match=match(fraction=Fraction(50)), action=split)))
    for value in range(50):
        decision = select_route(table, request(), Chance(value / 2**53, 0.999))
        assert decision is not None
        assert decision.cluster == "a"


def test_decisions_are_made_once_not_for_each_request() -> None:
    table = RouteTable(routes(route(forward("c"))))
    assert select_route(table, request(), Chance()) is select_route(table, request("/x"), Chance())


def test_cluster_header_names_the_cluster() -> None:
    table = RouteTable(routes(route(forward(cluster_header="X-To"))))
    named = select_route(table, request(headers={"x-to": "blue"}), Chance())
    absent = select_route(table, request(), Chance())
    assert named is not None
    assert absent is not None
    assert (named.cluster, absent.cluster) == ("blue", "")


# ------------------------------------------------------------------------------------------- host index against its twin

LABELS = st.sampled_from(["a", "b", "ab", "x-a"])
NAMES = st.lists(LABELS, min_size=1, max_size=3).map(".".join)
DOMAINS = st.one_of(
    NAMES, NAMES.map(lambda name: f"*.{name}"), NAMES.map(lambda name: f"*-{name}"), NAMES.map(lambda name: f"{name}.*"),
    st.just("*"),
)  # fmt: skip


def slow_find(domains: list[str], name: str) -> str | None:
    """A literal reading of the rule, one pass for each kind."""
    name = name.lower()
    if name in domains:
        return name
    by_length = sorted(domains, key=len, reverse=True)
    for domain in by_length:
        if domain != "*" and domain.startswith("*") and name.endswith(domain[1:]) and len(name) > len(domain) - 1:
            return domain
    for domain in by_length:
        if domain != "*" and domain.endswith("*") and name.startswith(domain[:-1]) and len(name) > len(domain) - 1:
            return domain
    return "*" if "*" in domains else None


@given(st.lists(DOMAINS, unique=True, max_size=8), NAMES.map(str.upper) | NAMES)
def test_host_index_agrees_with_a_literal_reading(domains: list[str], name: str) -> None:
    table = RouteTable(RouteConfiguration(name="r", virtual_hosts=tuple(host(domain, domain) for domain in domains)))
    assert chosen(table, name) == slow_find(domains, name)
