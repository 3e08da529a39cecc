"""What a Workload API says, read as one unit: everything in a response holds, or nothing of it is used (rules M-30, M-31, M-37).

Pure: bytes in, an `Update` out. Source: SPIFFE Workload API 4.3 to 4.6, 5.1, 5.2.1 and 8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxyless import protos
from proxyless.errors import InvalidSpiffeIdError, InvalidSvidError, NoIdentityError
from proxyless.identity.bundle import TrustBundle
from proxyless.identity.svid import X509Svid
from proxyless.identity.verify import check_own
from proxyless.spiffe import SpiffeId, TrustDomain

__all__ = ["Selection", "Update", "read_response"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of several identities to use: by hint, by SPIFFE ID, or by both; the first one when neither is given."""

    hint: str = ""
    spiffe_id: str = ""

    def __bool__(self) -> bool:
        return bool(self.hint or self.spiffe_id)

    def choose(self, svids: tuple[X509Svid, ...]) -> X509Svid:
        """The identity to use; of equal ones the first counts.

        Raises:
            NoIdentityError: none fits. Another one is never used instead.
        """
        for svid in svids:
            if (not self.hint or svid.hint == self.hint) and (
                not self.spiffe_id or str(svid.spiffe_id) == self.spiffe_id
            ):
                return svid
        wanted = " and ".join(
            f"{name} {value!a}" for name, value in (("hint", self.hint), ("SPIFFE ID", self.spiffe_id)) if value
        )
        offered = ", ".join(f"{svid.spiffe_id} (hint {svid.hint!a})" for svid in svids[:5])
        raise NoIdentityError(f"the Workload API gives no identity with {wanted}; it gives {offered}")


@dataclass(frozen=True, slots=True)
class Update:
    """A response that holds.

    Attributes:
        svids: in the order sent, those that have expired left out; never empty.
        bundles: by trust domain, own and federated.
        expired: how many SVIDs were left out because they have expired.
        revocation_lists: how many CRLs came along. They are not enforced.
        rejected_anchors: how many certificates of bundles are no CA and were left out.
    """

    svids: tuple[X509Svid, ...]
    bundles: Mapping[str, TrustBundle]
    expired: int
    revocation_lists: int
    rejected_anchors: int


def read_response(data: bytes, now: float) -> Update:
    """Read one X509SVIDResponse.

    Raises:
        InvalidSvidError: a part is missing, unreadable or contradicts another, or every SVID has expired. The text names the
            place and the reason and holds no key.
    """
    from google.protobuf.message import DecodeError

    try:
        response: Any = protos.message("X509SVIDResponse").FromString(data)
    except DecodeError:
        raise InvalidSvidError("parse", "the response is no X509SVIDResponse") from None
    if not response.svids:
        raise InvalidSvidError("parse", "the response holds no SVID")
    read = [_svid(index, entry) for index, entry in enumerate(response.svids)]
    bundles = _bundles(response, read)
    usable = []
    for svid in read:
        if svid.not_after > now:
            # A certificate that is not valid yet is judged at the instant from which it will be used.
            check_own(svid, bundles[svid.spiffe_id.trust_domain], max(now, svid.not_before))
            usable.append(svid)
    if not usable:
        raise InvalidSvidError("time", f"every SVID in the response has expired, the first one is {read[0].spiffe_id}")
    return Update(
        svids=tuple(usable),
        bundles=bundles,
        expired=len(read) - len(usable),
        revocation_lists=len(response.crl),
        rejected_anchors=sum(bundle.rejected for bundle in bundles.values()),
    )


def _svid(index: int, entry: Any) -> X509Svid:
    for field in ("spiffe_id", "x509_svid", "x509_svid_key", "bundle"):
        if not getattr(entry, field):
            raise InvalidSvidError("parse", f"svids[{index}].{field} is missing")
    try:
        SpiffeId.parse(entry.spiffe_id)
    except InvalidSpiffeIdError as error:
        raise InvalidSvidError("spiffe-id", f"svids[{index}]: {error}") from None
    try:
        return X509Svid.parse(entry.x509_svid, entry.x509_svid_key, hint=entry.hint, expected_id=entry.spiffe_id)
    except InvalidSvidError as error:
        raise InvalidSvidError(error.step, f"svids[{index}]: {error}") from None


def _bundles(response: Any, svids: list[X509Svid]) -> dict[str, TrustBundle]:
    """Own bundles from the SVIDs, then the federated ones, which never stand in for an own one."""
    own: dict[str, TrustBundle] = {}
    for svid, entry in zip(svids, response.svids, strict=True):
        bundle = TrustBundle.parse(svid.spiffe_id.trust_domain, entry.bundle)
        if not bundle.anchors:
            raise InvalidSvidError("bundle", f"the bundle of {bundle.trust_domain} holds no CA certificate")
        if own.setdefault(bundle.trust_domain, bundle) != bundle:
            raise InvalidSvidError("bundle", f"two different bundles of {bundle.trust_domain} in one response")
    federated: dict[str, TrustBundle] = {}
    for key, data in response.federated_bundles.items():
        trust_domain = _trust_domain(key)
        if trust_domain in own:
            raise InvalidSvidError("bundle", f"a federated bundle claims our own trust domain {trust_domain}")
        federated[trust_domain] = TrustBundle.parse(trust_domain, data)
    return {**own, **federated}


def _trust_domain(key: str) -> TrustDomain:
    try:
        spiffe_id = SpiffeId.parse(key)
    except InvalidSpiffeIdError as error:
        raise InvalidSvidError("bundle", f"federated_bundles: {error}") from None
    if spiffe_id.is_workload:
        raise InvalidSvidError("bundle", f"federated_bundles: {spiffe_id} names a workload, not a trust domain")
    return spiffe_id.trust_domain
