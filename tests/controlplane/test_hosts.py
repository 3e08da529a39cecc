"""Host names with wildcards."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyless.controlplane import hosts

LABELS = st.lists(st.sampled_from(["a", "b", "shop", "example", "com"]), min_size=1, max_size=4).map(".".join)
HOSTS = st.one_of(LABELS, LABELS.map("*.{}".format), st.just("*"))


@pytest.mark.parametrize(
    ("left", "right", "common"),
    [
        ("shop.example.com", "shop.example.com", True),
        ("shop.example.com", "api.example.com", False),
        ("*.example.com", "shop.example.com", True),
        ("*.example.com", "a.shop.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "*.shop.example.com", True),
        ("*.example.com", "*.example.net", False),
        ("*", "anything", True),
        ("*", "*.com", True),
        ("*-eu.example.com", "shop-eu.example.com", True),
        ("*-eu.example.com", "shop-us.example.com", False),
    ],
)
def test_two_names_match_when_they_have_a_host_in_common(left: str, right: str, common: bool) -> None:
    assert hosts.matches(left, right) is common
    assert hosts.matches(right, left) is common


@pytest.mark.parametrize(
    ("inner", "outer", "inside"),
    [
        ("shop.example.com", "*.example.com", True),
        ("*.shop.example.com", "*.example.com", True),
        ("*.example.com", "*.shop.example.com", False),
        ("*.example.com", "shop.example.com", False),
        ("example.com", "*.example.com", False),
        ("*", "*", True),
    ],
)
def test_a_name_is_a_subset_only_when_every_host_of_it_is_covered(inner: str, outer: str, inside: bool) -> None:
    assert hosts.subset_of(inner, outer) is inside


def test_names_come_before_wildcards_then_longer_before_shorter() -> None:
    names = ["*", "*.com", "b.com", "*.shop.com", "a.com", "shop.com"]
    ordered = sorted(names, key=lambda name: (hosts.is_wildcard(name), -len(name), name))
    assert ordered == ["shop.com", "a.com", "b.com", "*.shop.com", "*.com", "*"]
    for first, second in itertools.pairwise(ordered):
        assert hosts.more_specific(first, second)
        assert not hosts.more_specific(second, first)


def test_the_most_specific_pattern_is_the_exact_one_then_the_longest_wildcard() -> None:
    assert hosts.HostSet(["*", "*.com", "*.shop.com"]).covering("a.shop.com") == "*.shop.com"
    assert hosts.HostSet(["*.shop.com", "a.shop.com"]).covering("a.shop.com") == "a.shop.com"
    assert hosts.HostSet(["*.net"]).covering("a.shop.com") is None


@given(HOSTS, st.lists(HOSTS, max_size=6))
def test_a_set_finds_what_looking_at_every_pattern_finds(host: str, patterns: list[str]) -> None:
    covering = [pattern for pattern in patterns if hosts.subset_of(host, pattern)]
    best = next((p for p in covering if all(p == o or hosts.more_specific(p, o) for o in covering)), None)
    assert hosts.HostSet(patterns).covering(host) == best


@pytest.mark.parametrize(
    ("host", "full"),
    [
        ("reviews", "reviews.store.svc.cluster.local"),
        ("Reviews", "reviews.store.svc.cluster.local"),
        ("reviews.prod", "reviews.prod"),
        ("*", "*"),
        ("*.example.com", "*.example.com"),
        ("203.0.113.1", "203.0.113.1"),
        ("::1", "::1"),
    ],
)
def test_only_a_name_without_a_dot_is_expanded_in_the_rules_namespace(host: str, full: str) -> None:
    assert hosts.expand(host, "store") == full


@given(HOSTS, HOSTS, HOSTS)
def test_subset_is_transitive_and_implies_a_match(a: str, b: str, c: str) -> None:
    if hosts.subset_of(a, b):
        assert hosts.matches(a, b)
        if hosts.subset_of(b, c):
            assert hosts.subset_of(a, c)


@given(HOSTS, HOSTS)
def test_specificity_orders_every_two_different_names(a: str, b: str) -> None:
    assert hosts.more_specific(a, b) != hosts.more_specific(b, a) or a == b
