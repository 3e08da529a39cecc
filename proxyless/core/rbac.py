"""Role-based access control as Envoy evaluates it: permissions and principals, compiled once, evaluated for each request.

A rule is a small value with `matches(request, peer)`. A policy matches when any permission and any principal does; the first
matching policy in the order of names is reported. ALLOW without a match denies, DENY with a match denies, LOG never denies.

Sources: Envoy config.rbac.v3.RBAC, `RoleBasedAccessControlEngineImpl` and its matchers; recorded decisions of Envoy 1.40.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from proxyless.core.matchers import CidrMatcher, HeaderMatcher, PathMatcher, StringMatcher, wire_text
from proxyless.core.request import Address, Peer, Request
from proxyless.values import frozen

__all__ = [
    "AddressKind",
    "AddressRule",
    "AndRule",
    "AnyRule",
    "AuthenticatedRule",
    "DestinationPortRule",
    "HeaderRule",
    "MetadataRule",
    "NotRule",
    "OrRule",
    "Policy",
    "Rbac",
    "Rule",
    "ServerNameRule",
    "TemplateRule",
    "UrlPathRule",
    "ValueMatcher",
    "Verdict",
]

Action = Literal["ALLOW", "DENY", "LOG"]
AddressKind = Literal["destination", "direct_remote", "remote", "source"]
JWT_METADATA = "envoy.filters.http.jwt_authn"
NO_POLICY = "none"


class Rule(Protocol):
    """One permission or principal."""

    def matches(self, request: Request, peer: Peer) -> bool: ...


def _any(rules: Sequence[Rule], request: Request, peer: Peer) -> bool:
    for rule in rules:  # noqa: SIM110 - `any` of a generator costs twice as much, and this runs for every request
        if rule.matches(request, peer):
            return True
    return False


@frozen
class AnyRule:
    def matches(self, request: Request, peer: Peer) -> bool:
        return True


@frozen
class AndRule:
    rules: tuple[Rule, ...]

    def matches(self, request: Request, peer: Peer) -> bool:
        for rule in self.rules:  # noqa: SIM110 - as in _any
            if not rule.matches(request, peer):
                return False
        return True


@frozen
class OrRule:
    rules: tuple[Rule, ...]

    def matches(self, request: Request, peer: Peer) -> bool:
        return _any(self.rules, request, peer)


@frozen
class NotRule:
    rule: Rule

    def matches(self, request: Request, peer: Peer) -> bool:
        return not self.rule.matches(request, peer)


@frozen
class HeaderRule:
    matcher: HeaderMatcher

    def matches(self, request: Request, peer: Peer) -> bool:
        return self.matcher.matches(request)


@frozen
class UrlPathRule:
    """The normalised path, without query and fragment."""

    matcher: StringMatcher

    def matches(self, request: Request, peer: Peer) -> bool:
        return self.matcher.matches(wire_text(request.path))


@frozen
class TemplateRule:
    """extensions.path.match.uri_template: Istio's `{*}` and `{**}` arrive as `*` and `**`."""

    matcher: PathMatcher

    def matches(self, request: Request, peer: Peer) -> bool:
        return self.matcher.matches(request.path)


@frozen
class AddressRule:
    """An address in a range: `destination` ours, `direct_remote` the transport peer, `source` the same after PROXY protocol,
    `remote` the client after X-Forwarded-For."""

    kind: AddressKind
    cidr: CidrMatcher

    def matches(self, request: Request, peer: Peer) -> bool:
        return self.cidr.matches(self._address(peer).host)

    def _address(self, peer: Peer) -> Address:
        match self.kind:
            case "destination":
                return peer.local
            case "direct_remote":
                return peer.address
            case "source":
                return peer.proxied or peer.address
            case "remote":
                return peer.remote or peer.proxied or peer.address


@frozen
class DestinationPortRule:
    """Our own port in [start, end)."""

    start: int
    end: int

    def matches(self, request: Request, peer: Peer) -> bool:
        return self.start <= peer.local.port < self.end


@frozen
class ServerNameRule:
    """`requested_server_name`: the SNI, empty without one."""

    matcher: StringMatcher

    def matches(self, request: Request, peer: Peer) -> bool:
        return self.matcher.matches(peer.sni)


@frozen
class AuthenticatedRule:
    """`authenticated`: without a name any TLS peer, client certificate or not; with one, every URI name, then every DNS name,
    then the subject (empty without a certificate) is tried."""

    principal: StringMatcher | None

    def matches(self, request: Request, peer: Peer) -> bool:
        if not peer.tls:
            return False
        if self.principal is None:
            return True
        test = self.principal.matches
        for name in peer.uri_sans:
            if test(name):
                return True
        for name in peer.dns_sans:
            if test(name):
                return True
        return test(peer.subject)


# -------------------------------------------------------------------------------------------------------------- metadata


@frozen(kw_only=True)
class ValueMatcher:
    """type.matcher.v3.ValueMatcher; exactly one part is set. `_ABSENT` stands for a value that is not there."""

    null: bool = False
    number: tuple[float, float] | None = None
    """Half-open range; an exact number is (x, x)."""
    string: StringMatcher | None = None
    boolean: bool | None = None
    present: bool | None = None
    one_of: ValueMatcher | None = None
    any_of: tuple[ValueMatcher, ...] | None = None

    def matches(self, value: object) -> bool:
        if self.null:
            return value is None
        if self.number is not None:
            start, end = self.number
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            return is_number and (value == start or start <= value < end)  # type: ignore[operator] # narrowed by is_number
        if self.string is not None:
            return isinstance(value, str) and self.string.matches(value)
        if self.boolean is not None:
            return isinstance(value, bool) and value == self.boolean
        if self.one_of is not None:
            return isinstance(value, list | tuple) and any(self.one_of.matches(item) for item in value)
        if self.any_of is not None:
            return any(matcher.matches(value) for matcher in self.any_of)
        return bool(self.present) and value is not _ABSENT


class _Absent:
    __slots__ = ()


_ABSENT = _Absent()


@frozen
class MetadataRule:
    """type.matcher.v3.MetadataMatcher over dynamic metadata. The verified JWT is the one source there is."""

    filter: str
    path: tuple[str, ...]
    value: ValueMatcher
    invert: bool = False

    def matches(self, request: Request, peer: Peer) -> bool:
        return self.value.matches(self._find(peer)) != self.invert

    def _find(self, peer: Peer) -> object:
        found: object = peer.claims if self.filter == JWT_METADATA else _ABSENT
        for key in self.path:
            if not isinstance(found, Mapping) or key not in found:
                return _ABSENT
            found = found[key]
        return found


# -------------------------------------------------------------------------------------------------------------- policies


class Verdict(NamedTuple):
    """`policy` is the name of the policy that matched, ``none`` when none did."""

    allowed: bool
    policy: str


@frozen
class Policy:
    """Any permission and any principal; both lists have at least one entry."""

    name: str
    permissions: tuple[Rule, ...]
    principals: tuple[Rule, ...]

    def matches(self, request: Request, peer: Peer) -> bool:
        for permission in self.permissions:
            if permission.matches(request, peer):
                return _any(self.principals, request, peer)
        return False


@frozen
class Rbac:
    """One RBAC filter.

    Attributes:
        action: None: the filter has no `rules` and allows everything (it may still have shadow rules).
        policies: in the order of their names.
        shadow: evaluated beside, never enforced.
        shadow_prefix: `shadow_rules_stat_prefix`; Istio tells dry runs and CUSTOM policies by it.
    """

    action: Action | None
    policies: tuple[Policy, ...] = ()
    shadow: Rbac | None = None
    shadow_prefix: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "policies", tuple(sorted(self.policies, key=lambda policy: policy.name.encode())))

    @classmethod
    def deny_all(cls, reason: str) -> Rbac:
        """What stands in for a policy that cannot be understood or enforced; `reason` becomes the policy's name."""
        return cls("DENY", (Policy(reason, (AnyRule(),), (AnyRule(),)),))

    def evaluate(self, request: Request, peer: Peer) -> Verdict:
        """The enforced decision. Never raises: a rule that fails denies, and the verdict says so."""
        if self.action is None:
            return Verdict(True, NO_POLICY)
        try:
            matched = self._first(request, peer)
        except Exception as error:
            return Verdict(self.action == "LOG", f"error[{type(error).__name__}]")
        if self.action == "LOG":
            return Verdict(True, matched or NO_POLICY)
        return Verdict((matched is not None) == (self.action == "ALLOW"), NO_POLICY if matched is None else matched)

    def evaluate_shadow(self, request: Request, peer: Peer) -> Verdict | None:
        """What the shadow rules would decide; None without any."""
        return None if self.shadow is None else self.shadow.evaluate(request, peer)

    def _first(self, request: Request, peer: Peer) -> str | None:
        for policy in self.policies:
            if policy.matches(request, peer):
                return policy.name
        return None
