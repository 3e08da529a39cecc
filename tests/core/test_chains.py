from __future__ import annotations

from typing import Any

import pytest

from proxyless.core.chains import ConnectionInfo, accepts_plaintext, select_chain, tls_for_port
from proxyless.core.request import Address
from proxyless.core.resources import DownstreamTls, FilterChain, FilterChainMatch, Listener

TLS = DownstreamTls(require_client_certificate=True, alpn=("h2", "http/1.1"))
ISTIO_ALPN = ("istio", "istio-http/1.1", "istio-h2")


def chain(name: str, tls: DownstreamTls | None = None, **match: Any) -> FilterChain:
    return FilterChain(name=name, tls=tls, match=FilterChainMatch(**match))


def chosen(chains: list[FilterChain], default: FilterChain | None = None, **info: Any) -> str | None:
    info.setdefault("destination", Address("10.0.0.1", 8080))
    info.setdefault("source", Address("10.0.0.9", 4000))
    listener = Listener(name="l", filter_chains=tuple(chains), default_filter_chain=default)
    found = select_chain(listener, ConnectionInfo(**info))
    return None if found is None else found.name


def test_the_port_comes_first_and_never_back() -> None:
    chains = [chain("any"), chain("port", destination_port=8080, transport_protocol="tls")]
    assert chosen(chains, transport="tls") == "port"
    assert chosen(chains, transport="raw_buffer") is None
    assert chosen(chains, destination=Address("10.0.0.1", 9090)) == "any"


def test_the_longest_destination_range_wins() -> None:
    chains = [chain("8", prefix_ranges=("10.0.0.0/8",)), chain("24", prefix_ranges=("10.0.0.0/24",)), chain("rest")]
    assert chosen(chains) == "24"
    assert chosen(chains, destination=Address("10.9.0.1", 1)) == "8"
    assert chosen(chains, destination=Address("192.0.2.1", 1)) == "rest"


def test_a_server_name_is_exact_then_the_longest_suffix_then_any() -> None:
    chains = [
        chain("exact", server_names=("a.b.test",)),
        chain("long", server_names=("*.b.test",)),
        chain("short", server_names=("*.test",)),
        chain("none"),
    ]
    assert chosen(chains, server_name="A.b.test") == "exact"
    assert chosen(chains, server_name="x.b.test") == "long"
    assert chosen(chains, server_name="x.y.test") == "short"
    assert chosen(chains, server_name="test") == "none"
    assert chosen(chains) == "none"


def test_the_first_protocol_offered_that_a_chain_names_wins() -> None:
    chains = [chain("a", application_protocols=("a",)), chain("b", application_protocols=("b",)), chain("none")]
    assert chosen(chains, alpn=("x", "b", "a")) == "b"
    assert chosen(chains, alpn=("x",)) == "none"


def test_plain_text_counts_as_http() -> None:
    chains = [chain("http", application_protocols=("http/1.1", "h2c")), chain("tcp")]
    assert chosen(chains) == "http"
    assert chosen(chains, transport="tls") == "tcp"


def test_source_type_source_range_and_source_port_come_last() -> None:
    chains = [
        chain("local", source_type="LOCAL"),
        chain("external", source_type="EXTERNAL", source_prefix_ranges=("10.0.0.0/24",)),
        chain("port", source_type="EXTERNAL", source_prefix_ranges=("10.0.0.0/24",), source_ports=(4001,)),
    ]
    assert chosen(chains) == "external"
    assert chosen(chains, source=Address("10.0.0.9", 4001)) == "port"
    assert chosen(chains, source=Address("10.0.0.1", 1)) == "local"
    assert chosen(chains, source=Address("127.0.0.1", 1)) == "local"
    assert chosen(chains, source=Address("192.0.2.1", 1)) is None


def test_the_default_chain_takes_what_no_other_takes() -> None:
    assert chosen([chain("tls", transport_protocol="tls")], chain("default")) == "default"


def permissive() -> Listener:
    return Listener(
        name="virtualInbound",
        filter_chains=(
            chain("mtls", TLS, destination_port=8080, transport_protocol="tls", application_protocols=ISTIO_ALPN),
            chain("plain", destination_port=8080, transport_protocol="raw_buffer"),
            chain("strict", TLS, destination_port=9090, transport_protocol="tls"),
            chain("catch-all", transport_protocol="raw_buffer"),
        ),
    )


@pytest.mark.parametrize(
    ("port", "transport", "alpn", "expected"),
    [
        (8080, "tls", ("istio-http/1.1", "istio"), "mtls"),
        (8080, "tls", ("http/1.1",), None),
        (8080, "raw_buffer", (), "plain"),
        (9090, "tls", (), "strict"),
        (9090, "raw_buffer", (), None),
        (7070, "raw_buffer", (), "catch-all"),
    ],
)
def test_istios_permissive_and_strict_ports(
    port: int, transport: Any, alpn: tuple[str, ...], expected: str | None
) -> None:
    info = ConnectionInfo(destination=Address("10.0.0.1", port), transport=transport, alpn=alpn)
    found = select_chain(permissive(), info)
    assert (None if found is None else found.name) == expected


def test_what_a_port_must_be_ready_for_is_derived_from_its_chains() -> None:
    listener = permissive()
    assert [accepts_plaintext(listener, port) for port in (8080, 9090, 7070)] == [True, False, True]
    tls = tls_for_port(listener, 8080)
    assert tls is not None
    assert tls.alpn == ("istio", "istio-http/1.1", "http/1.1")
    both = tls_for_port(listener, 8080, http2=True)
    assert both is not None
    assert "istio-h2" in both.alpn
    assert tls_for_port(listener, 7070) is None
