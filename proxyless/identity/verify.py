"""Who the other end of a connection is: rules M-10 to M-17, in that order (X509-SVID 5, Workload API 4.6).

OpenSSL proves possession of the key and knows one pool of roots; here the chain that was sent is judged again by SPIFFE's
rules against the bundle of the leaf's own trust domain, so one trust domain can never speak for another.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

from proxyless.errors import InvalidSvidError, PeerVerificationError
from proxyless.identity.bundle import TrustBundle
from proxyless.identity.svid import X509Svid
from proxyless.spiffe import SpiffeId

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.x509.verification import PolicyBuilder

    from proxyless.identity.certificates import Leaf

__all__ = ["PeerRole", "VerifiedPeer", "check_own", "verify_peer"]

PeerRole = Literal["client", "server"]

MAX_SENT_CERTIFICATES = 10
MAX_REMEMBERED = 2048


@dataclass(frozen=True, slots=True)
class VerifiedPeer:
    """A peer whose SVID held. Times are POSIX seconds, of the leaf; `subject` has the RFC 4514 form."""

    spiffe_id: SpiffeId
    uri_sans: tuple[str, ...]
    dns_sans: tuple[str, ...]
    subject: str
    serial: str
    not_before: float
    not_after: float


class _Verified:
    """A remembered verdict, the bundle it rests on, and the time in which every certificate of its path is valid."""

    __slots__ = ("anchors", "peer", "since", "until")

    def __init__(self, peer: VerifiedPeer, bundle: TrustBundle, path: Sequence[x509.Certificate]) -> None:
        from proxyless.identity.certificates import window

        windows = [window(certificate) for certificate in path]
        self.peer = peer
        self.anchors = bundle.digest
        self.since = max(start for start, _ in windows)
        self.until = min(end for _, end in windows)

    def holds(self, bundles: Mapping[str, TrustBundle], now: float) -> bool:
        bundle = bundles.get(self.peer.spiffe_id.trust_domain)
        return bundle is not None and bundle.digest == self.anchors and self.since <= now < self.until


# Verdicts by digest of role and chain. Only accepted peers get in. Single dict operations, so no lock that a fork could break.
_known: dict[bytes, _Verified] = {}


def verify_peer(
    chain: Sequence[bytes], bundles: Mapping[str, TrustBundle], peer_role: PeerRole, now: float
) -> VerifiedPeer:
    """Judge the certificates a peer sent in its handshake.

    Args:
        chain: DER, leaf first, as sent.
        bundles: by trust domain.
        peer_role: what the peer is on this connection: ``client`` when it called us, ``server`` when we called it.
        now: POSIX seconds.

    Raises:
        PeerVerificationError: it is refused; `step` is one of ``no-certificate``, ``parse``, ``uri-san-count``,
            ``spiffe-id``, ``ca-flag``, ``key-usage``, ``trust-domain``, ``time``, ``path``, ``eku``.
    """
    if not chain:
        raise PeerVerificationError("no-certificate", "the peer sent no certificate")
    if len(chain) > MAX_SENT_CERTIFICATES:
        raise PeerVerificationError("path", f"the peer sent {len(chain)} certificates")
    key = _cache_key(chain, peer_role)
    known = _known.get(key)
    if known is not None and known.holds(bundles, now):
        return known.peer
    verdict = _judge(chain, bundles, peer_role, now)
    if len(_known) >= MAX_REMEMBERED:
        _known.clear()
    _known[key] = verdict
    return verdict.peer


def _judge(chain: Sequence[bytes], bundles: Mapping[str, TrustBundle], peer_role: PeerRole, now: float) -> _Verified:
    from proxyless.identity import certificates

    try:
        certificate = certificates.load(chain[0])
        leaf = certificates.read_leaf(certificate)
        claimed = str(leaf.spiffe_id)
        bundle = _bundle_for(leaf.spiffe_id, bundles)
        path = _build_path(leaf, certificate, chain[1:], bundle, now)
        if not leaf.may_act_as(peer_role):
            raise certificates.RuleError("eku", f"the certificate may not be used by a {peer_role}", claimed)
    except certificates.RuleError as error:
        raise PeerVerificationError(error.step, error.reason, error.claimed) from None
    return _Verified(_peer(leaf), bundle, path)


def _bundle_for(spiffe_id: SpiffeId, bundles: Mapping[str, TrustBundle]) -> TrustBundle:
    from proxyless.identity.certificates import RuleError

    bundle = bundles.get(spiffe_id.trust_domain)
    if bundle is None or not bundle.anchors:
        what = "no bundle" if bundle is None else "an empty bundle"
        raise RuleError("trust-domain", f"{what} for trust domain {spiffe_id.trust_domain}", str(spiffe_id))
    return bundle


def _build_path(
    leaf: Leaf, certificate: x509.Certificate, sent: Sequence[bytes], bundle: TrustBundle, now: float
) -> list[x509.Certificate]:
    """RFC 5280 path validation against one bundle alone. Raises RuleError."""
    from cryptography.x509.verification import VerificationError

    from proxyless.identity.certificates import RuleError, is_self_signed, load, window

    if not leaf.not_before <= now < leaf.not_after:
        when = "expired" if now >= leaf.not_after else "not yet valid"
        raise RuleError("time", f"the certificate is {when}", str(leaf.spiffe_id))
    store = bundle.store(now)
    if store is None:
        raise RuleError("time", f"no trust anchor of {bundle.trust_domain} is valid now", str(leaf.spiffe_id))
    # OpenSSL sends the root along when it knows it; a root from a peer gives no trust and disturbs path building.
    others = [other for other in map(load, sent) if not is_self_signed(other)]
    instant = datetime.datetime.fromtimestamp(now, datetime.UTC)
    verifier = _policies().store(store).time(instant).build_client_verifier()
    try:
        return verifier.verify(certificate, others).chain
    except VerificationError as error:
        stale = any(not start <= now < end for start, end in map(window, others))
        reason = f"no valid path to a trust anchor: {str(error)[:200]}"
        raise RuleError("time" if stale else "path", reason, str(leaf.spiffe_id)) from None


@cache
def _policies() -> PolicyBuilder:
    """Web PKI rules for CAs. For the leaf our own rules stand in for what web browsers ask beyond RFC 5280: key usages are
    checked by role, and a SPIFFE ID needs neither a host name nor a key identifier of its issuer."""
    from cryptography import x509
    from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder

    leaf = ExtensionPolicy.webpki_defaults_ee()
    for extension in (x509.ExtendedKeyUsage, x509.SubjectAlternativeName, x509.AuthorityKeyIdentifier):
        leaf = leaf.may_be_present(extension, Criticality.AGNOSTIC, None)
    return PolicyBuilder().extension_policies(ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=leaf)


def _peer(leaf: Leaf) -> VerifiedPeer:
    return VerifiedPeer(
        spiffe_id=leaf.spiffe_id,
        uri_sans=leaf.uri_sans,
        dns_sans=leaf.dns_sans,
        subject=leaf.subject,
        serial=f"{leaf.serial:x}",
        not_before=leaf.not_before,
        not_after=leaf.not_after,
    )


def _cache_key(chain: Sequence[bytes], peer_role: PeerRole) -> bytes:
    digest = hashlib.sha256(peer_role.encode())
    for der in chain:
        digest.update(len(der).to_bytes(4, "big"))
        digest.update(der)
    return digest.digest()


def check_own(svid: X509Svid, bundle: TrustBundle, now: float) -> None:
    """Our own SVID must lead to the bundle given beside it: what we could not verify, no peer will.

    Raises:
        InvalidSvidError: step ``path`` or ``time``.
    """
    from proxyless.identity import certificates

    certificate = certificates.load(svid.chain[0])
    try:
        _build_path(certificates.read_leaf(certificate), certificate, svid.chain[1:], bundle, now)
    except certificates.RuleError as error:
        raise InvalidSvidError(error.step, f"own SVID of {svid.spiffe_id}: {error.reason}") from None
