"""Our own X.509 SVID: parsed, checked, and never shown with its key (X509-SVID 4 and 5, Workload API 5.1, rule M-44)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxyless.errors import InvalidSvidError
from proxyless.spiffe import SpiffeId

if TYPE_CHECKING:
    from proxyless.identity.certificates import Leaf

__all__ = ["X509Svid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class X509Svid:
    """An SVID with its private key.

    Attributes:
        spiffe_id: the one URI name of the leaf.
        chain: DER certificates, leaf first, without the root.
        private_key: PKCS#8 DER, unencrypted. Hidden from `repr`.
        not_before: POSIX seconds.
        not_after: POSIX seconds; of the leaf.
        hint: what the issuer calls this identity; empty without one (Workload API 5.2.1).
        serial: serial number of the leaf, lower-case hexadecimal.
    """

    spiffe_id: SpiffeId
    chain: tuple[bytes, ...] = field(repr=False)
    private_key: bytes = field(repr=False)
    not_before: float
    not_after: float
    hint: str = ""
    serial: str = ""

    @staticmethod
    def parse(chain: bytes, private_key: bytes, *, hint: str = "", expected_id: str | None = None) -> X509Svid:
        """Read what a Workload API sends.

        Args:
            chain: concatenated DER certificates, leaf first.
            private_key: PKCS#8 DER.
            expected_id: the ID given beside the certificate; it must be the one in it.

        Raises:
            InvalidSvidError: a certificate, the key, or their relation breaks a rule; the text holds no key.
        """
        from proxyless.identity import certificates

        try:
            ders = certificates.split_der(chain)
            if not ders:
                raise certificates.RuleError("parse", "the certificate chain is empty")
            loaded = [certificates.load(der) for der in ders]
            leaf = certificates.read_leaf(loaded[0])
            if not all(certificates.is_ca(certificate) for certificate in loaded[1:]):
                raise certificates.RuleError("path", "a certificate after the leaf is not a CA certificate")
        except certificates.RuleError as error:
            raise InvalidSvidError(error.step, error.reason) from None
        if expected_id is not None and expected_id != str(leaf.spiffe_id):
            raise InvalidSvidError(
                "id-mismatch", f"{expected_id!a} was announced, the certificate is of {leaf.spiffe_id}"
            )
        _check_key(private_key, loaded[0].public_key())
        return X509Svid._of(leaf, ders, private_key, hint)

    @staticmethod
    def _of(leaf: Leaf, chain: tuple[bytes, ...], private_key: bytes, hint: str) -> X509Svid:
        return X509Svid(
            spiffe_id=leaf.spiffe_id,
            chain=chain,
            private_key=private_key,
            not_before=leaf.not_before,
            not_after=leaf.not_after,
            hint=hint,
            serial=f"{leaf.serial:x}",
        )

    def valid_at(self, now: float) -> bool:
        """Within its validity, without leeway (M-40)."""
        return self.not_before <= now < self.not_after

    def chain_pem(self) -> bytes:
        """The chain, leaf first."""
        from proxyless.identity import certificates

        return "".join(certificates.pem(der) for der in self.chain).encode()

    def key_pem(self) -> bytes:
        """The private key, unencrypted. For TLS libraries only: never write, log or show it."""
        from proxyless.identity import certificates

        return certificates.pem(self.private_key, "PRIVATE KEY").encode()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the leaf, hexadecimal: tells two SVIDs of one ID apart."""
        return hashlib.sha256(self.chain[0]).hexdigest()


def _check_key(private_key: bytes, public_key: object) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

    try:
        loaded = load_der_private_key(private_key, password=None)
        ours = loaded.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        theirs = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]  # any public key
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # The cause is dropped on purpose: its text may quote the input.
        raise InvalidSvidError("key-parse", "the private key is not unencrypted PKCS#8 DER") from None
    if ours != theirs:
        raise InvalidSvidError("key-match", "the private key does not belong to the certificate")
