"""Our own SVID and bundles: read strictly, never shown with the key."""

from __future__ import annotations

import contextlib
import logging
import ssl
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from proxyless.errors import InvalidSvidError
from proxyless.identity import keyfile
from proxyless.identity.bundle import TrustBundle
from proxyless.identity.certificates import RuleError, split_der
from proxyless.identity.svid import X509Svid

from .helpers import NOW, certificate, root

WEB = "spiffe://a.test/web"
A = root("a.test", now=NOW)
LEAF = A.issue(WEB, now=NOW)


def step_of(chain: bytes, key: bytes, **options: Any) -> str:
    with pytest.raises(InvalidSvidError) as caught:
        X509Svid.parse(chain, key, **options)
    return caught.value.step


def test_chain_and_key_are_read() -> None:
    intermediate = A.ca(now=NOW)
    leaf = intermediate.issue(WEB, now=NOW)
    svid = X509Svid.parse(leaf.der + intermediate.der, leaf.key_der, hint="internal", expected_id=WEB)
    assert svid.chain == (leaf.der, intermediate.der)
    assert (str(svid.spiffe_id), svid.hint) == (WEB, "internal")
    assert (svid.not_before, svid.not_after) == (NOW - 60, NOW + 3600)


def test_validity_has_no_leeway() -> None:
    svid = A.svid(WEB, now=NOW)
    assert [svid.valid_at(NOW + at) for at in (-61, -60, 3599, 3600)] == [False, True, True, False]


def test_a_key_that_does_not_fit_or_is_not_plain_pkcs8_der_is_refused() -> None:
    assert step_of(LEAF.der, A.issue(WEB, now=NOW).key_der) == "key-match"
    pem = LEAF.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    locked = LEAF.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    assert [step_of(LEAF.der, key) for key in (pem, locked, b"", b"rubbish")] == ["key-parse"] * 4


def test_a_chain_that_is_cut_or_has_something_left_over_is_refused() -> None:
    for chain in (b"", LEAF.der[:-1], LEAF.der + b"\x00\xff", b"rubbish", LEAF.der + b"\x30"):
        assert step_of(chain, LEAF.key_der) == "parse"
    assert step_of(LEAF.der + A.issue(WEB, now=NOW).der, LEAF.key_der) == "path"


def test_the_announced_id_must_be_the_one_in_the_certificate() -> None:
    assert step_of(LEAF.der, LEAF.key_der, expected_id="spiffe://a.test/admin") == "id-mismatch"


@pytest.mark.parametrize("usage", [[], ["key_encipherment"], ["digital_signature", "key_cert_sign"]])
def test_a_leaf_that_peers_would_refuse_is_refused_already_here(usage: list[str]) -> None:
    leaf = A.issue(WEB, now=NOW, usage=usage)
    assert step_of(leaf.der, leaf.key_der) == "key-usage"


@given(st.binary(max_size=200))
def test_splitting_any_bytes_gives_them_back_or_a_typed_error(data: bytes) -> None:
    with contextlib.suppress(RuleError):
        assert b"".join(split_der(data)) == data


def test_a_bundle_is_equal_by_trust_domain_and_anchors_in_any_order() -> None:
    other = root("a.test", now=NOW)
    assert TrustBundle("a.test", [A.der, other.der]) == TrustBundle.parse("a.test", other.der + A.der + other.der)
    assert TrustBundle("a.test", [A.der]) != TrustBundle("b.test", [A.der])
    assert TrustBundle("a.test", [A.der]) != TrustBundle("a.test", [A.der, other.der])
    with pytest.raises(InvalidSvidError):
        TrustBundle.parse("a.test", A.der + b"x")


def test_the_key_is_in_no_repr_and_no_error() -> None:
    svid = X509Svid.parse(LEAF.der, LEAF.key_der)
    key = LEAF.key_der
    shown = [repr(svid), str(svid), repr([svid]), f"{svid}", repr(A.bundle("a.test"))]
    for broken in (key[:-1], key + b"x", LEAF.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())):
        with pytest.raises(InvalidSvidError) as caught:
            X509Svid.parse(LEAF.der, broken)
        assert caught.value.__cause__ is None
        shown += [str(caught.value), repr(caught.value)]
    for text in shown:
        assert key.hex() not in text
        assert repr(key)[2:40] not in text
        assert "PRIVATE" not in text


@pytest.mark.parametrize("memory", [True, False])
def test_the_key_reaches_ssl_and_leaves_no_file(
    memory: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    if not memory:
        monkeypatch.setattr(keyfile.os, "memfd_create", lambda *_: (_ for _ in ()).throw(OSError()), raising=False)
        monkeypatch.setattr(keyfile.tempfile, "tempdir", str(tmp_path))
        monkeypatch.setattr(keyfile.os, "access", lambda *_: False)
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []

    class Spy(ssl.SSLContext):
        def load_cert_chain(self, certfile: Any, *args: Any, **kwargs: Any) -> None:
            seen.append(certfile)
            if not memory:
                folder = tmp_path / certfile.split("/")[-2]
                assert folder.stat().st_mode & 0o777 == 0o700
                assert (folder / "identity").stat().st_mode & 0o777 == 0o600
            super().load_cert_chain(certfile, *args, **kwargs)

    keyfile.load_svid(Spy(ssl.PROTOCOL_TLS_CLIENT), A.svid(WEB, now=NOW))
    assert seen[0].startswith("/proc/self/fd/" if memory else str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert "PRIVATE" not in caplog.text


def test_a_key_that_ssl_refuses_leaves_no_file_either(tmp_path: Any) -> None:
    svid = A.svid(WEB, now=NOW)
    broken = X509Svid(
        spiffe_id=svid.spiffe_id,
        chain=svid.chain,
        private_key=certificate(WEB).key_der,
        not_before=svid.not_before,
        not_after=svid.not_after,
    )
    with pytest.raises(ssl.SSLError):
        keyfile.load_svid(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), broken)
