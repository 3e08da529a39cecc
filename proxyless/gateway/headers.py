"""Headers at the edge: what outsiders may not say, what is for one hop only (RFC 9110 section 7.6.1), what a gateway adds."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from proxyless.core.request import Address

__all__ = ["Headers", "authority_of", "closing", "forwarded", "returned"]

Headers = list[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade".split()
)
_NEVER_NAMED = frozenset(
    (b"host", b"content-length", b"content-type", b"cache-control")
)  # by Connection, whoever says so
# Instructions and identities that only the mesh may give. `x-envoy-*` goes too.
_NOT_FROM_OUTSIDE = frozenset((b"host", b"x-forwarded-client-cert"))
_OF_PROXIES_BEFORE = frozenset((b"x-forwarded-proto",))
_NOT_TO_OUTSIDE = frozenset((b"x-envoy-peer-metadata", b"x-envoy-peer-metadata-id"))
# The gateway itself says "100 Continue" when it reads the body.
_CONTINUE = b"100-continue"


def authority_of(headers: Headers, http_version: str) -> str | None:
    """The one Host; empty when an HTTP/1.0 client sends none, None when the request must be refused (RFC 9112 section 3.2)."""
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and http_version != "1.0"):
        return None
    return hosts[0].decode("latin-1") if hosts else ""


def forwarded(headers: Headers, *, trusted_hops: int) -> Headers:
    """The headers of a request that comes in, as the mesh believes them.

    Args:
        headers: as received, names in lower case.
        trusted_hops: proxies of ours before the gateway (Istio's numTrustedProxies); without any `x-forwarded-proto` is
            what we saw.
    """
    dropped = _HOP_BY_HOP | _NOT_FROM_OUTSIDE | _named_by_connection(headers)
    if not trusted_hops:
        dropped |= _OF_PROXIES_BEFORE
    kept: Headers = []
    has_id = has_scheme = False
    for name, value in headers:
        if name in dropped or name.startswith(b"x-envoy-") or (name == b"expect" and value.lower() == _CONTINUE):
            continue
        has_id = has_id or name == b"x-request-id"
        has_scheme = has_scheme or name == b"x-forwarded-proto"
        kept.append((name, value))
    if not has_scheme:
        kept.append((b"x-forwarded-proto", b"http"))
    if not has_id:
        kept.append((b"x-request-id", str(uuid.uuid4()).encode()))
    return kept


def closing(headers: Headers, client: Address) -> Headers:
    """`client` is the last of the addresses that the request came by (Envoy's use_remote_address)."""
    seen = [value for name, value in headers if name == b"x-forwarded-for"]
    if client.host:
        seen.append(client.host.encode())
    others = [pair for pair in headers if pair[0] != b"x-forwarded-for"]
    return [*others, (b"x-forwarded-for", b",".join(seen))] if seen else others


def returned(status: int, headers: Headers) -> Headers:
    """The headers of an answer, as they go out."""
    dropped = _HOP_BY_HOP | _NOT_TO_OUTSIDE | _named_by_connection(headers)
    if status in (204, 304):  # no body follows, whatever is announced
        dropped |= {b"content-length"}
    return [pair for pair in headers if pair[0].lower() not in dropped]


def _named_by_connection(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """What a Connection header calls hop-by-hop."""
    named = [
        part.strip().lower() for name, value in headers if name.lower() == b"connection" for part in value.split(b",")
    ]
    return frozenset(named) - _NEVER_NAMED
