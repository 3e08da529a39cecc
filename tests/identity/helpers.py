"""Certificates of every shape, and a bounded wait."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from proxyless.identity.bundle import TrustBundle
from proxyless.identity.svid import X509Svid

EKU = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}
NOW = 1_900_000_000.0  # the clock of tests that inject one


def eventually(condition: Callable[[], Any], timeout: float = 10.0, what: str = "condition") -> None:
    """Wait until it holds; fail after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what} did not come true in {timeout} s"
        time.sleep(0.005)


@dataclass
class Issued:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def key_der(self) -> bytes:
        return self.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())

    def issue(self, *uris: str, now: float | None = None, **options: Any) -> Issued:
        return certificate(*uris, issuer=self, now=now, **options)

    def ca(self, *uris: str, now: float | None = None, **options: Any) -> Issued:
        return certificate(*uris, issuer=self, now=now, ca=True, **options)

    def svid(self, uri: str, now: float | None = None, **options: Any) -> X509Svid:
        issued = self.issue(uri, now=now, **options)
        return X509Svid.parse(issued.der, issued.key_der, hint=options.get("hint", ""))

    def bundle(self, trust_domain: str) -> TrustBundle:
        return TrustBundle(trust_domain, [self.der])


def root(trust_domain: str, **options: Any) -> Issued:
    return certificate(f"spiffe://{trust_domain}", ca=True, **options)


def certificate(
    *uris: str,
    issuer: Issued | None = None,
    ca: bool = False,
    now: float | None = None,
    since: float = -60,
    until: float = 3600,
    dns: Sequence[str] = (),
    usage: Sequence[str] | None = None,
    eku: Sequence[str] | None = ("server", "client"),
    name: str = "",
    hint: str = "",
) -> Issued:
    """A certificate; `since` and `until` are seconds from `now`."""
    now = time.time() if now is None else now
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name or f"test {serial % 10**8}")])
    signer = key if issuer is None else issuer.key
    bits = set(usage) if usage is not None else ({"key_cert_sign", "crl_sign"} if ca else {"digital_signature"})
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(datetime.datetime.fromtimestamp(int(now + since), datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(int(now + until), datetime.UTC))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    names: list[x509.GeneralName] = [*map(x509.DNSName, dns), *map(x509.UniformResourceIdentifier, uris)]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if bits:
        builder = builder.add_extension(_usage(bits), critical=True)
    if eku is not None and not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([EKU[role] for role in eku]), critical=False)
    return Issued(builder.sign(signer, hashes.SHA256()), key)


def _usage(bits: set[str]) -> x509.KeyUsage:
    fields = [
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ]
    return x509.KeyUsage(**{field: field in bits for field in fields})
