"""Every error of proxyless.

    ProxylessError
    ├─ ConfigError                    wrong input from a person, found before serving
    │  ├─ SettingsError               environment or argument
    │  └─ ManifestError               a file of Istio YAML: place, field path, reason, hint
    ├─ UnsupportedError               a call of our API that does not exist yet
    ├─ XdsError
    │  ├─ InvalidResourceError        one resource refused; its text becomes the NACK
    │  └─ ControlPlaneUnavailableError
    ├─ IdentityError
    │  ├─ InvalidSpiffeIdError        not a SPIFFE ID (SPIFFE-ID 2)
    │  ├─ InvalidSvidError            an SVID or bundle that was given to us is unusable
    │  ├─ NoIdentityError             no SVID yet, or it has expired or was withdrawn
    │  └─ PeerVerificationError       the other end of a connection is not who it must be
    ├─ RequestError                   one outbound request failed; carries Envoy's response flag
    │  ├─ NotReadyError               no configuration or identity within the deadline
    │  ├─ LocalReplyError             the mesh itself answered; only raised where no response can be returned
    │  ├─ ConnectFailureError  (UF)
    │  ├─ ConnectionTerminatedError (UC)
    │  ├─ UpstreamProtocolError (UPE)
    │  └─ UpstreamTimeoutError (UT)
    └─ EngineError                    what happened on one connection; the core turns it into a decision

At the edge an error of the RequestError branch is also the matching error of the host library (docs/decisions/0007).
Texts never hold keys, tokens or PEM bodies.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "ConfigError",
    "ConnectFailureError",
    "ConnectionTerminatedError",
    "ControlPlaneUnavailableError",
    "EngineError",
    "IdentityError",
    "InvalidResourceError",
    "InvalidSpiffeIdError",
    "InvalidSvidError",
    "LocalReplyError",
    "ManifestError",
    "NoIdentityError",
    "NotReadyError",
    "PeerVerificationError",
    "ProxylessError",
    "RequestError",
    "SettingsError",
    "UnsupportedError",
    "UpstreamProtocolError",
    "UpstreamTimeoutError",
    "XdsError",
]


class ProxylessError(Exception):
    """Base of every error raised by proxyless."""


class ConfigError(ProxylessError):
    """Input from a person is wrong. Raised before anything is served."""


class SettingsError(ConfigError):
    """An environment variable or constructor argument is unusable; the text names it and a right value."""


class UnsupportedError(ProxylessError):
    """Part of an API that we take the place of does not exist yet; the text names it and what to do instead."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a file: line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class ManifestError(ConfigError):
    """A manifest cannot be used.

    Attributes:
        place: file, line and column of the offending node.
        path: field path such as ``spec.http[0].timeout``; empty for the document itself.
        reason: what is wrong.
        hint: what to write instead; may be empty.
    """

    def __init__(self, place: Place, path: str, reason: str, hint: str = "") -> None:
        self.place, self.path, self.reason, self.hint = place, path, reason, hint
        where = f"{place}: {path}: " if path else f"{place}: "
        super().__init__(f"{where}{reason}" + (f" ({hint})" if hint else ""))


class XdsError(ProxylessError):
    """The control plane, or what it sent, is unusable."""


class InvalidResourceError(XdsError):
    """One xDS resource is refused; the last good one stays.

    Attributes:
        type_url: type of the resource.
        name: its name, possibly empty when it could not be read.
        field: path of the field in proto names (``virtual_hosts[0].domains``).
        reason: why.
    """

    def __init__(self, type_url: str, name: str, field: str, reason: str) -> None:
        self.type_url, self.name, self.field, self.reason = type_url, name, field, reason
        kind = type_url.rpartition(".")[2]
        super().__init__(f"{kind} {name!r}: {field + ': ' if field else ''}{reason}")


class ControlPlaneUnavailableError(XdsError):
    """No control plane answers; what was accepted before stays in use."""


class IdentityError(ProxylessError):
    """Something about an identity is wrong; the operation is refused."""


class InvalidSpiffeIdError(IdentityError):
    """A string is not a SPIFFE ID.

    Attributes:
        code: machine-readable reason, for example ``scheme`` or ``path-characters``.
    """

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(text)


class InvalidSvidError(IdentityError):
    """An SVID, key or bundle given to us breaks the X509-SVID rules; the state before stays.

    Attributes:
        step: the check that failed, for example ``key-match``, ``id-mismatch`` or one of the steps of a peer.
    """

    def __init__(self, step: str, reason: str) -> None:
        self.step = step
        super().__init__(f"{reason} [{step}]")


class NoIdentityError(IdentityError):
    """There is no usable SVID: none yet, expired, or withdrawn."""


class PeerVerificationError(IdentityError):
    """The peer's certificate is refused (rules M-10 to M-18).

    Attributes:
        step: the check that failed, for example ``uri-san-count``, ``trust-domain``, ``path``, ``authorize``.
        reason: what is wrong, without step and peer.
        peer: the SPIFFE ID that the peer claimed, when one could be read.
    """

    def __init__(self, step: str, reason: str, peer: str = "") -> None:
        self.step, self.reason, self.peer = step, reason, peer
        super().__init__(f"{reason} [{step}]" + (f" peer={peer}" if peer else ""))


class RequestError(ProxylessError):
    """One outbound request failed.

    Attributes:
        flag: Envoy response flag, comma-separated when several apply.
        details: Envoy's RESPONSE_CODE_DETAILS.
        status: the HTTP status Envoy would have answered.
        cluster: name of the cluster, empty when none was chosen.
        endpoint: ``host:port`` of the last attempt, empty when there was none.
        attempts: number of attempts made.
    """

    flag = "-"
    status = 503

    def __init__(
        self,
        message: str,
        *,
        flag: str | None = None,
        details: str = "",
        status: int | None = None,
        cluster: str = "",
        endpoint: str = "",
        attempts: int = 0,
    ) -> None:
        super().__init__(message)
        self.flag = flag or type(self).flag
        self.status = status or type(self).status
        self.details, self.cluster, self.endpoint, self.attempts = details, cluster, endpoint, attempts


class NotReadyError(RequestError):
    """No configuration (or no identity) arrived within the deadline of the request."""


class LocalReplyError(RequestError):
    """The mesh answered by itself, in a place where no response object can be returned."""


class ConnectFailureError(RequestError):
    """UF: no connection, a refused handshake, or the wrong peer identity."""

    flag = "UF"


class ConnectionTerminatedError(RequestError):
    """UC: the connection ended before the response did."""

    flag = "UC"


class UpstreamProtocolError(RequestError):
    """UPE: the peer does not speak HTTP as it should."""

    flag = "UPE"
    status = 502


class UpstreamTimeoutError(RequestError):
    """UT: the route's or the attempt's time is over."""

    flag = "UT"
    status = 504


class EngineError(ProxylessError):
    """What happened on one connection. The core decides what it means; users never see it.

    Attributes:
        kind: one of ``connect``, ``connect_timeout``, ``tls``, ``identity``, ``pool_overflow``, ``pool_timeout``,
            ``read`` (reset), ``closed`` (ended in an orderly way, but too early), ``read_timeout``, ``write_timeout``,
            ``protocol``, ``deadline``, ``request`` (cannot be sent as it is: nothing happened on any connection).
        reused: the connection had served an earlier request.
        bytes_seen: any byte of this response was received.
        request_sent: any byte of this request was written.
    """

    def __init__(
        self, kind: str, message: str, *, reused: bool = False, bytes_seen: bool = False, request_sent: bool = False
    ) -> None:
        super().__init__(message)
        self.kind, self.reused, self.bytes_seen, self.request_sent = kind, reused, bytes_seen, request_sent
