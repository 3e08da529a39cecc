"""JWT-SVIDs of the development CA: what it signs, and what it refuses (JWT-SVID 2 to 5; M-80 to M-84)."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from proxyless.controlplane import jwt_svid
from proxyless.controlplane.authority import Authority
from proxyless.controlplane.jwt_svid import InvalidTokenError
from proxyless.errors import InvalidSvidError
from proxyless.spiffe import SpiffeId, TrustDomain

NOW = 1_900_000_000.0
WEB = SpiffeId.parse("spiffe://a.test/web")
DOMAIN = TrustDomain.parse("a.test")
KEY, OTHER, ROGUE = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
KEYS = {"k1": KEY.public_key(), "k2": OTHER.public_key()}
CLAIMS: dict[str, Any] = {"sub": str(WEB), "aud": ["x"], "exp": NOW + 60, "iat": NOW}


def part(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def token(*, key: ec.EllipticCurvePrivateKey = KEY, kid: str = "k1", **claims: Any) -> str:
    return jwt_svid.sign(key, kid, {**CLAIMS, **claims})


def with_header(**header: Any) -> str:
    _, payload, signature = token().split(".")
    return f"{part({'alg': 'ES256', 'kid': 'k1', 'typ': 'JWT', **header})}.{payload}.{signature}"


def refused(text: str, audience: str = "x", now: float = NOW) -> str:
    with pytest.raises(InvalidTokenError) as caught:
        jwt_svid.validate(text, audience, DOMAIN, KEYS, now)
    assert text[:40] not in str(caught.value) or not text
    return caught.value.step


def test_a_token_gives_its_subject_and_claims() -> None:
    subject, claims = jwt_svid.validate(token(role="admin"), "x", DOMAIN, KEYS, NOW)
    assert (subject, claims["role"]) == (WEB, "admin")
    assert jwt_svid.validate(token(aud="x"), "x", DOMAIN, KEYS, NOW)
    assert jwt_svid.validate(token(key=OTHER, kid="k2", aud=["y", "x"]), "x", DOMAIN, KEYS, NOW)


@pytest.mark.parametrize("alg", ["none", "None", "HS256", "RS256", "es256", "ES256K", "EdDSA", None])
def test_only_the_one_algorithm_is_accepted(alg: str | None) -> None:
    assert refused(with_header(alg=alg)) == "alg"


@pytest.mark.parametrize(
    "header", [{"jwk": {}}, {"jku": "https://x"}, {"x5c": []}, {"x5u": ""}, {"crit": []}, {"cty": "JWT"}]
)
def test_no_header_brings_a_key_or_a_rule(header: dict[str, Any]) -> None:
    assert refused(with_header(**header)) == "header"


@pytest.mark.parametrize("typ", ["jwt", "wit+jwt", "", None])
def test_other_kinds_of_token_are_refused(typ: str | None) -> None:
    assert refused(with_header(typ=typ)) == "header"


def test_the_key_is_the_one_of_the_kid_and_the_signature_must_be_its_own() -> None:
    assert refused(token(kid="k3")) == "key"
    assert refused(token(kid="../k1")) == "key"
    assert refused(with_header(kid=None)) == "key"
    assert refused(token(kid="k2")) == "signature"
    assert refused(token(key=ROGUE)) == "signature"
    head = token().rpartition(".")[0]
    assert refused(f"{head}.") == "signature"
    assert refused(f"{head}.{part(chr(0) * 64)}") == "signature"
    header, _, signature = token().split(".")
    assert refused(f"{header}.{part({**CLAIMS, 'sub': 'spiffe://a.test/admin'})}.{signature}") == "signature"


@pytest.mark.parametrize(
    ("subject", "step"),
    [
        (None, "sub"),
        ("", "sub"),
        ("web", "sub"),
        (1, "sub"),
        ("spiffe://a.test", "sub"),
        ("SPIFFE://a.test/web", "sub"),
        ("spiffe://b.test/web", "bundle"),
    ],
)
def test_the_subject_is_a_workload_of_our_trust_domain(subject: Any, step: str) -> None:
    assert refused(token(sub=subject)) == step


@pytest.mark.parametrize("audience", [None, [], "", "xx", "X", "x y", ["y"], [1, "x"], {"x": 1}])
def test_the_audience_is_compared_whole(audience: Any) -> None:
    assert refused(token(aud=audience)) == "aud"


def test_without_an_audience_of_our_own_nothing_is_accepted() -> None:
    assert refused(token(aud=[""]), audience="") == "config"


@pytest.mark.parametrize(
    ("claims", "step"),
    [
        ({"exp": NOW - 31}, "exp"),
        ({"exp": "9999999999"}, "exp"),
        ({"exp": True}, "exp"),
        ({"nbf": NOW + 31}, "nbf"),
        ({"iat": NOW + 31}, "iat"),
        ({"iat": None}, "iat"),
    ],
)
def test_times_must_be_numbers_and_hold_with_thirty_seconds_of_leeway(claims: dict[str, Any], step: str) -> None:
    assert refused(token(**claims)) == step


def test_thirty_seconds_are_forgiven() -> None:
    assert jwt_svid.validate(token(exp=NOW - 29, nbf=NOW + 29, iat=NOW + 29), "x", DOMAIN, KEYS, NOW)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a.b",
        "a.b.c.d",
        "....",
        f"{part('x')}.{part('{}')}.AA",
        f"{part([])}.{part({})}.",
        "é.e30.AA",
        "e30.e30.A",
        " e30.e30.",
    ],
)
def test_what_is_no_compact_jws_of_objects_is_refused(text: str) -> None:
    assert refused(text) == "parse"


def test_ambiguous_deep_and_huge_tokens_are_refused() -> None:
    head = part({"alg": "ES256", "kid": "k1"})
    twice = '{"sub":"spiffe://a.test/web","sub":"spiffe://a.test/admin"}'
    for payload in (twice, '{"exp":NaN}', "[" * 5000):
        assert refused(f"{head}.{part(payload)}.AA") == "parse"
    assert refused(token(pad="a" * 20000)) == "size"


@given(st.text("abc.eyJ0-_{}", max_size=80))
def test_any_text_gives_a_typed_error(text: str) -> None:
    with pytest.raises(InvalidTokenError):
        jwt_svid.validate(text, "x", DOMAIN, KEYS, NOW)


def test_the_authority_signs_for_its_own_workloads_and_keys_follow_the_roots() -> None:
    ca = Authority("a.test", clock=lambda: NOW)
    first = ca.issue_jwt(WEB, ["x", "y"])
    subject, claims = ca.validate_jwt(first, "y")
    assert (subject, claims) == (WEB, {"sub": str(WEB), "aud": ["x", "y"], "iat": NOW, "exp": NOW + 300})
    for spiffe_id, audience in ((SpiffeId.parse("spiffe://b.test/x"), ["x"]), (WEB, []), (WEB, [""])):
        with pytest.raises(InvalidSvidError):
            ca.issue_jwt(spiffe_id, audience)
    ca.prepare()
    assert len(ca.jwt_keys) == 2
    ca.activate()
    assert ca.validate_jwt(first, "x")
    ca.revoke()
    assert ca.validate_jwt(ca.issue_jwt(WEB, ["x"]), "x")
    with pytest.raises(InvalidTokenError, match="key"):
        ca.validate_jwt(first, "x")


def test_the_key_set_has_public_members_only_and_no_x509_key() -> None:
    keys = json.loads(jwt_svid.jwks(KEYS))["keys"]
    assert [set(key) for key in keys] == [{"kty", "kid", "crv", "x", "y"}] * 2
    assert [key["kid"] for key in keys] == ["k1", "k2"]
