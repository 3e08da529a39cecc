"""What the development CA issues (X509-SVID 2 to 4; M-33, M-34, M-46, M-47)."""

from __future__ import annotations

import logging
import random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from proxyless.controlplane.authority import Authority, renewal_time
from proxyless.errors import InvalidSvidError, PeerVerificationError
from proxyless.identity.bundle import TrustBundle
from proxyless.identity.svid import X509Svid
from proxyless.identity.verify import check_own, verify_peer
from proxyless.spiffe import SpiffeId

NOW = 1_900_000_000.0
WEB = SpiffeId.parse("spiffe://a.test/ns/default/sa/web")


class Clock:
    def __init__(self) -> None:
        self.time = NOW

    def __call__(self) -> float:
        return self.time


def authority(**options: float) -> tuple[Authority, Clock]:
    clock = Clock()
    return Authority("a.test", clock=clock, **options), clock


def loaded(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)


def value(certificate: x509.Certificate, kind: type) -> tuple[object, bool]:
    extension = certificate.extensions.get_extension_for_class(kind)
    return extension.value, extension.critical


def test_a_leaf_has_the_shape_of_spire() -> None:
    ca, _ = authority()
    svid = ca.issue(WEB, ttl=600, dns_names=["web.default.svc"], hint="internal")
    leaf, root = loaded(svid.chain[0]), loaded(ca.bundle[0])
    assert len(svid.chain) == 1
    names, _ = value(leaf, x509.SubjectAlternativeName)
    assert [name.value for name in names] == ["web.default.svc", str(WEB)]
    assert value(leaf, x509.BasicConstraints) == (x509.BasicConstraints(ca=False, path_length=None), True)
    usage, critical = value(leaf, x509.KeyUsage)
    assert critical
    assert (usage.digital_signature, usage.key_cert_sign, usage.crl_sign) == (True, False, False)
    eku, _ = value(leaf, x509.ExtendedKeyUsage)
    assert set(eku) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert (
        value(leaf, x509.AuthorityKeyIdentifier)[0].key_identifier == value(root, x509.SubjectKeyIdentifier)[0].digest
    )
    assert isinstance(leaf.public_key(), ec.EllipticCurvePublicKey)
    assert leaf.public_key().curve.name == "secp256r1"
    assert leaf.subject  # so the SAN need not be critical
    assert (svid.not_before, svid.not_after) == (NOW - 10, NOW + 600)
    assert X509Svid.parse(svid.chain[0], svid.private_key, hint="internal", expected_id=str(WEB)) == svid


def test_a_root_has_the_shape_of_spire() -> None:
    ca, _ = authority()
    root = loaded(ca.bundle[0])
    assert [name.value for name in value(root, x509.SubjectAlternativeName)[0]] == ["spiffe://a.test"]
    assert value(root, x509.BasicConstraints) == (x509.BasicConstraints(ca=True, path_length=None), True)
    usage, critical = value(root, x509.KeyUsage)
    assert critical
    assert (usage.digital_signature, usage.key_cert_sign, usage.crl_sign) == (False, True, True)


def test_each_certificate_has_a_new_key_and_a_long_random_serial() -> None:
    ca, _ = authority()
    svids = [ca.issue(WEB) for _ in range(5)]
    assert len({svid.private_key for svid in svids}) == 5
    serials = [loaded(svid.chain[0]).serial_number for svid in svids]
    assert len(set(serials)) == 5
    assert all(0 < serial < 2**160 for serial in serials)
    assert max(serials) > 2**100


def test_only_workloads_of_its_own_trust_domain_are_issued() -> None:
    ca, _ = authority()
    for text in ("spiffe://b.test/web", "spiffe://sub.a.test/web", "spiffe://a.test"):
        with pytest.raises(InvalidSvidError):
            ca.issue(SpiffeId.parse(text))


def test_what_it_issues_verifies_in_both_roles() -> None:
    ca, _ = authority()
    svid, bundle = ca.issue(WEB), TrustBundle("a.test", ca.bundle)
    check_own(svid, bundle, NOW)
    for role in ("client", "server"):
        assert verify_peer(svid.chain, {"a.test": bundle}, role, NOW).spiffe_id == WEB  # type: ignore[arg-type]  # a literal


def test_a_leaf_never_outlives_the_root() -> None:
    ca, clock = authority(root_ttl=1000)
    clock.time += 900
    assert ca.issue(WEB, ttl=3600).not_after == NOW + 1000


def test_a_new_root_is_trusted_before_it_signs_and_an_old_one_until_it_is_revoked() -> None:
    ca, _ = authority()
    told: list[int] = []
    ca.subscribe(lambda: told.append(len(ca.bundle)))
    old = ca.issue(WEB)
    ca.prepare()
    ca.prepare()
    assert told == [2]
    both = {"a.test": TrustBundle("a.test", ca.bundle)}
    first_only = {"a.test": TrustBundle("a.test", ca.bundle[:1])}
    assert verify_peer(ca.issue(WEB).chain, first_only, "client", NOW)
    ca.activate()
    new = ca.issue(WEB)
    assert verify_peer(new.chain, both, "client", NOW)
    assert verify_peer(old.chain, both, "client", NOW)
    ca.revoke()
    after = {"a.test": TrustBundle("a.test", ca.bundle)}
    assert (told, len(ca.bundle)) == ([2, 1], 1)
    assert verify_peer(new.chain, after, "client", NOW)
    with pytest.raises(PeerVerificationError):
        verify_peer(old.chain, after, "client", NOW)


def test_roots_are_replaced_with_age_and_at_every_instant_all_live_svids_verify() -> None:
    ca, clock = authority(ttl=100, root_ttl=1000)
    live: list[X509Svid] = []
    roots = set()
    for _ in range(60):
        clock.time += 50
        ca.maintain()
        live = [svid for svid in live if svid.not_after > clock.time] + [ca.issue(WEB)]
        bundles = {"a.test": TrustBundle("a.test", ca.bundle)}
        roots.update(ca.bundle)
        for svid in live:
            assert verify_peer(svid.chain, bundles, "client", clock.time)
    assert len(roots) >= 4
    assert len(ca.bundle) <= 2


def test_renewal_comes_at_half_life_with_jitter() -> None:
    ca, _ = authority()
    svid = ca.issue(WEB, ttl=60)
    rng = random.Random(7)
    shares = [(renewal_time(svid, NOW, rng) - svid.not_before) / (svid.not_after - svid.not_before) for _ in range(300)]
    assert 0.45 <= min(shares) < 0.47
    assert 0.53 < max(shares) <= 0.55


@pytest.mark.parametrize("ttl", [1, 2, 5, 20])
def test_a_short_life_is_renewed_in_time_and_not_in_a_storm(ttl: float) -> None:
    ca, _ = authority()
    svid = ca.issue(WEB, ttl=ttl)
    assert svid.valid_at(NOW)
    due = renewal_time(svid, NOW)
    assert NOW + ttl / 5 <= due < svid.not_after


def test_foreign_bundles_are_handed_out_under_the_name_the_operator_gives() -> None:
    ca, other = authority()[0], Authority("b.test")
    ca.federate("b.test", other.bundle)
    assert ca.bundles == {"a.test": ca.bundle, "b.test": other.bundle}
    ca.federate("b.test", ())
    assert ca.federated == {}
    with pytest.raises(InvalidSvidError):
        ca.federate("a.test", other.bundle)


def test_it_says_loudly_what_it_is_and_never_shows_a_key(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    ca, _ = authority()
    svid = ca.issue(WEB)
    assert any(record.levelno >= logging.WARNING and "DEVELOPMENT" in record.message for record in caplog.records)
    shown = caplog.text + repr(ca) + repr(vars(ca)) + repr(svid)
    assert "PRIVATE" not in shown
    assert "EllipticCurvePrivateKey" not in shown
    assert svid.private_key.hex() not in shown
