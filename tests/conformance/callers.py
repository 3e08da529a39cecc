"""Inbound connections with real TLS handshakes in memory: a recorded peer against the product's server context."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from proxyless.core.resources import DownstreamTls
from proxyless.errors import PeerVerificationError
from proxyless.identity.bundle import TrustBundle
from proxyless.identity.source import StaticSource
from proxyless.identity.svid import X509Svid
from proxyless.identity.tls import TlsContexts

Certificate = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


class HandshakeRefused(Exception):
    """The server ended the connection before a request."""


class MeshAuthority:
    """One root for everything a recorded mesh trusts, and another one that nobody trusts."""

    def __init__(self, trust_domains: tuple[str, ...], identity: str) -> None:
        self._root, self._stranger = _root("mesh"), _root("stranger")
        leaf = self.certificate((identity,), ())
        anchor = self._root[0].public_bytes(serialization.Encoding.DER)
        bundles = [TrustBundle(domain, [anchor]) for domain in trust_domains]
        key = leaf[1].private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        svid = X509Svid.parse(leaf[0].public_bytes(serialization.Encoding.DER), key)
        self.contexts = TlsContexts(StaticSource(svid, bundles))

    def certificate(self, uris: tuple[str, ...], dns: tuple[str, ...], *, untrusted: bool = False) -> Certificate:
        return _issue(self._stranger if untrusted else self._root, uris, dns)

    def handshake(self, tls: DownstreamTls, peer: Mapping[str, Any]) -> Any:
        """The server's end of a finished handshake.

        Raises:
            HandshakeRefused: the server refused, or the peer could not agree with it.
        """
        server = self.contexts.server(tls)
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        if peer.get("alpn"):
            client.set_alpn_protocols(peer["alpn"])
        if peer.get("max_version") in ("TLSv1.2", "TLSv1_2", "1.2"):
            client.maximum_version = ssl.TLSVersion.TLSv1_2
        if peer.get("uri_sans") or peer.get("dns_sans"):
            leaf = self.certificate(
                tuple(peer.get("uri_sans") or ()),
                tuple(peer.get("dns_sans") or ()),
                untrusted=bool(peer.get("untrusted")),
            )
            _load(client, leaf)
        return _run(server, client, peer.get("sni"))


def _run(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None) -> Any:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    theirs = client.wrap_bio(to_client, to_server, server_side=False, server_hostname=name)
    done = False
    for _ in range(10):
        for end in (theirs, ours):
            try:
                end.do_handshake()
                done = end is ours or done
            except ssl.SSLWantReadError:
                continue
            except (ssl.SSLError, PeerVerificationError) as error:
                raise HandshakeRefused(str(error)) from error
        if done:
            return ours
    raise HandshakeRefused("the handshake does not end")


@lru_cache(maxsize=512)
def _issue(root: Certificate, uris: tuple[str, ...], dns: tuple[str, ...]) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, dns)]
    certificate = (
        _builder("leaf", key, root[0].subject, root[1])
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign=False), critical=True)
        .sign(root[1], hashes.SHA256())
    )
    return certificate, key


def _root(name: str) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    certificate = (
        _builder(name, key, subject, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _builder(
    name: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Name, signer: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=sign, crl_sign=sign, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _load(context: ssl.SSLContext, certificate: Certificate) -> None:
    import os

    descriptor = os.memfd_create("peer")
    try:
        pem = serialization.Encoding.PEM
        key = certificate[1].private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        os.write(descriptor, key + certificate[0].public_bytes(pem))
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
