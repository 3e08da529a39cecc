"""Which filter chain takes a connection, and what a port must be ready for before the first byte.

Source: Envoy `FilterChainManagerImpl::findFilterChain`. The criteria are looked at one after the other; each keeps the chains
with the most specific value that fits, or else those without a condition, and never comes back: a connection that fails a
later criterion has no chain, even if a less specific one would have taken it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Literal

from proxyless.core.matchers import CidrMatcher
from proxyless.core.request import Address
from proxyless.core.resources import DownstreamTls, FilterChain, Listener
from proxyless.values import frozen, replace

__all__ = ["ConnectionInfo", "accepts_plaintext", "select_chain", "tls_for_port"]

_PLAIN_TEXT = ("http/1.1",)
_HTTP2 = frozenset({"h2", "istio-h2"})

Chains = Sequence[FilterChain]


@frozen(kw_only=True)
class ConnectionInfo:
    """What is known of an inbound connection before TLS is terminated.

    Attributes:
        transport: ``tls`` when the first byte begins a TLS handshake.
        alpn: what the client offers, in its order. Plain text offers none and counts as HTTP/1.1, for our servers speak nothing
            else; in Envoy the HTTP inspector says so.
        server_name: its SNI, empty without one.
    """

    destination: Address
    transport: Literal["tls", "raw_buffer"] = "raw_buffer"
    alpn: tuple[str, ...] = ()
    server_name: str = ""
    source: Address = Address("", 0)


def select_chain(listener: Listener, info: ConnectionInfo) -> FilterChain | None:
    """The chain that takes the connection, the default chain, or None: close it."""
    chains: Chains = _of_port(listener.filter_chains, info.destination.port)
    chains = _by_range(chains, lambda chain: chain.match.prefix_ranges, info.destination.host)
    chains = _by_server_name(chains, info.server_name.lower())
    chains = _by_value(chains, lambda chain: _one(chain.match.transport_protocol), (info.transport,))
    offered = info.alpn or (_PLAIN_TEXT if info.transport == "raw_buffer" else ())
    chains = _by_value(chains, lambda chain: chain.match.application_protocols, offered)
    chains = _by_source_type(chains, info)
    chains = _by_range(chains, lambda chain: chain.match.source_prefix_ranges, info.source.host)
    chains = _by_value(chains, lambda chain: chain.match.source_ports, (info.source.port,))
    return chains[0] if chains else listener.default_filter_chain


def tls_for_port(listener: Listener, port: int, *, server_name: str = "", http2: bool = False) -> DownstreamTls | None:
    """TLS settings for a server that must choose before it has read a ClientHello; None: the port speaks no TLS.

    Its ALPN are those that chains of the port are selected by, then those of the chain; HTTP/2 only for a server that speaks
    it. When chains differ, one that requires a client certificate goes first.
    """
    chains = _by_server_name(_of_port(listener.filter_chains, port), server_name.lower())
    candidates = [chain for chain in (*chains, listener.default_filter_chain) if chain is not None]
    found = [(chain.tls, chain.match) for chain in candidates if chain.tls is not None]
    if not found:
        return None
    tls = next((tls for tls, _ in found if tls.require_client_certificate), found[0][0])
    offered = [name for _, match in found for name in match.application_protocols]
    alpn = tuple(name for name in dict.fromkeys((*offered, *tls.alpn)) if http2 or name not in _HTTP2)
    return replace(tls, alpn=alpn)


def accepts_plaintext(listener: Listener, port: int) -> bool:
    """A connection to this port that does not begin with TLS may find a chain."""
    chains = _of_port(listener.filter_chains, port)
    candidates = chains if chains else [listener.default_filter_chain]
    return any(
        chain is not None and chain.tls is None and chain.match.transport_protocol in ("", "raw_buffer")
        for chain in candidates
    )


def _one(text: str) -> tuple[str, ...]:
    return (text,) if text else ()


def _of_port(chains: Chains, port: int) -> Chains:
    exact = [chain for chain in chains if chain.match.destination_port == port]
    return exact or [chain for chain in chains if not chain.match.destination_port]


def _by_value(chains: Chains, values: Callable[[FilterChain], Sequence[object]], offered: Iterable[object]) -> Chains:
    """Chains with the first offered value that any chain names, else those that name none."""
    for value in offered:
        found = [chain for chain in chains if value in values(chain)]
        if found:
            return found
    return [chain for chain in chains if not values(chain)]


def _by_server_name(chains: Chains, name: str) -> Chains:
    """Exact, then the longest ``*.suffix``, then no condition."""
    offered = [name] if name else []
    rest = name
    while "." in rest:
        rest = rest.partition(".")[2]
        offered.append(f"*.{rest}")
    return _by_value(chains, lambda chain: chain.match.server_names, offered)


def _by_range(chains: Chains, ranges: Callable[[FilterChain], Sequence[str]], host: str) -> Chains:
    """Chains with the longest range that holds the address, else those without ranges."""
    if not any(ranges(chain) for chain in chains):
        return chains
    best, found = -1, []
    for chain in chains:
        lengths = [matcher.length for matcher in map(_cidr, ranges(chain)) if matcher.matches(host)]
        length = max(lengths, default=-1)
        if length > best:
            best, found = length, [chain]
        elif length == best and length >= 0:
            found.append(chain)
    return found or [chain for chain in chains if not ranges(chain)]


@lru_cache(maxsize=1024)
def _cidr(text: str) -> CidrMatcher:
    return CidrMatcher.parse(text)


def _by_source_type(chains: Chains, info: ConnectionInfo) -> Chains:
    if all(chain.match.source_type == "ANY" for chain in chains):
        return chains
    wanted = "LOCAL" if _is_local(info) else "EXTERNAL"
    found = [chain for chain in chains if chain.match.source_type == wanted]
    return found or [chain for chain in chains if chain.match.source_type == "ANY"]


def _is_local(info: ConnectionInfo) -> bool:
    if info.source.host == info.destination.host:
        return True
    try:
        return ipaddress.ip_address(info.source.host).is_loopback
    except ValueError:
        return False
