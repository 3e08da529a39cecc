"""A CA and the identities of its workloads, for both ends of a connection."""

from __future__ import annotations

import ssl

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
