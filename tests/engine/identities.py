"""A CA and the identities of its workloads, for both ends of a connection."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from proxyless.controlplane.authority import Authority
from proxyless.core.matchers import StringMatcher
from proxyless.core.resources import DownstreamTls, UpstreamTls
from proxyless.identity.bundle import TrustBundle
from proxyless.identity.source import StaticSource
from proxyless.identity.tls import TlsContexts
from proxyless.spiffe import SpiffeId

TRUST_DOMAIN = "mesh.example"


def spiffe(account: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}/ns/default/sa/{account}"


def mutual(account: str) -> UpstreamTls:
    """TLS to a peer that must be `account`."""
    return UpstreamTls(san_matchers=(StringMatcher("exact", spiffe(account)),))


class Identities:
    def __init__(self) -> None:
        self.authority = Authority(TRUST_DOMAIN)

    def source(self, account: str) -> StaticSource:
        source = StaticSource()
        self.rotate(source, account)
        return source

    def rotate(self, source: StaticSource, account: str, ttl: float | None = None) -> None:
        """Give `source` a new certificate."""
        svid = self.authority.issue(SpiffeId.parse(spiffe(account)), ttl=ttl)
        source.replace(svid, [TrustBundle(TRUST_DOMAIN, self.authority.bundle)])

    def client(self, account: str = "client") -> TlsContexts:
        return TlsContexts(self.source(account))

    def server(self, account: str) -> ssl.SSLContext:
        return TlsContexts(self.source(account)).server(DownstreamTls(require_client_certificate=True))


def web_contexts(host: str, folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of an ordinary web server for `host`, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(pem + private)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem")
    return server, ssl.create_default_context(cadata=pem.decode())
