"""JWT-SVIDs of the development CA: ES256 only, made and judged by one authority (JWT-SVID 2 to 5; rules M-80 to M-84).

Validation here serves the Workload API's ValidateJWTSVID for tokens of our own trust domain. Order of the checks: size, form,
algorithm, headers, subject, key by `kid`, signature, then times and audience.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from proxyless.errors import IdentityError, InvalidSpiffeIdError
from proxyless.spiffe import SpiffeId, TrustDomain

__all__ = ["InvalidTokenError", "jwks", "sign", "validate"]

MAX_TOKEN = 16 * 1024
LEEWAY = 30.0  # seconds (M-40)
COORDINATE = 32  # bytes of a P-256 number (RFC 7518 3.4)
ALLOWED_HEADERS = {"alg", "kid", "typ"}  # JWT-SVID 2

_PART = re.compile(r"[A-Za-z0-9_-]*\Z")
_PLAIN = json.JSONEncoder(separators=(",", ":"), sort_keys=True)


class InvalidTokenError(IdentityError):
    """A JWT-SVID is refused. The text holds nothing of the token but, at most, its subject.

    Attributes:
        step: the check that failed.
    """

    def __init__(self, step: str, reason: str) -> None:
        self.step = step
        super().__init__(f"{reason} [{step}]")


def sign(key: ec.EllipticCurvePrivateKey, kid: str, claims: Mapping[str, Any]) -> str:
    """A token in compact form, as SPIRE writes it."""
    signed = ".".join(
        _encode(_PLAIN.encode(part).encode()) for part in ({"alg": "ES256", "kid": kid, "typ": "JWT"}, claims)
    )
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{_encode(r.to_bytes(COORDINATE, 'big') + s.to_bytes(COORDINATE, 'big'))}"


def jwks(keys: Mapping[str, ec.EllipticCurvePublicKey]) -> bytes:
    """The keys as the JWK set of a Workload API: JWT keys only, no `use`, no `alg` (recorded)."""
    entries = []
    for kid, key in keys.items():
        numbers = key.public_numbers()
        x, y = (_encode(number.to_bytes(COORDINATE, "big")) for number in (numbers.x, numbers.y))
        entries.append({"kty": "EC", "kid": kid, "crv": "P-256", "x": x, "y": y})
    return _PLAIN.encode({"keys": entries}).encode()


def validate(
    token: str,
    audience: str,
    trust_domain: TrustDomain,
    keys: Mapping[str, ec.EllipticCurvePublicKey],
    now: float,
) -> tuple[SpiffeId, dict[str, Any]]:
    """Subject and claims of a token for `audience`.

    Raises:
        InvalidTokenError: it is refused.
    """
    if not audience:
        _refuse("config", "audience must be specified")
    if len(token) > MAX_TOKEN:
        _refuse("size", f"the token has more than {MAX_TOKEN} characters")
    parts = token.split(".")
    if len(parts) != 3:
        _refuse("parse", "the token is not a JWS in compact form")
    header, claims, signature = _json(parts[0]), _json(parts[1]), _decode(parts[2])
    kid = _check_header(header)
    subject = _subject(claims, trust_domain)
    key = keys.get(kid)
    if key is None:
        _refuse("key", "no key of the trust domain has the token's kid")
    _check_signature(key, f"{parts[0]}.{parts[1]}".encode(), signature)
    _check_times(claims, now)
    _check_audience(claims.get("aud"), audience)
    return subject, claims


def _check_header(header: Mapping[str, Any]) -> str:
    if header.get("alg") != "ES256":
        _refuse("alg", "the algorithm is not ES256")
    if unknown := sorted(set(header) - ALLOWED_HEADERS):
        _refuse("header", f"the header {ascii(unknown[0])[:60]} is not allowed")
    if header.get("typ", "JWT") not in ("JWT", "JOSE"):
        _refuse("header", "the type is neither JWT nor JOSE")
    kid = header.get("kid")
    if not isinstance(kid, str) or not kid:
        _refuse("key", "the token has no kid")
    return kid


def _subject(claims: Mapping[str, Any], trust_domain: TrustDomain) -> SpiffeId:
    subject = claims.get("sub")
    if not isinstance(subject, str):
        _refuse("sub", "the token has no subject")
    try:
        spiffe_id = SpiffeId.parse(subject)
    except InvalidSpiffeIdError as error:
        _refuse("sub", f"the subject is no SPIFFE ID: {error}")
    if not spiffe_id.is_workload:
        _refuse("sub", "the subject names a trust domain, not a workload")
    if spiffe_id.trust_domain != trust_domain:
        _refuse("bundle", f"no keys found for trust domain {spiffe_id.trust_domain}")
    return spiffe_id


def _check_signature(key: ec.EllipticCurvePublicKey, signed: bytes, signature: bytes) -> None:
    if len(signature) != 2 * COORDINATE:
        _refuse("signature", "the signature has the wrong length")
    r, s = (int.from_bytes(half, "big") for half in (signature[:COORDINATE], signature[COORDINATE:]))
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        _refuse("signature", "the signature does not verify")


def _check_times(claims: Mapping[str, Any], now: float) -> None:
    expiry = _instant(claims, "exp")
    if expiry is None:
        _refuse("exp", "the token has no expiry")
    if now - LEEWAY >= expiry:
        _refuse("exp", "the token has expired")
    for name in ("nbf", "iat"):
        instant = _instant(claims, name)
        if instant is not None and now + LEEWAY < instant:
            _refuse(name, "the token is not valid yet")


def _instant(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        _refuse(name, f"{name} is no number")
    return value


def _check_audience(value: Any, audience: str) -> None:
    names: Sequence[Any] = [value] if isinstance(value, str) else value if isinstance(value, list) else ()
    if not names or not all(isinstance(name, str) for name in names):
        _refuse("aud", "the token has no audience")
    if audience not in names:
        _refuse("aud", "the token is for another audience")


def _json(part: str) -> dict[str, Any]:
    try:
        value = json.loads(_decode(part).decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        _refuse("parse", "a part of the token is not a JSON object")
    if not isinstance(value, dict):
        _refuse("parse", "a part of the token is not a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two parsers must not read two different tokens (RFC 7519 4)."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("duplicate member")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(part: str) -> bytes:
    if not _PART.match(part):
        _refuse("parse", "a part of the token is not base64url")
    try:
        data = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except binascii.Error:
        _refuse("parse", "a part of the token is not base64url")
    if _encode(data) != part:  # unused bits must be zero: one token, one spelling
        _refuse("parse", "a part of the token is not base64url")
    return data


def _refuse(step: str, reason: str) -> NoReturn:
    raise InvalidTokenError(step, reason) from None
