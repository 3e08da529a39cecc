"""config.listener.v3.Listener -> `Listener`: the sidecar form (filter chains) and the API form (one connection manager)."""

from __future__ import annotations

from typing import Any

from proxyless.core.matchers import CidrMatcher
from proxyless.core.resources import FilterChain, FilterChainMatch, HttpConnectionManager, Listener
from proxyless.xds.decode.errors import FieldError, at, each
from proxyless.xds.decode.filters import HCM, chain_filter, connection_manager
from proxyless.xds.decode.tls import downstream_tls
from proxyless.xds.decode.values import address, present_or, typed

__all__ = ["listener"]

_DIRECTIONS = ("", "INBOUND", "OUTBOUND")
_SOURCE_TYPES = ("ANY", "LOCAL", "EXTERNAL")
_REFUSED_CONDITIONS = ("address_suffix", "suffix_len", "direct_source_prefix_ranges")


def listener(message: Any) -> Listener:
    api = None
    if message.HasField("api_listener"):
        api = at("api_listener.api_listener", _api, message.api_listener.api_listener)
    elif not message.HasField("address"):
        raise FieldError("address", "is required")
    for field in ("filter_chain_matcher", "fcds_config"):
        if field in message.DESCRIPTOR.fields_by_name and message.HasField(field):
            raise FieldError(field, "is not supported")
    chains = each("filter_chains", _chain, message.filter_chains)
    _unique_matches(chains)
    default = None
    if message.HasField("default_filter_chain"):
        default = at("default_filter_chain", _chain, message.default_filter_chain)
    return Listener(
        name=message.name,
        address=at("address", address, message.address) if message.HasField("address") else None,
        direction=_DIRECTIONS[message.traffic_direction] if message.traffic_direction < len(_DIRECTIONS) else "",
        filter_chains=chains,
        default_filter_chain=default,
        use_original_dst=bool(present_or(message, "use_original_dst", False)),
        api=api,
    )


def _api(packed: Any) -> HttpConnectionManager:
    return connection_manager(typed(packed, HCM))


def _chain(message: Any) -> FilterChain:
    tls = (
        at("transport_socket", downstream_tls, message.transport_socket)
        if message.HasField("transport_socket")
        else None
    )
    return FilterChain(
        match=at("filter_chain_match", _match, message.filter_chain_match),
        name=message.name,
        tls=tls,
        filter=chain_filter(message.filters),
    )


def _match(message: Any) -> FilterChainMatch:
    present = {descriptor.name for descriptor, _ in message.ListFields()}
    for field in _REFUSED_CONDITIONS:
        if field in present:
            raise FieldError(field, "this condition is not supported")
    port = present_or(message, "destination_port", 0)
    if port > 65535:
        raise FieldError("destination_port", f"{port} is out of range")
    return FilterChainMatch(
        destination_port=port,
        prefix_ranges=each("prefix_ranges", _range, message.prefix_ranges),
        server_names=each("server_names", _server_name, message.server_names),
        transport_protocol=message.transport_protocol,
        application_protocols=tuple(message.application_protocols),
        source_type=_SOURCE_TYPES[message.source_type],
        source_prefix_ranges=each("source_prefix_ranges", _range, message.source_prefix_ranges),
        source_ports=tuple(message.source_ports),
    )


def _range(value: Any) -> str:
    """``address/length`` with the host bits off."""
    return str(CidrMatcher(value.address_prefix, value.prefix_len.value))


def _server_name(text: str) -> str:
    """Exact, or ``*.suffix``; lower case, as an SNI arrives. Partial wildcards are refused, as in Envoy."""
    if not text or "*" in text.removeprefix("*.") or text == "*.":
        raise ValueError(f"server name {text!r}: a wildcard is the whole first label")
    return text.lower()


def _unique_matches(chains: tuple[FilterChain, ...]) -> None:
    """Two chains with the same match are ambiguous; Envoy refuses them."""
    seen: set[FilterChainMatch] = set()
    for index, chain in enumerate(chains):
        if chain.match in seen:
            raise FieldError(f"filter_chains[{index}].filter_chain_match", "is the same as that of an earlier chain")
        seen.add(chain.match)
