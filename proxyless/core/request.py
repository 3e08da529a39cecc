"""What a decision may look at: a request, its peer, and what came of an attempt. The same for HTTP and gRPC, both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Self

from proxyless.spiffe import SpiffeId
from proxyless.values import field, frozen

__all__ = ["Address", "Outcome", "OutcomeKind", "Peer", "Request"]

RawHeaders = Sequence[tuple[bytes, bytes]]


class Address(NamedTuple):
    """A transport address. A Unix socket has its path as host (it starts with ``/``) and port 0."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_NOWHERE = Address("", 0)


class Request:
    """One request as the deciders see it. Cheap to make: headers are indexed when a matcher first asks.

    Attributes:
        method: upper case as sent.
        scheme: ``http`` or ``https``.
        authority: Host as sent, port included.
        path: request target without query and fragment; the normalised one on the inbound side.
        query: after the first ``?``, without it; empty when there is none.
        headers: raw pairs in order, names in any case. Pseudo-headers are not among them.
        destination: outbound: the address the caller named (host of the URL, port); inbound: our listening address.
        sni: server name of the TLS connection, empty when there is none.
        body_replayable: the body can be sent again.
    """

    __slots__ = (
        "_index",
        "authority",
        "body_replayable",
        "destination",
        "headers",
        "method",
        "path",
        "query",
        "scheme",
        "sni",
    )

    def __init__(
        self,
        method: str,
        path: str,
        headers: RawHeaders,
        *,
        authority: str,
        scheme: str = "http",
        query: str = "",
        destination: Address = _NOWHERE,
        sni: str = "",
        body_replayable: bool = True,
    ) -> None:
        self.method, self.path, self.headers, self.authority = method, path, headers, authority
        self.scheme, self.query, self.destination, self.sni = scheme, query, destination, sni
        self.body_replayable = body_replayable
        self._index: dict[str, list[str]] | None = None

    def values(self, name: str) -> Sequence[str]:
        """Values of a header in order, decoded as latin-1; empty when absent. `name` is lower case; `:method`, `:path`,
        `:authority` and `:scheme` are known."""
        if name[:1] == ":":
            return self._pseudo(name)
        if name == "host":
            return (self.authority,)
        index = self._index
        if index is None:
            index = self._index = {}
            for key, value in self.headers:
                # Blanks around a value are no part of it (RFC 9110 5.5); not every server's parser drops them.
                index.setdefault(key.decode("latin-1").lower(), []).append(value.decode("latin-1").strip(" \t"))
        return index.get(name, ())

    def with_path(self, path: str) -> Self:
        """The same request for another path."""
        changed = copy(self)
        changed.path = path
        return changed

    def has(self, name: bytes) -> bool:
        """There is a header of this name (lower case). Indexes nothing: for the one header that most requests lack."""
        if self._index is not None:
            return name.decode("latin-1") in self._index
        length = len(name)
        for key, _ in self.headers:  # noqa: SIM110 - `any` of a generator costs twice as much, and this runs for every request
            if len(key) == length and key.lower() == name:
                return True
        return False

    def _pseudo(self, name: str) -> Sequence[str]:
        match name:
            case ":method":
                return (self.method,)
            case ":authority":
                return (self.authority,)
            case ":path":
                return (f"{self.path}?{self.query}" if self.query else self.path,)
            case ":scheme":
                return (self.scheme,)
        return ()

    @property
    def is_grpc(self) -> bool:
        """Content type is ``application/grpc`` or ``application/grpc+...`` (Envoy Grpc::Common::isGrpcRequestHeaders).

        A repeated content type is one joined value, as recorded from Envoy."""
        values = self.values("content-type")
        value = values[0] if len(values) == 1 else ",".join(filter(None, values))
        return value == "application/grpc" or value.startswith("application/grpc+")


@frozen(kw_only=True)
class Peer:
    """Who is at the other end of an inbound connection. Filled by the TLS layer only, never from a header.

    Attributes:
        identity: verified SPIFFE ID; None for plain text (an anonymous peer) .
        uri_sans: URI names of the verified certificate, as text; empty without one.
        dns_sans: DNS names of the verified certificate.
        subject: subject of the certificate in RFC 2253 form.
        tls: the connection is encrypted.
        alpn: negotiated protocol, empty when none.
        sni: server name the peer asked for.
        address: the peer's transport address (Envoy `direct_remote_ip`).
        proxied: the address that PROXY protocol gave (Envoy `source_ip`); None: same as `address`.
        remote: the address after X-Forwarded-For (Envoy `remote_ip`); None: same as `proxied`.
        local: our own address on this connection.
        claims: verified JWT claims, by the metadata key under which the provider publishes them (`payload_in_metadata`);
            empty until JWT verification exists.
        request_principal: ``iss/sub`` of the verified token; empty when none.
    """

    identity: SpiffeId | None = None
    uri_sans: tuple[str, ...] = ()
    dns_sans: tuple[str, ...] = ()
    subject: str = ""
    tls: bool = False
    alpn: str = ""
    sni: str = ""
    address: Address = _NOWHERE
    proxied: Address | None = None
    remote: Address | None = None
    local: Address = _NOWHERE
    claims: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    request_principal: str = ""


class OutcomeKind(StrEnum):
    """What an engine can report for one attempt. Names follow Envoy's stream reset reasons."""

    RESPONSE = "response"  # response headers arrived
    CONNECT_FAILURE = "connect_failure"  # refused, unreachable, handshake or identity refused, connect timeout
    OVERFLOW = "overflow"  # connection and pending limits are used up
    RESET_BEFORE_REQUEST = "reset_before_request"  # connection ended before a byte of the request was written
    RESET = "reset"  # connection ended before response headers
    REFUSED_STREAM = "refused_stream"  # HTTP/2 REFUSED_STREAM, GOAWAY below our stream
    PROTOCOL_ERROR = "protocol_error"  # unparsable response
    PER_TRY_TIMEOUT = "per_try_timeout"  # this attempt's time is over
    TIMEOUT = "timeout"  # the call's time is over
    CANCELLED = "cancelled"  # the caller went away


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of one attempt.

    Attributes:
        status: HTTP status; 0 without a response.
        grpc_status: from response headers (trailers-only) ; None when there is none.
        headers: response headers, raw.
        reused: the connection had served another request before.
        bytes_seen: any byte of the response arrived.
        detail: transport failure reason, for people.
        timed_out: a CONNECT_FAILURE that was a timeout.
        identity_refused: a CONNECT_FAILURE because the peer is not who it must be.
    """

    kind: OutcomeKind
    status: int = 0
    grpc_status: int | None = None
    headers: RawHeaders = ()
    reused: bool = False
    bytes_seen: bool = False
    detail: str = ""
    timed_out: bool = False
    identity_refused: bool = False
