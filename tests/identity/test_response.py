"""A response of the Workload API holds as a whole or not at all (Workload API 4.3 to 4.6; M-30, M-31, M-37)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyless.errors import InvalidSvidError, NoIdentityError
from proxyless.identity.response import Selection, read_response

from .agent import response
from .helpers import NOW, root

WEB, DB = "spiffe://a.test/web", "spiffe://a.test/db"
A, B = root("a.test", now=NOW), root("b.test", now=NOW)
SVID = A.svid(WEB, now=NOW)


def dropped(*args: Any, **kwargs: Any) -> InvalidSvidError:
    with pytest.raises(InvalidSvidError) as caught:
        read_response(response(*args, **{"anchors": A.der, **kwargs}), NOW)
    return caught.value


def test_svids_keep_their_order_and_hints_and_bundles_their_trust_domains() -> None:
    first, second = A.svid(WEB, now=NOW, hint="internal"), A.svid(WEB, now=NOW, hint="external")
    update = read_response(
        response(first, second, anchors=A.der + root("a.test", now=NOW).der, federated={"spiffe://b.test": B.der}), NOW
    )
    assert update.svids == (first, second)
    assert [svid.hint for svid in update.svids] == ["internal", "external"]
    assert {name: len(bundle.anchors) for name, bundle in update.bundles.items()} == {"a.test": 2, "b.test": 1}


@pytest.mark.parametrize("field", ["spiffe_id", "x509_svid", "x509_svid_key", "bundle"])
def test_a_missing_mandatory_field_drops_the_response(field: str) -> None:
    value = "" if field == "spiffe_id" else b""
    assert field in str(dropped(SVID, **{field: value}))


@pytest.mark.parametrize(
    ("field", "value", "step"),
    [
        ("spiffe_id", "spiffe://A.test/web", "spiffe-id"),
        ("spiffe_id", DB, "id-mismatch"),
        ("x509_svid", b"rubbish", "parse"),
        ("x509_svid_key", b"rubbish", "key-parse"),
        ("x509_svid_key", A.svid(WEB, now=NOW).private_key, "key-match"),
        ("bundle", b"rubbish", "bundle"),
        ("bundle", B.der, "path"),
        ("bundle", SVID.chain[0], "bundle"),
    ],
)
def test_a_part_that_is_wrong_drops_the_response(field: str, value: Any, step: str) -> None:
    good = A.svid(DB, now=NOW)
    for svids in ((SVID,), (SVID, good)):
        assert dropped(*svids, **{field: value}).step in (step, "bundle")


def test_no_svid_at_all_and_no_protobuf_at_all_are_dropped() -> None:
    assert dropped().step == "parse"
    with pytest.raises(InvalidSvidError):
        read_response(b"\xff\xff\xff", NOW)


def test_a_federated_bundle_never_stands_in_for_our_own() -> None:
    assert dropped(SVID, federated={"spiffe://a.test": B.der}).step == "bundle"


@pytest.mark.parametrize("key", ["b.test", "spiffe://b.test/x", "spiffe://B.test", "", "spiffe://"])
def test_a_federated_bundle_is_keyed_by_the_id_of_its_trust_domain(key: str) -> None:
    assert dropped(SVID, federated={key: B.der}).step == "bundle"


def test_an_empty_federated_bundle_is_a_withdrawal_not_an_error() -> None:
    update = read_response(response(SVID, anchors=A.der, federated={"spiffe://b.test": b""}), NOW)
    assert update.bundles["b.test"].anchors == ()


def test_an_expired_svid_is_no_fresh_state() -> None:
    expired = A.svid(WEB, now=NOW, until=-1)
    assert dropped(expired).step == "time"
    update = read_response(response(expired, SVID, anchors=A.der), NOW)
    assert (update.svids, update.expired) == ((SVID,), 1)


def test_an_svid_of_the_future_and_expired_anchors_are_fine() -> None:
    later = A.svid(WEB, now=NOW, since=30)
    old = root("a.test", now=NOW, since=-7200, until=-60)
    assert read_response(response(later, anchors=old.der + A.der), NOW).svids == (later,)


def test_what_is_not_acted_on_is_counted() -> None:
    update = read_response(response(SVID, anchors=A.der + SVID.chain[0], crl=(b"list",)), NOW)
    assert (update.revocation_lists, update.rejected_anchors) == (1, 1)


@given(st.binary(max_size=100))
def test_any_bytes_give_an_update_or_a_typed_error(data: bytes) -> None:
    with pytest.raises(InvalidSvidError):
        read_response(data, NOW)


def test_the_first_is_the_default_and_a_choice_that_does_not_fit_is_an_error() -> None:
    svids = (
        A.svid(WEB, now=NOW),
        A.svid(WEB, now=NOW, hint="internal"),
        A.svid(DB, now=NOW, hint="internal"),
        A.svid(DB, now=NOW, hint="external"),
    )
    assert Selection().choose(svids) is svids[0]
    assert Selection(hint="internal").choose(svids) is svids[1]
    assert Selection(spiffe_id=DB).choose(svids) is svids[2]
    assert Selection(hint="external", spiffe_id=DB).choose(svids) is svids[3]
    for wrong in (Selection(hint="other"), Selection(spiffe_id="spiffe://a.test/x"), Selection("external", WEB)):
        with pytest.raises(NoIdentityError, match="gives no identity with"):
            wrong.choose(svids)
