"""Trust bundles: the X.509 trust anchors of one trust domain (Trust Domain and Bundle 4; rules M-15, M-16).

Two trust domains are never merged into one pool. Expired anchors are normal (SPIRE keeps them for a day): they are ignored
while they last, not an error. A certificate that is no CA is not admitted: as an anchor a leaf would vouch for itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from proxyless.errors import InvalidSvidError
from proxyless.spiffe import TrustDomain

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.x509.verification import Store

__all__ = ["TrustBundle"]


class _Anchor(NamedTuple):
    certificate: x509.Certificate
    not_before: float
    not_after: float


class _Current(NamedTuple):
    """The anchors in force between two instants."""

    since: float
    until: float
    store: Store | None


class TrustBundle:
    """Trust anchors of one trust domain; immutable, equal when name and anchors are.

    Attributes:
        trust_domain: whose anchors these are.
        anchors: DER certificates in the order given, CA certificates only. Empty: nobody of the trust domain is trusted.
        rejected: how many certificates were left out because they are no CA.
        digest: SHA-256 over name and the set of anchors.
    """

    __slots__ = ("_certificates", "_current", "anchors", "digest", "rejected", "trust_domain")

    def __init__(self, trust_domain: TrustDomain | str, anchors: Iterable[bytes]) -> None:
        """
        Raises:
            InvalidSvidError: a certificate cannot be read.
        """
        from proxyless.identity import certificates

        self.trust_domain = TrustDomain.parse(trust_domain)
        self._certificates: tuple[_Anchor, ...] = ()
        self._current: _Current | None = None
        self.rejected = 0
        admitted = []
        for der in dict.fromkeys(anchors):
            try:
                certificate = certificates.load(der)
            except certificates.RuleError as error:
                raise InvalidSvidError("bundle", f"bundle of {self.trust_domain}: {error.reason}") from None
            if certificates.is_ca(certificate):
                admitted.append(der)
                self._certificates += (_Anchor(certificate, *certificates.window(certificate)),)
            else:
                self.rejected += 1
        self.anchors = tuple(admitted)
        parts = [self.trust_domain.encode(), *sorted(hashlib.sha256(der).digest() for der in admitted)]
        self.digest = hashlib.sha256(b"\0".join(parts)).digest()

    @staticmethod
    def parse(trust_domain: TrustDomain | str, data: bytes) -> TrustBundle:
        """Read concatenated DER certificates (Workload API 5.1); none at all is an empty bundle.

        Raises:
            InvalidSvidError: the bytes are not that.
        """
        from proxyless.identity import certificates

        try:
            ders = certificates.split_der(data)
        except certificates.RuleError as error:
            raise InvalidSvidError("bundle", f"bundle of {trust_domain}: {error.reason}") from None
        return TrustBundle(trust_domain, ders)

    def store(self, now: float) -> Store | None:
        """The anchors that are valid at `now` (POSIX seconds), for path building; None when there are none."""
        current = self._current
        if current is None or not current.since <= now < current.until:
            current = self._current = self._at(now)
        return current.store

    def usable_anchors(self, now: float) -> tuple[bytes, ...]:
        """The anchors that have not expired at `now`, those of the future included."""
        return tuple(
            der for der, anchor in zip(self.anchors, self._certificates, strict=True) if now < anchor.not_after
        )

    def pem(self) -> bytes:
        """All anchors as PEM text."""
        from proxyless.identity import certificates

        return "".join(certificates.pem(der) for der in self.anchors).encode()

    def _at(self, now: float) -> _Current:
        from cryptography.x509.verification import Store

        instants = sorted({t for anchor in self._certificates for t in (anchor.not_before, anchor.not_after)})
        since = max((t for t in instants if t <= now), default=float("-inf"))
        until = min((t for t in instants if t > now), default=float("inf"))
        valid = [a.certificate for a in self._certificates if a.not_before <= now < a.not_after]
        return _Current(since, until, Store(valid) if valid else None)

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, TrustBundle) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"TrustBundle({str(self.trust_domain)!r}, {len(self.anchors)} anchors, {self.digest.hex()[:12]})"
