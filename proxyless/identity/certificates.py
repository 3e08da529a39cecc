"""X.509 facts and the rules of an SVID leaf, on top of `cryptography` (X509-SVID 2 to 5; rules M-12 to M-14).

The only module of the identity code that imports `cryptography` when it loads; the others import it when they first need it.
Steps named in errors, in the order of the checks: ``parse``, ``uri-san-count``, ``spiffe-id``, ``ca-flag``, ``key-usage``.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import ExtendedKeyUsageOID

from proxyless.errors import InvalidSpiffeIdError
from proxyless.spiffe import SpiffeId

__all__ = ["Leaf", "RuleError", "is_ca", "is_self_signed", "load", "pem", "read_leaf", "split_der", "window"]

_UNREADABLE = (
    ValueError,
    TypeError,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    x509.InvalidVersion,
)


class RuleError(Exception):
    """A certificate breaks a rule. Turned into the caller's own error before it leaves the identity code."""

    def __init__(self, step: str, reason: str, claimed: str = "") -> None:
        super().__init__(reason)
        self.step, self.reason, self.claimed = step, reason, claimed


@dataclass(frozen=True, slots=True)
class Leaf:
    """What is read from the leaf of an SVID. Times are POSIX seconds; `subject` has the RFC 4514 form; `eku` None: absent."""

    spiffe_id: SpiffeId
    uri_sans: tuple[str, ...]
    dns_sans: tuple[str, ...]
    subject: str
    serial: int
    not_before: float
    not_after: float
    eku: frozenset[str] | None

    def may_act_as(self, role: str) -> bool:
        """Its extended key usage, when there is one, allows the role ``client`` or ``server`` (M-17)."""
        return self.eku is None or role in self.eku


def split_der(data: bytes) -> tuple[bytes, ...]:
    """Concatenated DER values, one by one (Workload API 5.1).

    Raises:
        RuleError: something is left over or cut off.
    """
    return tuple(_each_der(data))


def _each_der(data: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        end = _der_end(data, start)
        if end is None or end > len(data):
            raise RuleError("parse", f"no DER certificate at byte {start} of {len(data)}")
        yield data[start:end]
        start = end


def _der_end(data: bytes, start: int) -> int | None:
    """Index after the SEQUENCE that begins at `start`; None when there is none. X.690 8.1.3, definite lengths only."""
    if len(data) - start < 2 or data[start] != 0x30:
        return None
    first = data[start + 1]
    if first < 0x80:
        return start + 2 + first
    size = first & 0x7F
    if not 1 <= size <= 4 or start + 2 + size > len(data):
        return None
    return start + 2 + size + int.from_bytes(data[start + 2 : start + 2 + size], "big")


def load(der: bytes) -> x509.Certificate:
    """One DER certificate.

    Raises:
        RuleError: it cannot be read.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        _ = certificate.extensions  # parsed lazily: a duplicate or malformed one shows here
    except _UNREADABLE as error:
        raise RuleError("parse", f"unreadable certificate: {type(error).__name__}") from None
    return certificate


def read_leaf(certificate: x509.Certificate) -> Leaf:
    """The leaf's identity and facts, after the rules M-12 to M-14.

    Raises:
        RuleError: a rule is broken.
    """
    uris, names = _sans(certificate)
    if len(uris) != 1:
        raise RuleError("uri-san-count", f"the certificate has {len(uris)} URI names, exactly one is allowed")
    try:
        spiffe_id = SpiffeId.parse(uris[0])
    except InvalidSpiffeIdError as error:
        raise RuleError("spiffe-id", str(error)) from None
    claimed = str(spiffe_id)
    if not spiffe_id.is_workload:
        raise RuleError("spiffe-id", "the SPIFFE ID has no path: it names a trust domain, not a workload", claimed)
    if is_ca(certificate):
        raise RuleError("ca-flag", "the leaf is a CA certificate", claimed)
    _check_key_usage(certificate, claimed)
    not_before, not_after = window(certificate)
    return Leaf(
        spiffe_id=spiffe_id,
        uri_sans=tuple(uris),
        dns_sans=tuple(names),
        subject=certificate.subject.rfc4514_string(),
        serial=certificate.serial_number,
        not_before=not_before,
        not_after=not_after,
        eku=_extended_key_usage(certificate),
    )


def window(certificate: x509.Certificate) -> tuple[float, float]:
    """not_before and not_after in POSIX seconds."""
    return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()


def is_ca(certificate: x509.Certificate) -> bool:
    """basicConstraints says cA; absent means no (RFC 5280 4.2.1.9)."""
    constraints = _extension(certificate, x509.BasicConstraints)
    return constraints is not None and bool(constraints.ca)


def is_self_signed(certificate: x509.Certificate) -> bool:
    """Signed with its own key. Equal names alone say nothing: a rolled-over CA may sign under the same name."""
    if certificate.issuer != certificate.subject:
        return False
    try:
        certificate.verify_directly_issued_by(certificate)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def pem(der: bytes, label: str = "CERTIFICATE") -> str:
    """DER as PEM text (RFC 7468)."""
    text = base64.standard_b64encode(der).decode("ascii")
    lines = [text[i : i + 64] for i in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def _extension(certificate: x509.Certificate, kind: type[Any]) -> Any:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _sans(certificate: x509.Certificate) -> tuple[list[str], list[str]]:
    names = _extension(certificate, x509.SubjectAlternativeName)
    if names is None:
        return [], []
    return (
        names.get_values_for_type(x509.UniformResourceIdentifier),
        names.get_values_for_type(x509.DNSName),
    )


def _check_key_usage(certificate: x509.Certificate, claimed: str) -> None:
    usage = _extension(certificate, x509.KeyUsage)
    if usage is None:
        raise RuleError("key-usage", "the leaf has no key usage extension", claimed)
    if usage.key_cert_sign or usage.crl_sign:
        raise RuleError("key-usage", "the leaf may sign certificates or revocation lists", claimed)
    if not usage.digital_signature:
        raise RuleError("key-usage", "the leaf may not make digital signatures", claimed)


def _extended_key_usage(certificate: x509.Certificate) -> frozenset[str] | None:
    usage = _extension(certificate, x509.ExtendedKeyUsage)
    if usage is None:
        return None
    roles = {ExtendedKeyUsageOID.CLIENT_AUTH: "client", ExtendedKeyUsageOID.SERVER_AUTH: "server"}
    return frozenset(roles[oid] for oid in usage if oid in roles)
