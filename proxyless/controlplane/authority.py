"""The development CA: issues short-lived X.509 SVIDs for one trust domain, on one machine (rules M-33, M-34, M-46, M-47).

Certificates look like those of SPIRE: validity set back by 10 s, ECDSA P-256, a new key each time, both extended key usages.
Keys live in memory only and end with the process. Not for production, and said so in the log; use a SPIRE agent there.
"""

from __future__ import annotations

import datetime
import logging
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from proxyless.controlplane import jwt_svid
from proxyless.errors import InvalidSvidError
from proxyless.identity.svid import X509Svid
from proxyless.spiffe import SpiffeId, TrustDomain

__all__ = ["Authority", "renewal_time"]

logger = logging.getLogger(__name__)

BACKDATE = (
    10.0  # seconds, against clocks that differ; less for lifetimes under a minute, where it would be most of the span
)
DEFAULT_TTL = 3600.0
DEFAULT_JWT_TTL = 300.0
DEFAULT_ROOT_TTL = 30 * 24 * 3600.0


class Uniform(Protocol):
    """What is needed of `random.Random`."""

    def uniform(self, a: float, b: float) -> float: ...


@dataclass(frozen=True, slots=True)
class _Root:
    """Both kinds of signing key live and end together; they are never used for each other (M-84)."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    jwt_key: ec.EllipticCurvePrivateKey = field(repr=False)
    jwt_kid: str
    not_before: float
    not_after: float

    def at(self, share: float) -> float:
        """The instant at a share of its lifetime."""
        return self.not_before + share * (self.not_after - self.not_before)


class Authority:
    """A CA of one trust domain. Safe to use from several threads.

    A new root is in the bundle before it signs (M-34): `prepare` at half life of the old one, `activate` at five sixths, and
    `revoke` when the old one has expired. `maintain` does the step that is due.

    Args:
        trust_domain: the only one it issues for.
        ttl: default lifetime of an SVID in seconds, without the 10 s it is set back.
        root_ttl: lifetime of a root.
        clock: POSIX seconds.
    """

    def __init__(
        self,
        trust_domain: TrustDomain | str,
        *,
        ttl: float = DEFAULT_TTL,
        root_ttl: float = DEFAULT_ROOT_TTL,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.trust_domain = TrustDomain.parse(trust_domain)
        self.ttl = ttl
        self._root_ttl = root_ttl
        self._clock = clock
        self._lock = threading.RLock()
        self._listeners: list[Callable[[], None]] = []
        self._federated: dict[str, tuple[bytes, ...]] = {}
        self._active = self._make_root()
        self._roots = [self._active]
        logger.warning(
            "a DEVELOPMENT certificate authority issues identities for trust domain %s: its key is in the memory of this "
            "process, anyone who can run code as this user can get any identity. Not for production.",
            self.trust_domain,
        )

    @property
    def bundle(self) -> tuple[bytes, ...]:
        """Trust anchors as DER, oldest first."""
        with self._lock:
            return tuple(root.certificate.public_bytes(Encoding.DER) for root in self._roots)

    def now(self) -> float:
        """The time by which it issues, POSIX seconds."""
        return self._clock()

    @property
    def bundles(self) -> dict[str, tuple[bytes, ...]]:
        """Trust anchors by trust domain, the own one first."""
        return {self.trust_domain: self.bundle, **self.federated}

    @property
    def federated(self) -> dict[str, tuple[bytes, ...]]:
        """Trust anchors of other trust domains, as DER, by name."""
        with self._lock:
            return dict(self._federated)

    def federate(self, trust_domain: TrustDomain | str, anchors: Sequence[bytes]) -> None:
        """Hand out the anchors of another trust domain, under a name that the operator gives (M-50); none ends that.

        Raises:
            InvalidSvidError: it is our own trust domain.
        """
        name = TrustDomain.parse(trust_domain)
        if name == self.trust_domain:
            raise InvalidSvidError("trust-domain", f"{name} is the own trust domain of this authority")
        with self._lock:
            self._federated.pop(name, None)
            if anchors:
                self._federated[name] = tuple(anchors)
        self._tell()

    def issue(
        self, spiffe_id: SpiffeId, *, ttl: float | None = None, dns_names: Sequence[str] = (), hint: str = ""
    ) -> X509Svid:
        """A new SVID with a new key. It never outlives the root that signs it.

        Raises:
            InvalidSvidError: the ID is of another trust domain or names no workload.
        """
        self._check_issued(spiffe_id)
        with self._lock:
            root = self._active
        now = self._clock()
        key = ec.generate_private_key(ec.SECP256R1())
        lifetime = ttl or self.ttl
        not_before = _seconds(now - min(BACKDATE, lifetime / 6))
        not_after = _seconds(min(now + lifetime, root.not_after))
        names: list[x509.GeneralName] = [*map(x509.DNSName, dns_names), x509.UniformResourceIdentifier(str(spiffe_id))]
        builder = (
            _builder("proxyless workload", root.certificate.subject, key, not_before, not_after)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root.key.public_key()), critical=False)
        )
        certificate = builder.sign(root.key, hashes.SHA256())
        return X509Svid(
            spiffe_id=spiffe_id,
            chain=(certificate.public_bytes(Encoding.DER),),
            private_key=key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
            not_before=not_before,
            not_after=not_after,
            hint=hint,
            serial=f"{certificate.serial_number:x}",
        )

    @property
    def jwt_keys(self) -> dict[str, ec.EllipticCurvePublicKey]:
        """Keys that verify JWT-SVIDs, by `kid`, oldest first."""
        with self._lock:
            return {root.jwt_kid: root.jwt_key.public_key() for root in self._roots}

    def issue_jwt(self, spiffe_id: SpiffeId, audience: Sequence[str], *, ttl: float | None = None) -> str:
        """A JWT-SVID (JWT-SVID 3), signed with ES256.

        Raises:
            InvalidSvidError: the ID is not one that this authority issues, or there is no audience.
        """
        self._check_issued(spiffe_id)
        if not audience or not all(audience):
            raise InvalidSvidError("aud", "audience must be specified")
        with self._lock:
            root = self._active
        now = self._clock()
        claims = {
            "sub": str(spiffe_id),
            "aud": list(audience),
            "iat": int(now),
            "exp": int(min(now + (ttl or DEFAULT_JWT_TTL), root.not_after)),
        }
        return jwt_svid.sign(root.jwt_key, root.jwt_kid, claims)

    def validate_jwt(self, token: str, audience: str) -> tuple[SpiffeId, dict[str, Any]]:
        """Subject and claims of a JWT-SVID of our own trust domain.

        Raises:
            InvalidTokenError: it is refused.
        """
        return jwt_svid.validate(token, audience, self.trust_domain, self.jwt_keys, self._clock())

    def _check_issued(self, spiffe_id: SpiffeId) -> None:
        if spiffe_id.trust_domain != self.trust_domain or not spiffe_id.is_workload:
            raise InvalidSvidError(
                "trust-domain", f"this authority issues workloads of {self.trust_domain}, not {spiffe_id}"
            )

    def prepare(self) -> None:
        """Announce the next root; it does not sign yet."""
        with self._lock:
            if self._roots[-1] is not self._active:
                return
            self._roots.append(self._make_root())
        self._tell()

    def activate(self) -> None:
        """Sign with the announced root from now on. SVIDs of the old one stay valid."""
        with self._lock:
            self._active = self._roots[-1]

    def revoke(self) -> None:
        """Trust only the root that signs; SVIDs of the others are refused from the next handshake on."""
        with self._lock:
            if self._roots == [self._active]:
                return
            self._roots = [self._active]
        self._tell()

    def maintain(self) -> None:
        """Do what the age of the roots asks for. To be called now and then, at least every tenth of their lifetime."""
        now = self._clock()
        with self._lock:
            newest, active, oldest = self._roots[-1], self._active, self._roots[0]
        if newest is active and now >= active.at(1 / 2):
            self.prepare()
        elif newest is not active and now >= active.at(5 / 6):
            self.activate()
        elif oldest is not active and now >= oldest.not_after:
            self.revoke()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every change of the bundle, on the thread that made it."""
        self._listeners.append(listener)

    def _tell(self) -> None:
        for listener in tuple(self._listeners):
            listener()

    def _make_root(self) -> _Root:
        now = self._clock()
        key = ec.generate_private_key(ec.SECP256R1())
        not_before, not_after = _seconds(now - BACKDATE), _seconds(now + self._root_ttl)
        builder = (
            _builder("proxyless development CA", None, key, not_before, not_after)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(self.trust_domain.id))]), critical=False
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(ca=True), critical=True)
        )
        return _Root(
            certificate=builder.sign(key, hashes.SHA256()),
            key=key,
            jwt_key=ec.generate_private_key(ec.SECP256R1()),
            jwt_kid=secrets.token_hex(16),
            not_before=not_before,
            not_after=not_after,
        )


def renewal_time(svid: X509Svid, issued: float, rng: Uniform = random) -> float:
    """When to replace an SVID issued at `issued`: half life, give or take a tenth of that (M-33). POSIX seconds.

    Never before a quarter of what is left, so that a very short lifetime is no storm.
    """
    half = (svid.not_after - svid.not_before) / 2
    return max(svid.not_before + half * rng.uniform(0.9, 1.1), issued + (svid.not_after - issued) / 4)


def _seconds(instant: float) -> float:
    """Certificates know whole seconds."""
    return float(int(instant))


def _builder(
    name: str, issuer: x509.Name | None, key: ec.EllipticCurvePrivateKey, not_before: float, not_after: float
) -> x509.CertificateBuilder:
    serial = x509.random_serial_number()
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)]
    if issuer is None:  # roots differ by name, so that a path is never tried with the wrong one
        attributes.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, str(serial)))
    subject = x509.Name(attributes)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(datetime.datetime.fromtimestamp(not_before, datetime.UTC))
        .not_valid_after(datetime.datetime.fromtimestamp(not_after, datetime.UTC))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
