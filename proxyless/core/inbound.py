"""An inbound request, from the connection's filter chain to a verdict: normalise the path, find the route, ask every RBAC filter.

The order is Envoy's: the path is normalised before anything looks at it, the route is found next (it may override a filter),
RBAC filters decide in their order, and only then a missing route is 404. Nothing here raises; what cannot be decided is refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import NamedTuple

from proxyless.core.chains import ConnectionInfo, accepts_plaintext, select_chain, tls_for_port
from proxyless.core.paths import is_plain, normalize_path
from proxyless.core.rbac import Rbac
from proxyless.core.request import Address, Peer, Request
from proxyless.core.resources import (
    DirectResponse,
    FilterChain,
    HttpConnectionManager,
    Redirect,
    Route,
    TcpProxy,
)
from proxyless.core.rewrites import redirect_location
from proxyless.core.rng import Rng
from proxyless.core.routing import RouteTable, select_route
from proxyless.values import replace

__all__ = [
    "Admission",
    "ConnectionInfo",
    "ShadowVerdict",
    "accepts_plaintext",
    "admit",
    "admit_connection",
    "select_chain",
    "tls_for_port",
]

DENIED_BODY = b"RBAC: access denied"
_NO_OVERRIDES: Mapping[str, Rbac | None] = {}
NamedRbac = tuple[tuple[str, Rbac], ...]


class ShadowVerdict(NamedTuple):
    """What a dry run would have decided. `prefix` is the filter's `shadow_rules_stat_prefix`."""

    prefix: str
    allowed: bool
    policy: str


class Admission(NamedTuple):
    """The verdict on one request (or connection).

    Attributes:
        allowed: hand `request` to the application. Otherwise answer with status, headers and body.
        flag: Envoy's response flag, ``-`` for none.
        details: Envoy's response code details.
        policy: the RBAC policy that decided, ``none`` when no policy matched, empty when none was asked.
        request: with the normalised path.
        headers: of the answer; a Location of a redirect.
        shadow: verdicts of the shadow rules that were reached.
    """

    allowed: bool
    status: int
    body: bytes
    flag: str
    details: str
    policy: str
    request: Request
    headers: tuple[tuple[bytes, bytes], ...] = ()
    shadow: tuple[ShadowVerdict, ...] = ()


class _FirstDraw:
    """Inbound routes have one destination: the application. A weighted or fractional one takes its first share."""

    def random(self) -> float:
        return 0.0


_FIRST_DRAW = _FirstDraw()


def admit(
    chain: FilterChain, request: Request, peer: Peer, *, table: RouteTable | None = None, rng: Rng = _FIRST_DRAW
) -> Admission:
    """Judge one request on a connection that `chain` took.

    Args:
        table: the compiled route configuration of a chain that names one by RDS; without it such a chain has no routes.
        rng: for routes with a fraction.
    """
    manager = chain.filter
    if not isinstance(manager, HttpConnectionManager):
        return _admit_raw(manager, request, peer)
    if not is_plain(request.path):
        target = normalize_path(request.path, manager.paths)
        if target.action == "reject" or (target.action == "redirect" and request.is_grpc):
            return _refused(request, 400, "path_normalization_failed")
        if target.path != request.path:
            request = request.with_path(target.path)
        if target.action == "redirect":
            return _refused(request, 307, "path_normalization_failed", location=request.values(":path")[0])
    peer = _with_client_address(manager, request, peer)
    route = _route(manager, request, table, rng)
    denied, shadow, policy = _authorize(manager.rbac, _NO_OVERRIDES if route is None else route.rbac, request, peer)
    if denied is not None:
        return denied._replace(shadow=shadow)
    return _act(route, request, policy, shadow)


def admit_connection(chain: FilterChain, peer: Peer) -> Admission:
    """Judge a connection without HTTP (a TCP proxy's network RBAC). Not allowed: close it without an answer."""
    nothing = Request("", "", (), authority="", destination=peer.local, sni=peer.sni)
    return _admit_raw(chain.filter, nothing, peer)


def _admit_raw(proxy: HttpConnectionManager | TcpProxy | None, request: Request, peer: Peer) -> Admission:
    if not isinstance(proxy, TcpProxy):
        return _refused(request, 403, "filter_chain_has_no_proxy", body=DENIED_BODY)
    denied, shadow, policy = _authorize(proxy.rbac, _NO_OVERRIDES, request, peer)
    if denied is not None:
        return denied._replace(shadow=shadow)
    return Admission(True, 200, b"", "-", "", policy, request, shadow=shadow)


# ---------------------------------------------------------------------------------------------------------------- steps


def _route(manager: HttpConnectionManager, request: Request, table: RouteTable | None, rng: Rng) -> Route | None:
    if manager.routes is not None:
        compiled = manager.memo[0] if manager.memo else None
        if not isinstance(compiled, RouteTable):
            compiled = RouteTable(manager.routes)
            manager.memo[:] = [compiled]
        table = compiled
    decision = None if table is None else select_route(table, request, rng)
    return None if decision is None else decision.route


def _authorize(
    filters: NamedRbac, overrides: Mapping[str, Rbac | None], request: Request, peer: Peer
) -> tuple[Admission | None, tuple[ShadowVerdict, ...], str]:
    """A denial or None, the shadow verdicts, and the last policy that allowed."""
    shadow: tuple[ShadowVerdict, ...] = ()
    policy = ""
    for name, base in filters:
        rbac = overrides.get(name, base)
        if rbac is None:
            continue
        would = rbac.evaluate_shadow(request, peer)
        if would is not None:
            shadow += (ShadowVerdict(rbac.shadow_prefix, would.allowed, would.policy),)
        if rbac.action is None:
            continue
        verdict = rbac.evaluate(request, peer)
        if not verdict.allowed:
            details = f"rbac_access_denied_matched_policy[{'_'.join(verdict.policy.split())}]"
            return _refused(request, 403, details, body=DENIED_BODY, policy=verdict.policy), shadow, verdict.policy
        if rbac.action == "ALLOW":
            policy = verdict.policy
    return None, shadow, policy


def _act(route: Route | None, request: Request, policy: str, shadow: tuple[ShadowVerdict, ...]) -> Admission:
    """A route to a cluster, or one that does not forward (gRPC servers), is the application."""
    if route is None:
        return Admission(False, 404, b"", "NR", "route_not_found", policy, request, shadow=shadow)
    if isinstance(route.action, DirectResponse):
        action = route.action
        return Admission(False, action.status, action.body, "-", "direct_response", policy, request, shadow=shadow)
    if isinstance(route.action, Redirect):
        location = redirect_location(route.action, route.match.path, request)
        answer = _refused(request, route.action.status, "direct_response", location=location, policy=policy)
        return answer._replace(shadow=shadow)
    return Admission(True, 200, b"", "-", "", policy, request, shadow=shadow)


def _refused(
    request: Request, status: int, details: str, *, body: bytes = b"", policy: str = "", location: str = ""
) -> Admission:
    headers = ((b"location", location.encode("latin-1", "replace")),) if location else ()
    return Admission(False, status, body, "-", details, policy, request, headers)


def _with_client_address(manager: HttpConnectionManager, request: Request, peer: Peer) -> Peer:
    """`remote_ip` of Envoy: without `use_remote_address` the last address of X-Forwarded-For, trusted hops skipped; with it
    the peer, unless trusted hops say otherwise. An unusable header leaves the peer's address."""
    if manager.use_remote_address and not manager.xff_num_trusted_hops:
        return peer
    if not request.has(b"x-forwarded-for"):
        return peer
    values = request.values("x-forwarded-for")
    skip = manager.xff_num_trusted_hops - (1 if manager.use_remote_address else 0)
    entries = ",".join(values).split(",")
    if skip >= len(entries):
        return peer
    text = entries[-1 - skip].strip()
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return peer
    return replace(peer, remote=Address(text, 0))
