"""Who is accepted as a peer: rules M-10 to M-17."""

from __future__ import annotations

from typing import Any

import pytest

from proxyless.errors import InvalidSvidError, PeerVerificationError
from proxyless.identity import verify
from proxyless.identity.bundle import TrustBundle
from proxyless.identity.verify import check_own, verify_peer

from .helpers import NOW, Issued, certificate, root

WEB = "spiffe://a.test/web"
A = root("a.test", now=NOW)
B = root("b.test", now=NOW)
BUNDLES = {"a.test": A.bundle("a.test"), "b.test": B.bundle("b.test")}


def refused(*chain: Issued, bundles: dict[str, TrustBundle] = BUNDLES, role: Any = "client", now: float = NOW) -> str:
    with pytest.raises(PeerVerificationError) as caught:
        verify_peer([each.der for each in chain], bundles, role, now)
    return caught.value.step


def test_a_leaf_of_the_root_is_accepted_in_both_roles_and_its_facts_are_told() -> None:
    leaf = A.issue(WEB, now=NOW, dns=["web.test"], name="web")
    for role in ("client", "server"):
        peer = verify_peer([leaf.der], BUNDLES, role, NOW)
        assert str(peer.spiffe_id) == WEB
        assert (peer.uri_sans, peer.dns_sans, peer.subject) == ((WEB,), ("web.test",), "CN=web")
        assert (peer.not_before, peer.not_after) == (NOW - 60, NOW + 3600)


def test_intermediates_may_come_in_any_order_after_the_leaf() -> None:
    first = A.ca(now=NOW)
    second = first.ca(now=NOW)
    leaf = second.issue(WEB, now=NOW)
    for chain in ([leaf, first, second], [leaf, second, first]):
        assert verify_peer([each.der for each in chain], BUNDLES, "client", NOW)
    assert refused(leaf, second) == "path"


def test_an_intermediate_in_the_bundle_is_an_anchor() -> None:
    intermediate = A.ca(now=NOW)
    leaf = intermediate.issue(WEB, now=NOW)
    assert verify_peer([leaf.der], {"a.test": intermediate.bundle("a.test")}, "client", NOW)


@pytest.mark.parametrize(
    ("uris", "options", "step"),
    [
        ((), {}, "uri-san-count"),
        ((), {"dns": ["spiffe://a.test/web"]}, "uri-san-count"),
        ((), {"name": "spiffe://a.test/web"}, "uri-san-count"),
        ((WEB, "spiffe://a.test/admin"), {}, "uri-san-count"),
        ((WEB, WEB), {}, "uri-san-count"),
        ((WEB, "https://a.test/"), {}, "uri-san-count"),
        (("spiffe://a.test",), {}, "spiffe-id"),
        (("spiffe://A.test/web",), {}, "spiffe-id"),
        (("spiffe://a.test/web\0",), {}, "spiffe-id"),
        ((WEB,), {"ca": True, "usage": ["digital_signature"]}, "ca-flag"),
        ((WEB,), {"usage": ["digital_signature", "key_cert_sign"]}, "key-usage"),
        ((WEB,), {"usage": ["digital_signature", "crl_sign"]}, "key-usage"),
        ((WEB,), {"usage": ["key_encipherment"]}, "key-usage"),
        ((WEB,), {"usage": []}, "key-usage"),
        (("spiffe://c.test/web",), {}, "trust-domain"),
        (("spiffe://sub.a.test/web",), {}, "trust-domain"),
        ((WEB,), {"until": -1}, "time"),
        ((WEB,), {"since": 10}, "time"),
        ((WEB,), {"eku": ["server"]}, "eku"),
    ],
)
def test_a_leaf_that_breaks_a_rule_is_refused_at_that_rule(uris: tuple[str, ...], options: Any, step: str) -> None:
    assert refused(A.issue(*uris, now=NOW, **options)) == step


def test_extended_key_usage_must_allow_the_role_and_may_be_absent() -> None:
    assert refused(A.issue(WEB, now=NOW, eku=["client"]), role="server") == "eku"
    assert verify_peer([A.issue(WEB, now=NOW, eku=["server"]).der], BUNDLES, "server", NOW)
    assert verify_peer([A.issue(WEB, now=NOW, eku=["client"]).der], BUNDLES, "client", NOW)
    assert verify_peer([A.issue(WEB, now=NOW, eku=None).der], BUNDLES, "client", NOW)


def test_one_trust_domain_cannot_speak_for_another() -> None:
    assert refused(B.issue(WEB, now=NOW)) == "path"
    assert refused(A.issue("spiffe://b.test/db", now=NOW)) == "path"
    intermediate = A.ca("spiffe://b.test", now=NOW)
    assert refused(intermediate.issue("spiffe://b.test/db", now=NOW), intermediate) == "path"


def test_roots_that_the_peer_sends_give_no_trust_and_do_no_harm() -> None:
    rogue = root("a.test", now=NOW)
    assert refused(rogue.issue(WEB, now=NOW), rogue) == "path"
    assert refused(certificate(WEB, now=NOW)) == "path"
    assert verify_peer([A.issue(WEB, now=NOW).der, A.der, rogue.der], BUNDLES, "client", NOW)


def test_a_leaf_cannot_issue() -> None:
    web = A.issue(WEB, now=NOW)
    assert refused(web.issue("spiffe://a.test/admin", now=NOW), web) == "path"


def test_no_bundle_and_an_empty_bundle_refuse() -> None:
    leaf = A.issue(WEB, now=NOW)
    assert refused(leaf, bundles={}) == "trust-domain"
    assert refused(leaf, bundles={"a.test": TrustBundle("a.test", [])}) == "trust-domain"


def test_a_bundle_admits_ca_certificates_only() -> None:
    leaf = A.issue(WEB, now=NOW)
    bundle = TrustBundle("a.test", [leaf.der])
    assert (bundle.anchors, bundle.rejected) == ((), 1)
    assert refused(leaf, bundles={"a.test": bundle}) == "trust-domain"


def test_expired_anchors_are_ignored_beside_good_ones_and_give_no_trust_alone() -> None:
    old = root("a.test", now=NOW, since=-7200, until=-60)
    both = TrustBundle("a.test", [old.der, A.der])
    assert verify_peer([A.issue(WEB, now=NOW).der], {"a.test": both}, "client", NOW)
    assert refused(old.issue(WEB, now=NOW), bundles={"a.test": both}) == "path"
    assert refused(old.issue(WEB, now=NOW), bundles={"a.test": old.bundle("a.test")}) == "time"
    assert both.usable_anchors(NOW) == (A.der,)


def test_an_expired_intermediate_is_refused_as_a_matter_of_time() -> None:
    intermediate = A.ca(now=NOW, since=-50, until=-10)
    assert refused(intermediate.issue(WEB, now=NOW), intermediate) == "time"


def test_nothing_and_rubbish_and_too_much_are_refused() -> None:
    with pytest.raises(PeerVerificationError, match="no-certificate"):
        verify_peer([], BUNDLES, "client", NOW)
    with pytest.raises(PeerVerificationError, match="parse"):
        verify_peer([b"\x30\x03\x02\x01\x00"], BUNDLES, "client", NOW)
    leaf = A.issue(WEB, now=NOW)
    assert refused(leaf, *[A.ca(now=NOW)] * 10) == "path"


def test_a_remembered_peer_is_judged_again_when_time_or_anchors_change() -> None:
    leaf = A.issue(WEB, now=NOW, until=100)
    assert verify_peer([leaf.der], BUNDLES, "client", NOW) is verify_peer([leaf.der], BUNDLES, "client", NOW + 99)
    assert refused(leaf, now=NOW + 100) == "time"
    assert refused(leaf, bundles={"a.test": root("a.test", now=NOW).bundle("a.test")}) == "path"
    assert refused(leaf, bundles={}) == "trust-domain"
    assert verify_peer([leaf.der], BUNDLES, "client", NOW)


def test_a_remembered_client_is_no_server() -> None:
    leaf = A.issue(WEB, now=NOW, eku=["client"])
    assert verify_peer([leaf.der], BUNDLES, "client", NOW)
    assert refused(leaf, role="server") == "eku"


def test_the_memory_of_peers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "MAX_REMEMBERED", 3)
    for _ in range(8):
        assert verify_peer([A.issue(WEB, now=NOW).der], BUNDLES, "client", NOW)
        assert len(verify._known) <= 3


def test_our_own_svid_must_lead_to_the_bundle_beside_it() -> None:
    svid = A.svid(WEB, now=NOW)
    check_own(svid, BUNDLES["a.test"], NOW)
    with pytest.raises(InvalidSvidError, match="path"):
        check_own(svid, root("a.test", now=NOW).bundle("a.test"), NOW)
    with pytest.raises(InvalidSvidError, match="time"):
        check_own(svid, BUNDLES["a.test"], NOW + 3600)
