"""TLS contexts that judge the peer inside the handshake, before any byte of the application (rules M-10 to M-20, M-32, M-43).

The check sits in `do_handshake` of the classes that `wrap_bio` and `wrap_socket` return, so it holds alike for asyncio,
uvloop and blocking sockets: whoever gets a connected object has a verified peer. OpenSSL sees the union of all bundles; the
one bundle that counts is chosen afterwards by the trust domain of the peer (`proxyless.identity.verify`).

Sessions are not resumed: no tickets are issued, and whatever OpenSSL does, the peer of each handshake is judged, and a context
lives only as long as the SVID and bundles it was made from.
"""

from __future__ import annotations

import logging
import os
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from proxyless.core.matchers import StringMatcher
from proxyless.core.resources import DownstreamTls, TlsMaterial, UpstreamTls
from proxyless.errors import NoIdentityError, PeerVerificationError
from proxyless.identity.keyfile import load_svid
from proxyless.identity.source import IdentitySnapshot, IdentitySource
from proxyless.identity.verify import PeerRole, VerifiedPeer, verify_peer
from proxyless.spiffe import SpiffeId

__all__ = ["PeerRefusedError", "RotatingServerContext", "TlsConnection", "TlsContexts"]

logger = logging.getLogger(__name__)

FOREVER = float("inf")
MAX_CONTEXTS = 1024  # settings seen; configuration that churns must not grow memory without bound
MESH_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  # TLS 1.2; those of TLS 1.3 are all fine


_Stamp = tuple[int, tuple[tuple[int, int, int], ...]]


class PeerRefusedError(PeerVerificationError, ssl.SSLCertVerificationError):
    """The peer is refused. Also the `ssl` error that asyncio, uvloop and blocking callers expect from a handshake."""

    def __init__(self, step: str, reason: str, peer: str = "") -> None:
        PeerVerificationError.__init__(self, step, reason, peer)
        self.verify_code = 1  # X509_V_ERR_UNSPECIFIED
        self.verify_message = str(self)

    def __str__(self) -> str:
        return BaseException.__str__(self)  # an OSError that was not made by its own constructor shows a tuple


class TlsConnection(Protocol):
    """What a connected object of these contexts offers beside the methods of `ssl`."""

    peer: VerifiedPeer | None

    @property
    def peer_identity(self) -> SpiffeId | None: ...

    @property
    def valid_until(self) -> float: ...


class _Judged:
    """Mixed into the two classes of `ssl`."""

    context: ssl.SSLContext
    peer: VerifiedPeer | None = None

    @property
    def peer_identity(self) -> SpiffeId | None:
        """The verified SPIFFE ID; None for a peer without a certificate, or one that is not of the mesh."""
        return None if self.peer is None else self.peer.spiffe_id

    @property
    def peer_uri_sans(self) -> tuple[str, ...]:
        return () if self.peer is None else self.peer.uri_sans

    @property
    def peer_dns_sans(self) -> tuple[str, ...]:
        return () if self.peer is None else self.peer.dns_sans

    @property
    def peer_not_after(self) -> float:
        """POSIX seconds; infinite without a mesh peer."""
        return FOREVER if self.peer is None else self.peer.not_after

    @property
    def valid_until(self) -> float:
        """When the connection must end: the earlier end of both SVIDs, POSIX seconds (M-32)."""
        own = self.context.own_not_after if isinstance(self.context, _MeshContext) else FOREVER
        return min(own, self.peer_not_after)

    def _judge(self) -> None:
        context = self.context
        if not isinstance(context, _MeshContext) or context.judge is None:
            return
        try:
            self.peer = context.judge(self)
        except PeerRefusedError:
            raise
        except Exception:
            # Whoever runs the handshake expects the errors of `ssl`, and a peer that cannot be judged is refused (M-70).
            logger.exception("judging a peer failed")
            raise PeerRefusedError("handshake", "the peer could not be judged") from None


class _MeshObject(_Judged, ssl.SSLObject):
    def do_handshake(self) -> None:
        super().do_handshake()
        self._judge()


class _MeshSocket(_Judged, ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        self._judge()


class _MeshContext(ssl.SSLContext):
    """A context with a verdict on the peer and the end of our own certificate."""

    sslobject_class = _MeshObject
    sslsocket_class = _MeshSocket
    judge: Callable[[Any], VerifiedPeer | None] | None = None
    own_not_after: float = FOREVER
    stamp: _Stamp = (0, ())  # of what it was made from


class RotatingServerContext(ssl.SSLContext):
    """A context for a listener that outlives SVIDs: every new connection gets the context of the moment.

    Certificate, trust anchors and whether a client certificate is asked for all follow, which no other way of changing a live
    context achieves. Without an identity, or with files that cannot be used, the handshake fails, and the reason is logged at most once a second.
    """

    _provide: Callable[[], ssl.SSLContext]
    _last_log = 0.0

    def __new__(cls, provide: Callable[[], ssl.SSLContext]) -> RotatingServerContext:
        self = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        self._provide = provide
        return self

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self._current().wrap_bio(*args, **kwargs)

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        return self._current().wrap_socket(*args, **kwargs)

    def _current(self) -> ssl.SSLContext:
        try:
            return self._provide()
        except (NoIdentityError, OSError) as error:
            now = time.monotonic()
            if now - self._last_log >= 1.0:
                self._last_log = now
                logger.warning("refusing TLS connections: %s", error)
            # A server context without a certificate: the handshake ends with an alert instead of an exception in the
            # event loop, which would leave the connection open.
            return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


class TlsContexts:
    """Contexts for the TLS settings of clusters and listeners, made once for each (settings, identity generation).

    Args:
        source: our identity.
        now: wall clock in POSIX seconds, for validity.
    """

    def __init__(self, source: IdentitySource, now: Callable[[], float] = time.time) -> None:
        self._source = source
        self._now = now
        self._made: dict[UpstreamTls | DownstreamTls, tuple[_Stamp, _MeshContext]] = {}

    @property
    def generation(self) -> int:
        """Changes with our SVID and bundles: connections made under another one are not to be used for new requests."""
        return self._source.generation

    def client(self, tls: UpstreamTls) -> ssl.SSLContext:
        """For connections to an upstream. Pass `tls.sni`, or else the host, as `server_hostname`.

        Raises:
            NoIdentityError: the mesh's certificate or bundles are needed and there are none.
            OSError: a file that the settings name cannot be read or used (`ssl.SSLError` is one).
        """
        return self._context(tls)

    def is_current(self, tls: UpstreamTls, context: ssl.SSLContext) -> bool:
        """Whether `context`, of `client`, would be made from the same today. Makes nothing.

        Raises:
            NoIdentityError, OSError: as for `client`.
        """
        return isinstance(context, _MeshContext) and context.stamp == self._stamp(tls)[0]

    def server(self, tls: DownstreamTls) -> ssl.SSLContext:
        """For one connection of a listener. A listener that lives longer takes `rotating_server`.

        Raises:
            NoIdentityError, OSError: as for `client`.
        """
        return self._context(tls)

    def rotating_server(self, provide: Callable[[], DownstreamTls]) -> RotatingServerContext:
        """A context for a listener; `provide` is asked for the settings at each connection."""
        return RotatingServerContext(lambda: self.server(provide()))

    def _context(self, tls: UpstreamTls | DownstreamTls) -> _MeshContext:
        stamp, snapshot = self._stamp(tls)
        made = self._made.get(tls)
        if made is not None and made[0] == stamp:
            return made[1]
        context = self._build(tls, snapshot)
        # Contexts of earlier generations go at once: they hold keys and anchors that no longer count.
        kept = {key: value for key, value in self._made.items() if value[0][0] in (0, stamp[0])}
        if len(kept) >= MAX_CONTEXTS:
            del kept[next(iter(kept))]
        context.stamp = stamp
        kept[tls] = (stamp, context)
        self._made = kept  # in one piece: a dictionary that other threads look at never changes
        return context

    def _stamp(self, tls: UpstreamTls | DownstreamTls) -> tuple[_Stamp, IdentitySnapshot | None]:
        """What a context for `tls` is made from."""
        snapshot = None
        if TlsMaterial.UNKNOWN in (tls.certificate, tls.validation):
            secret = tls.certificate_file or tls.ca_file
            raise NoIdentityError(f"the configuration names a secret that this process has no source for: {secret}")
        if TlsMaterial.MESH in (tls.certificate, tls.validation):
            snapshot = self._source.current
            if snapshot is None:
                raise NoIdentityError(self._source.status or "there is no identity")
        return (0 if snapshot is None else snapshot.generation, _file_stamps(tls)), snapshot

    def _build(self, tls: UpstreamTls | DownstreamTls, snapshot: IdentitySnapshot | None) -> _MeshContext:
        if isinstance(tls, UpstreamTls):
            context = _MeshContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = tls.validation is not TlsMaterial.MESH and not tls.san_matchers
        else:
            context = _MeshContext(ssl.PROTOCOL_TLS_SERVER)
            context.num_tickets = 0
            asked = tls.require_client_certificate or tls.validation is not TlsMaterial.NONE
            if asked:
                context.verify_mode = ssl.CERT_REQUIRED if tls.require_client_certificate else ssl.CERT_OPTIONAL
        context.minimum_version = ssl.TLSVersion.TLSv1_3 if tls.tls13_only else ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_TICKET
        if tls.validation is TlsMaterial.MESH:
            context.set_ciphers(MESH_CIPHERS)
        if tls.alpn:
            context.set_alpn_protocols(list(tls.alpn))
        if tls.certificate is TlsMaterial.MESH and snapshot is not None:
            load_svid(context, snapshot.svid)
            context.own_not_after = snapshot.svid.not_after
        elif tls.certificate is TlsMaterial.FILE:
            context.load_cert_chain(tls.certificate_file, tls.key_file or None)
        self._trust(context, tls, snapshot)
        return context

    def _trust(
        self, context: _MeshContext, tls: UpstreamTls | DownstreamTls, snapshot: IdentitySnapshot | None
    ) -> None:
        now = self._now
        if tls.validation is TlsMaterial.MESH and snapshot is not None:
            anchors = b"".join(b"".join(bundle.usable_anchors(now())) for bundle in snapshot.bundles.values())
            if anchors:
                context.load_verify_locations(cadata=anchors)
            # An anchor may be an intermediate (M-16).
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            context.judge = _mesh_judge(tls, snapshot, now)
            return
        if tls.validation is TlsMaterial.FILE:
            context.load_verify_locations(tls.ca_file)
        elif context.verify_mode is not ssl.CERT_NONE:
            # Also for an upstream whose configuration names no anchors: a connection that verifies nobody is not offered.
            context.load_default_certs(
                ssl.Purpose.SERVER_AUTH if isinstance(tls, UpstreamTls) else ssl.Purpose.CLIENT_AUTH
            )
        if tls.san_matchers:
            context.judge = _names_judge(tls.san_matchers)


def _file_stamps(tls: UpstreamTls | DownstreamTls) -> tuple[tuple[int, int, int], ...]:
    """Changes when a file that the settings name is replaced or rewritten."""
    stats = [os.stat(path) for path in (tls.certificate_file, tls.key_file, tls.ca_file) if path]
    return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)


def _mesh_judge(
    tls: UpstreamTls | DownstreamTls, snapshot: IdentitySnapshot, now: Callable[[], float]
) -> Callable[[Any], VerifiedPeer | None]:
    peer_role: PeerRole = "server" if isinstance(tls, UpstreamTls) else "client"
    optional = isinstance(tls, DownstreamTls) and not tls.require_client_certificate
    bundles, matchers = snapshot.bundles, tls.san_matchers

    def judge(connection: Any) -> VerifiedPeer | None:
        chain = peer_chain(connection)
        if not chain and optional:
            return None
        try:
            peer = verify_peer(chain, bundles, peer_role, now())
        except PeerVerificationError as error:
            raise PeerRefusedError(error.step, error.reason, error.peer) from None
        if matchers and not _any_matches(matchers, peer.uri_sans):
            # The expected names stay with the operator's configuration: nothing of it reaches a peer (M-91).
            raise PeerRefusedError("authorize", "the peer is not one of those expected here", str(peer.spiffe_id))
        return peer

    return judge


def _names_judge(matchers: Sequence[StringMatcher]) -> Callable[[Any], VerifiedPeer | None]:
    """Envoy's `match_subject_alt_names` for peers outside the mesh, whose path OpenSSL has verified: one name of any kind fits. A
    DNS name of the certificate may have a wildcard for an exact one that is expected (Envoy `Utility::dnsNameMatch`)."""
    exact = [matcher.value for matcher in matchers if matcher.kind == "exact"]

    def judge(connection: Any) -> VerifiedPeer | None:
        certificate = connection.getpeercert() or {}
        names = [(kind, value) for kind, value in certificate.get("subjectAltName", ()) if isinstance(value, str)]
        if not _any_matches(matchers, [value for _, value in names]) and not any(
            kind == "DNS" and covers(value, expected) for kind, value in names for expected in exact
        ):
            raise PeerRefusedError("authorize", "the peer is not one of those expected here")
        return None

    return judge


def covers(pattern: str, name: str) -> bool:
    """Whether a DNS name of a certificate stands for `name`: one wildcard, in the leftmost label, for part of one label
    (RFC 6125 6.4.3; not a part of an A-label)."""
    label, _, rest = pattern.lower().partition(".")
    wanted, _, parent = name.lower().partition(".")
    before, star, after = label.partition("*")
    if not star:
        return pattern.lower() == name.lower()
    return (
        bool(rest)
        and rest == parent
        and "*" not in after + rest
        and len(wanted) > len(before + after)
        and wanted.startswith(before)
        and wanted.endswith(after)
        and (label == "*" or not wanted.startswith("xn--"))
    )


def _any_matches(matchers: Sequence[StringMatcher], names: Sequence[str]) -> bool:
    return any(matcher.matches(name) for name in names for matcher in matchers)


def peer_chain(connection: Any) -> list[bytes]:
    """The certificates that the peer sent, DER, leaf first; empty without any.

    Public from Python 3.13; 3.11 and 3.12 have the same on the private object behind both classes.
    """
    if sys.version_info >= (3, 13):
        return [der for der in connection.get_unverified_chain() or () if der is not None]
    import _ssl  # the encoding constant of the private certificate type has no public name

    sent = connection._sslobj.get_unverified_chain() or ()
    # Without a client certificate a server gets a list that holds None.
    return [certificate.public_bytes(_ssl.ENCODING_DER) for certificate in sent if certificate is not None]
