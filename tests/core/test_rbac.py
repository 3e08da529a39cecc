from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyless.core.matchers import CidrMatcher, HeaderMatcher, PathMatcher, StringMatcher
from proxyless.core.rbac import (
    Action,
    AddressKind,
    AddressRule,
    AndRule,
    AnyRule,
    AuthenticatedRule,
    DestinationPortRule,
    HeaderRule,
    MetadataRule,
    NotRule,
    OrRule,
    Policy,
    Rbac,
    Rule,
    ServerNameRule,
    TemplateRule,
    UrlPathRule,
    ValueMatcher,
    Verdict,
)
from proxyless.core.request import Address, Peer, Request

ANY = AnyRule()
NEVER = NotRule(ANY)


def request(path: str = "/", method: str = "GET", **headers: str) -> Request:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request(method, path, raw, authority="a.test")


def policy(name: str, permission: Rule = ANY, principal: Rule = ANY) -> Policy:
    return Policy(name, (permission,), (principal,))


def holds(rule: Rule, peer: Peer | None = None, of: Request | None = None) -> bool:
    return rule.matches(of or request(), peer or Peer())


# --------------------------------------------------------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("action", "matching", "verdict"),
    [
        ("ALLOW", True, Verdict(True, "p")),
        ("ALLOW", False, Verdict(False, "none")),
        ("DENY", True, Verdict(False, "p")),
        ("DENY", False, Verdict(True, "none")),
        ("LOG", True, Verdict(True, "p")),
        ("LOG", False, Verdict(True, "none")),
        (None, True, Verdict(True, "none")),
    ],
)
def test_the_action_decides_what_a_match_means(action: Action | None, matching: bool, verdict: Verdict) -> None:
    rbac = Rbac(action, (policy("p", ANY if matching else NEVER),))
    assert rbac.evaluate(request(), Peer()) == verdict


def test_an_allow_filter_without_policies_denies_everything() -> None:
    assert not Rbac("ALLOW").evaluate(request(), Peer()).allowed


def test_the_first_policy_in_name_order_is_reported() -> None:
    rbac = Rbac("DENY", (policy("b"), policy("a"), policy("c")))
    assert rbac.evaluate(request(), Peer()).policy == "a"


def test_a_policy_needs_a_permission_and_a_principal() -> None:
    assert not policy("p", ANY, NEVER).matches(request(), Peer())
    assert not policy("p", NEVER, ANY).matches(request(), Peer())
    assert Policy("p", (NEVER, ANY), (NEVER, ANY)).matches(request(), Peer())


class Broken:
    def matches(self, request: Request, peer: Peer) -> bool:
        raise RuntimeError("boom")


@pytest.mark.parametrize("action", ["ALLOW", "DENY"])
@pytest.mark.parametrize("rule", [Broken(), NotRule(Broken())])
def test_a_rule_that_fails_denies(action: Action, rule: Rule) -> None:
    verdict = Rbac(action, (policy("p", rule),)).evaluate(request(), Peer())
    assert verdict == Verdict(False, "error[RuntimeError]")


def test_shadow_rules_are_evaluated_beside_and_decide_nothing() -> None:
    rbac = Rbac("ALLOW", (policy("p"),), Rbac("DENY", (policy("dry"),)))
    assert rbac.evaluate(request(), Peer()) == Verdict(True, "p")
    assert rbac.evaluate_shadow(request(), Peer()) == Verdict(False, "dry")
    assert Rbac("ALLOW").evaluate_shadow(request(), Peer()) is None


def test_deny_all_names_its_reason() -> None:
    assert Rbac.deny_all("why").evaluate(request(), Peer(tls=True)) == Verdict(False, "why")


# ------------------------------------------------------------------------------------------------------------------ rules


def test_every_uri_name_then_dns_names_then_the_subject_are_tried() -> None:
    peer = Peer(tls=True, uri_sans=("spiffe://a", "spiffe://b"), dns_sans=("d.test",), subject="CN=c")
    for name in ("spiffe://a", "spiffe://b", "d.test", "CN=c"):
        assert holds(AuthenticatedRule(StringMatcher("exact", name)), peer)
    assert not holds(AuthenticatedRule(StringMatcher("exact", "other")), peer)


def test_no_name_asked_means_any_tls_peer() -> None:
    assert holds(AuthenticatedRule(None), Peer(tls=True))
    assert not holds(AuthenticatedRule(None), Peer(tls=False))


def test_plain_text_has_no_principal_whatever_the_pattern() -> None:
    assert not holds(AuthenticatedRule(StringMatcher("regex", ".*")), Peer(tls=False))
    assert not holds(AuthenticatedRule(StringMatcher("regex", ".+")), Peer(tls=True))


def test_identity_never_comes_from_a_header() -> None:
    forged = request(x_forwarded_client_cert="URI=spiffe://a", authorization="spiffe://a")
    assert not holds(AuthenticatedRule(StringMatcher("exact", "spiffe://a")), Peer(), forged)


@pytest.mark.parametrize(
    ("kind", "host"),
    [("direct_remote", "10.0.0.1"), ("source", "10.0.0.2"), ("remote", "10.0.0.3"), ("destination", "10.0.0.4")],
)
def test_each_address_rule_looks_at_its_own_address(kind: AddressKind, host: str) -> None:
    peer = Peer(
        address=Address("10.0.0.1", 1),
        proxied=Address("10.0.0.2", 1),
        remote=Address("10.0.0.3", 1),
        local=Address("10.0.0.4", 1),
    )
    matching = [f"10.0.0.{n}" for n in range(1, 5) if holds(AddressRule(kind, CidrMatcher(f"10.0.0.{n}", 32)), peer)]
    assert matching == [host]


def test_without_proxies_every_source_address_is_the_peer() -> None:
    kinds: tuple[AddressKind, ...] = ("direct_remote", "source", "remote")
    for kind in kinds:
        assert holds(AddressRule(kind, CidrMatcher("10.0.0.1", 32)), Peer(address=Address("10.0.0.1", 1)))


def test_ports_are_ours_and_the_end_of_a_range_is_open() -> None:
    assert holds(DestinationPortRule(80, 82), Peer(local=Address("a", 81)))
    assert not holds(DestinationPortRule(80, 82), Peer(local=Address("a", 82)))


def test_the_path_is_compared_without_query() -> None:
    of = Request("GET", "/a", (), authority="", query="x")
    assert holds(UrlPathRule(StringMatcher("exact", "/a")), of=of)
    assert holds(TemplateRule(PathMatcher("template", "/*")), of=of)
    assert not holds(HeaderRule(HeaderMatcher(":path", StringMatcher("exact", "/a"))), of=of)


def test_the_server_name_is_that_of_the_connection() -> None:
    assert holds(ServerNameRule(StringMatcher("suffix", ".test")), Peer(sni="a.test"))
    assert holds(ServerNameRule(StringMatcher("exact", "")), Peer())


# --------------------------------------------------------------------------------------------------------------- metadata

JWT = "envoy.filters.http.jwt_authn"


def claim(value: ValueMatcher, *path: str, invert: bool = False) -> MetadataRule:
    return MetadataRule(JWT, ("payload", *path), value, invert)


def claims(**values: Any) -> Peer:
    return Peer(claims={"payload": values})


def test_a_claim_is_found_by_its_path() -> None:
    exact = ValueMatcher(string=StringMatcher("exact", "x"))
    assert holds(claim(exact, "a", "b"), claims(a={"b": "x"}))
    assert not holds(claim(exact, "a", "b"), claims(a="x"))
    assert not holds(claim(exact, "a"), Peer())
    assert holds(claim(exact, "a", invert=True), Peer())


@pytest.mark.parametrize(
    ("matcher", "value", "expected"),
    [
        (ValueMatcher(one_of=ValueMatcher(string=StringMatcher("exact", "x"))), ["y", "x"], True),
        (ValueMatcher(one_of=ValueMatcher(string=StringMatcher("exact", "x"))), "x", False),
        (ValueMatcher(any_of=(ValueMatcher(boolean=True), ValueMatcher(null=True))), None, True),
        (ValueMatcher(boolean=True), 1, False),
        (ValueMatcher(number=(1, 2)), 1.5, True),
        (ValueMatcher(number=(1, 2)), 2, False),
        (ValueMatcher(number=(2, 2)), 2, True),
        (ValueMatcher(number=(0, 2)), True, False),
        (ValueMatcher(null=True), "", False),
        (ValueMatcher(present=True), "", True),
    ],
)
def test_value_matchers_respect_types(matcher: ValueMatcher, value: object, expected: bool) -> None:
    assert holds(claim(matcher, "a"), claims(a=value)) is expected


def test_an_absent_claim_is_neither_present_nor_null() -> None:
    assert not holds(claim(ValueMatcher(present=True), "a"), claims())
    assert not holds(claim(ValueMatcher(null=True), "a"), claims())


# ------------------------------------------------------------------------------------------------- the twin: a literal reading


class Fact:
    """A leaf whose truth is known."""

    def __init__(self, name: str) -> None:
        self.name = name

    def matches(self, request: Request, peer: Peer) -> bool:
        return bool(request.values(self.name))


_TREES = st.recursive(
    st.sampled_from(["a", "b", "c", True]),
    lambda inner: (
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3))
        | st.tuples(st.just("not"), inner)
    ),
    max_leaves=8,
)


def build(tree: Any) -> Rule:
    if tree is True:
        return ANY
    if isinstance(tree, str):
        return Fact(tree)
    kind, inner = tree
    if kind == "not":
        return NotRule(build(inner))
    rules = tuple(map(build, inner))
    return AndRule(rules) if kind == "and" else OrRule(rules)


def truth(tree: Any, facts: frozenset[str]) -> bool:
    if tree is True:
        return True
    if isinstance(tree, str):
        return tree in facts
    kind, inner = tree
    if kind == "not":
        return not truth(inner, facts)
    return (all if kind == "and" else any)(truth(each, facts) for each in inner)


@settings(deadline=None)
@given(
    action=st.sampled_from(["ALLOW", "DENY", "LOG"]),
    trees=st.dictionaries(st.text("xyz", min_size=1, max_size=3), st.tuples(_TREES, _TREES), max_size=4),
    facts=st.frozensets(st.sampled_from("abc")),
)
def test_decisions_are_those_of_the_literal_reading(
    action: Action, trees: dict[str, tuple[Any, Any]], facts: frozenset[str]
) -> None:
    rbac = Rbac(action, tuple(policy(name, build(one), build(two)) for name, (one, two) in trees.items()))
    matching = [name for name in sorted(trees) if truth(trees[name][0], facts) and truth(trees[name][1], facts)]
    expected = matching[0] if matching else "none"
    allowed = {"ALLOW": bool(matching), "DENY": not matching, "LOG": True}[action]
    assert rbac.evaluate(request(**dict.fromkeys(facts, "1")), Peer()) == Verdict(allowed, expected)
