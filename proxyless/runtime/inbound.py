"""Inbound decisions of one process: a connection and a request meet the mesh's current snapshot.

Fails closed (rules M-70 to M-75): no configuration, no identity, no filter chain, an evaluator that raised: refused, with the
reason in the log and none for the peer. Adapters only move bytes: `asgi`, `wsgi` and the servers' protocols ask the gate.
"""

from __future__ import annotations

import logging
import os
import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote, unquote_to_bytes

from proxyless.core.inbound import Admission, ConnectionInfo, admit, select_chain
from proxyless.core.paths import is_plain, normalize_path
from proxyless.core.request import Address, Peer, RawHeaders, Request
from proxyless.core.resources import EscapedSlashes, HttpConnectionManager, PathNormalization, TlsMaterial
from proxyless.runtime.exchange import InboundExchange
from proxyless.telemetry import access_log, families

if TYPE_CHECKING:
    from proxyless.core.learned import Learned
    from proxyless.core.resources import FilterChain
    from proxyless.core.snapshot import Snapshot
    from proxyless.identity.source import IdentitySource
    from proxyless.identity.tls import TlsContexts
    from proxyless.settings import Settings
    from proxyless.telemetry.recorder import Telemetry
    from proxyless.xds.client import XdsClient

__all__ = [
    "Connection",
    "InboundExchange",
    "InboundGate",
    "MeshLike",
    "default_mesh",
    "gate_of",
    "malformed_path",
    "reading",
    "refusal",
    "serve_with",
    "serving_mesh",
]

log = logging.getLogger("proxyless.inbound")

# Routers disagree about these in a path: control characters plain or escaped, and a fragment, which no target has (RFC 9112).
_MALFORMED_PATH = re.compile(r"[\x00-\x20\x7f#]|%(?:[01][0-9A-Fa-f]|7[Ff])")
_HOST = re.compile(
    r"(?:\[[0-9A-Fa-f:.%A-Za-z_~-]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]+)?"
)  # RFC 3986 3.2.2, no user

# The widest reading of a path that a framework behind us may route by: escaped slashes decoded, dot segments resolved, runs
# of slashes merged. Frameworks decode all escapes before they route, so a path is also read in one common spelling.
_UNESCAPED = "/:@!$&'()*+,;=-._~[]"  # what policies and callers write as it is; everything else has upper case escapes
_WIDEST = PathNormalization(normalize=True, merge_slashes=True, escaped_slashes=EscapedSlashes.UNESCAPE_AND_FORWARD)


class MeshLike(Protocol):
    """What inbound code needs of `runtime.mesh.Mesh`."""

    @property
    def settings(self) -> Settings: ...
    @property
    def snapshot(self) -> Snapshot | None: ...
    @property
    def identity_source(self) -> IdentitySource | None: ...
    @property
    def contexts(self) -> TlsContexts: ...
    @property
    def telemetry(self) -> Telemetry: ...
    @property
    def learned(self) -> Learned: ...
    @property
    def xds(self) -> XdsClient | None: ...
    @property
    def ready(self) -> bool: ...
    @property
    def announced(self) -> bool: ...
    @property
    def draining(self) -> bool: ...
    def not_ready_reasons(self) -> list[str]: ...
    def start(self) -> None: ...
    def serve(self) -> None: ...
    def close(self) -> None: ...
    def drain(self) -> None: ...
    def hold(self, part: str, reason: str) -> None: ...
    def listening_on(self, port: int) -> None: ...
    def wait_configured(self, timeout: float) -> bool: ...
    async def await_configured(self, timeout: float) -> bool: ...


FOREVER = float("inf")
MARGIN = 30.0  # seconds before the end of a certificate from which a response closes its connection, at most


class Connection:
    """One accepted connection. Only the TLS layer of a server makes one with a verified peer; it is the proof itself, so a
    request carries the object and never a copy of its text (rule M-20).

    Attributes:
        info: what filter chains are matched against.
        peer: the verified peer, or an anonymous one.
        identity: its SPIFFE ID as text; empty for an anonymous one.
        expires_at: wall clock when the first of both certificates ends; infinite for plain text.
        gate: the gate that judges every request of this connection, set by whoever asks it; None: nobody yet.
        valid_host: a Host that was found well-formed.
        log_ends, log_refused: what the lines of the access log about admitted and about refused requests have in common.
    """

    __slots__ = (
        "_chain",
        "_close_from",
        "_generation",
        "expires_at",
        "gate",
        "identity",
        "info",
        "log_ends",
        "log_refused",
        "peer",
        "valid_host",
    )

    def __init__(self, info: ConnectionInfo, peer: Peer, expires_at: float = FOREVER, now: float = 0.0) -> None:
        """`now`: wall clock; with it the margin before `expires_at` is a third of what is left, at most `MARGIN`."""
        self.info, self.peer, self.expires_at = info, peer, expires_at
        self.gate: InboundGate | None = None
        self.identity = "" if peer.identity is None else str(peer.identity)
        local = str(peer.local)
        shared: Callable[..., str] = partial(
            access_log.fixed,
            "inbound",
            route="default",
            upstream_cluster=f"inbound|{peer.local.port}||",
            downstream_local=local,
            downstream_remote=str(peer.address),
            sni=peer.sni,
            peer=self.identity,
        )
        self.log_ends, self.log_refused = shared(upstream_host=local), shared()
        self._close_from = expires_at - min(MARGIN, (expires_at - now) / 3) if expires_at != FOREVER else FOREVER
        self.valid_host: str | None = None
        self._generation = -1
        self._chain: FilterChain | None = None

    def ends_soon(self, now: float) -> bool:
        """A response that starts now should say that the connection ends (wall clock): its certificate does, or the server.

        Callers then make a new connection, elsewhere or to another worker, before this one is closed under a request.
        """
        return now >= self._close_from or (self.gate is not None and self.gate.mesh.draining)

    def chain(self, snapshot: Snapshot) -> FilterChain | None:
        """The filter chain of this connection in this snapshot; selected once for each snapshot.

        A connection that lived through a change of mode is judged by the new one: None closes it.
        """
        if snapshot.generation != self._generation:
            chain = None if snapshot.inbound is None else select_chain(snapshot.inbound, self.info)
            if chain is not None and _wants_identity(chain) and self.peer.identity is None:
                chain = None
            self._chain, self._generation = chain, snapshot.generation
        return self._chain

    @classmethod
    def plaintext(cls, local: Address, remote: Address) -> Connection:
        """An unencrypted HTTP connection."""
        info = ConnectionInfo(
            destination=local, transport="raw_buffer", alpn=("http/1.1",), server_name="", source=remote
        )
        return cls(info, Peer(address=remote, local=local))


class InboundGate:
    """Admits or refuses requests. Any thread; one per mesh, see `gate_of`."""

    def __init__(self, mesh: MeshLike) -> None:
        self.mesh = mesh
        self.telemetry = mesh.telemetry
        self.open = mesh.settings.disabled_inbound
        self.stale = False
        self._said = ""
        mesh.serve()
        if self.open:
            log.critical("PROXYLESS_DISABLED=all: inbound requests pass without mutual TLS and without policy")
            self.telemetry.metrics.set(families.DISABLED, 1, "inbound")

    def begin(
        self,
        connection: Connection,
        request: Request,
        http_version: str,
        problem: str = "",
        others: Sequence[Request] = (),
    ) -> InboundExchange:
        """Judge a request and start recording it. Never raises.

        Args:
            problem: what the adapter found malformed, as response code details; empty: nothing.
            others: the same request as somebody behind us might read it (another path, fewer headers): each must be admitted.
        """
        if problem and not self.open:
            admission = refusal(request, 400, problem)
        else:
            admission = self.admit(connection, request, others)
        return InboundExchange(self.telemetry, connection, request, admission, http_version)

    def admit(self, connection: Connection, request: Request, others: Sequence[Request] = ()) -> Admission:
        """Decide about one request. Never raises."""
        if self.open:
            return Admission(True, 200, b"", "-", "", "", request)
        mesh = self.mesh
        snapshot = mesh.snapshot
        if snapshot is None:
            return self._unready(request)
        source = mesh.identity_source
        if source is not None and source.current is None:
            return self._unready(request)
        problem = malformed_path(request)
        if not problem and request.authority != connection.valid_host:
            if _HOST.fullmatch(request.authority):
                connection.valid_host = request.authority  # the next request has most probably the same
            else:
                problem = "invalid_host"
        if problem:
            return refusal(request, 400, problem)
        try:
            return self._evaluate(connection, snapshot, request, others)
        except Exception:  # whatever it was, a request is never let through by a fault of ours
            log.exception("policy could not be evaluated; the request is refused")
            return refusal(request, 503, "policy_evaluation_failed")

    def _evaluate(
        self, connection: Connection, snapshot: Snapshot, request: Request, others: Sequence[Request]
    ) -> Admission:
        chain = connection.chain(snapshot)
        if chain is None or chain.filter is None:
            return refusal(request, 403, "filter_chain_not_found")
        manager = chain.filter
        if not isinstance(manager, HttpConnectionManager):
            return admit(chain, request, connection.peer)
        table = snapshot.tables.get(manager.rds) if manager.rds else None
        admission = admit(chain, request, connection.peer, table=table)
        if not admission.allowed or (not others and is_plain(admission.request.path)):
            return admission
        for reading in _readings(admission.request, others):
            # What may be read in several ways must be admitted in each of them.
            other = admit(chain, reading, connection.peer, table=table)
            if not other.allowed:
                return other
        return admission

    def reasons(self) -> str:
        """Why nothing is served yet, for people."""
        return "; ".join(self.mesh.not_ready_reasons()) or "starting"

    def _unready(self, request: Request) -> Admission:
        reasons = self.reasons()
        if reasons != self._said:  # once for each reason, not for each request
            self._said = reasons
            log.warning("inbound requests are refused with 503: %s", reasons)
        return refusal(request, 503, "mesh_not_ready")


def _wants_identity(chain: FilterChain) -> bool:
    tls = chain.tls
    return tls is not None and tls.require_client_certificate and tls.validation is TlsMaterial.MESH


def malformed_path(request: Request) -> str:
    """What no server should have let pass, as response code details; empty when nothing is wrong."""
    path = request.path
    if path[:1] != "/" and not (path == "*" and request.method == "OPTIONS"):
        return "path_not_in_origin_form"
    if _MALFORMED_PATH.search(path):
        return "path_has_control_characters"
    return ""


def _readings(request: Request, others: Sequence[Request]) -> Iterator[Request]:
    """Every other way in which this request might be read."""
    for path in _wider(request.path):
        yield reading(request, path)
    for other in others:
        yield other
        for path in _wider(other.path):
            yield reading(other, path)


def _wider(path: str) -> Iterator[str]:
    """Other readings of `path` than itself: as `_WIDEST` says, of the path as it is and of the one spelling that all paths have
    in common which a framework decodes to the same."""
    if "%" not in path and "//" not in path and "/." not in path and "\\" not in path:
        return
    spellings = {path}
    if "%" in path:
        spellings.add(quote(unquote_to_bytes(path.encode("latin-1")), safe=_UNESCAPED))
    yield from sorted({normalize_path(each, _WIDEST).path for each in spellings} - {path})


def reading(request: Request, path: str, headers: RawHeaders | None = None) -> Request:
    """The same request with another path, or with other headers."""
    return Request(
        request.method,
        path,
        request.headers if headers is None else headers,
        authority=request.authority,
        scheme=request.scheme,
        query=request.query,
        destination=request.destination,
        sni=request.sni,
    )


def refusal(request: Request, status: int, details: str) -> Admission:
    """A refusal of ours, with nothing of its reason in the body."""
    body = _BODIES.get(status, b"service is not ready")
    return Admission(False, status, body, "-", details, "", request)


_BODIES = {400: b"bad request", 403: b"RBAC: access denied"}


# By id of the mesh: a gate holds its mesh, so an id in use is never another's.
_GATES: weakref.WeakValueDictionary[int, InboundGate] = weakref.WeakValueDictionary()


def gate_of(mesh: MeshLike) -> InboundGate:
    """The gate of a mesh: one, however many middlewares and protocols serve it."""
    gate = _GATES.get(id(mesh))
    if gate is None:
        gate = _GATES[id(mesh)] = InboundGate(mesh)
    return gate


_serving: MeshLike | None = None


def serve_with(mesh: MeshLike) -> None:
    """Name the mesh of this process's application, for a server that accepts before the application says so."""
    global _serving
    _serving = mesh


def serving_mesh() -> MeshLike:
    """The mesh an application was given explicitly, else the one of this process."""
    return default_mesh() if _serving is None else _serving


def default_mesh() -> MeshLike:
    """`Mesh.default()`, loaded when it is first asked for."""
    from proxyless.runtime.mesh import Mesh

    return Mesh.default()


def _after_fork() -> None:
    """Nothing of the parent is used in a child: who holds a gate sees that it is stale and asks for the child's mesh."""
    for gate in list(_GATES.values()):
        gate.stale = True
    _GATES.clear()


os.register_at_fork(after_in_child=_after_fork)
