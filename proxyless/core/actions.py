"""What an outbound call tells its driver to do next, and what it remembers for metrics and logs."""

from __future__ import annotations

from proxyless.core.headers import Pairs, mutate
from proxyless.core.learned import ClusterState
from proxyless.core.outlier import Ejection
from proxyless.core.replies import local_reply_parts
from proxyless.core.request import Outcome, RawHeaders
from proxyless.core.resources import HeaderMutations, UpstreamTls
from proxyless.core.snapshot import Endpoint, Upstream
from proxyless.errors import RequestError

__all__ = ["Action", "Attempt", "CallRecord", "Deliver", "Fail", "Passthrough", "Reply", "Wait"]


class Attempt:
    """Make one attempt, report it with `OutboundCall.on_outcome`.

    Attributes:
        number: 1 for the first try.
        state: counters of the cluster; the engine counts `connections` and `pending` in it.
        deadline: the instant when the call is over, None: never.
        per_try_timeout: seconds that the attempt may take from the moment it has a connection (as Envoy counts: recorded, time
            in the queue does not count); None: as long as the call. See `begin`.
        per_try: once begun: the attempt's own time ends before the call's. Report PER_TRY_TIMEOUT then, else TIMEOUT.
        connect_timeout: seconds for connecting, handshake included; beyond: CONNECT_FAILURE with `timed_out`.
        target: path and query as bytes, after rewrites. authority: Host to send, after rewrites.
        headers: raw pairs to send, without Host.
        app_tls: TLS of the application itself inside of the connection, with `server_name`; verified as without a mesh.
        fresh: use a new connection: a pooled one was found dead.
    """

    __slots__ = (
        "app_tls",
        "authority",
        "connect_timeout",
        "deadline",
        "endpoint",
        "fresh",
        "headers",
        "method",
        "number",
        "per_try",
        "per_try_timeout",
        "server_name",
        "state",
        "target",
        "upstream",
    )

    def __init__(
        self,
        number: int,
        upstream: Upstream,
        endpoint: Endpoint,
        state: ClusterState,
        deadline: float | None,
        per_try_timeout: float | None,
        connect_timeout: float,
        method: str,
        target: bytes,
        authority: str,
        headers: Pairs,
        app_tls: bool = False,
        server_name: str = "",
        fresh: bool = False,
    ) -> None:
        self.number, self.upstream, self.endpoint, self.state = number, upstream, endpoint, state
        self.deadline, self.per_try_timeout, self.connect_timeout = deadline, per_try_timeout, connect_timeout
        self.per_try = False
        self.method, self.target, self.authority, self.headers = method, target, authority, headers
        self.app_tls, self.server_name, self.fresh = app_tls, server_name, fresh

    def begin(self, now: float) -> float | None:
        """There is a connection for it now: -> the instant when the attempt is over."""
        deadline, own = self.deadline, self.per_try_timeout
        if own is not None and (deadline is None or now + own < deadline):
            self.per_try = True
            return now + own
        return deadline

    @property
    def tls(self) -> UpstreamTls | None:
        """TLS of the mesh on this connection; None: plain text."""
        return self.endpoint.tls


class Wait:
    """Do nothing until the instant `until`, then call `OutboundCall.next`. A response reported before is to be discarded."""

    __slots__ = ("until",)

    def __init__(self, until: float) -> None:
        self.until = until


class Reply:
    """The mesh answers itself."""

    __slots__ = ("body", "details", "flag", "headers", "status")

    def __init__(self, status: int, headers: Pairs, body: bytes, flag: str, details: str) -> None:
        self.status, self.headers, self.body, self.flag, self.details = status, headers, body, flag, details


class Passthrough:
    """The destination is not the mesh's: use ordinary transport. `cluster` is empty where no resource said so."""

    __slots__ = ("cluster", "reason")

    def __init__(self, cluster: str, reason: str) -> None:
        self.cluster, self.reason = cluster, reason


class Deliver:
    """Hand this response to the caller; report the end of its body with `OutboundCall.on_body_end`.

    Attributes:
        deadline: the instant when the body must have ended, None: never. Then report TIMEOUT.
        mutations: for `headers`.
    """

    __slots__ = ("deadline", "mutations", "outcome")

    def __init__(self, outcome: Outcome, mutations: tuple[HeaderMutations, ...], deadline: float | None) -> None:
        self.outcome, self.mutations, self.deadline = outcome, mutations, deadline

    def headers(self, raw: RawHeaders) -> Pairs:
        """Response headers as the caller must see them."""
        headers = list(raw)
        if self.mutations:
            mutate(headers, self.mutations)
        return headers


class Fail:
    """No response. `error` is the type to raise, `reply` what Envoy would have answered.

    Attributes:
        flag: Envoy's response flags, comma-separated.
        outcome: of the last attempt; None when the time was over without one.
        message: for people.
    """

    __slots__ = ("details", "error", "flag", "grpc", "message", "outcome", "status")

    def __init__(
        self,
        flag: str,
        details: str,
        status: int,
        outcome: Outcome | None,
        error: type[RequestError],
        message: str,
        grpc: bool,
    ) -> None:
        self.flag, self.details, self.status, self.outcome = flag, details, status, outcome
        self.error, self.message, self.grpc = error, message, grpc

    def to_error(self, record: CallRecord) -> RequestError:
        """The exception, with the names that led to it."""
        return self.error(
            self.message,
            flag=self.flag,
            details=self.details,
            status=self.status,
            cluster=record.cluster,
            endpoint=str(record.endpoint.address) if record.endpoint is not None else "",
            attempts=record.attempts,
        )

    def reply(self) -> Reply:
        """Envoy's local reply."""
        status, headers, body = local_reply_parts(self.status, self.message.encode(), grpc=self.grpc)
        return Reply(status, headers, body, self.flag, self.details)


Action = Attempt | Wait | Reply | Passthrough | Deliver | Fail


class CallRecord:
    """What is known of a call for metrics, log, span and explanation. Filled as the call proceeds.

    Attributes:
        virtual_host, route, origin: names of the route; `origin` is the path of the Istio resource that made it.
        cluster: name; empty when none was found.
        upstream, endpoint: of the last attempt.
        attempts: made so far.
        flags: Envoy's response flags in the order they were set, comma-separated; ``-`` for none.
        details: Envoy's RESPONSE_CODE_DETAILS; None before anything is known, and where the mesh had no say.
        status: HTTP status that the caller got or, for a failure, would have got; 0 before.
        grpc: the request is gRPC; grpc_status: of the response headers, None when they had none.
        ejections: what this call caused.
    """

    __slots__ = (
        "attempts",
        "cluster",
        "details",
        "ejections",
        "endpoint",
        "flags",
        "grpc",
        "grpc_status",
        "origin",
        "route",
        "status",
        "upstream",
        "virtual_host",
    )

    def __init__(self) -> None:
        self.virtual_host = self.route = self.origin = self.cluster = ""
        self.upstream: Upstream | None = None
        self.endpoint: Endpoint | None = None
        self.attempts = self.status = 0
        self.flags = "-"
        self.details: str | None = None
        self.grpc = False
        self.grpc_status: int | None = None
        self.ejections: tuple[Ejection, ...] = ()

    def add_flag(self, flag: str) -> None:
        if self.flags == "-":
            self.flags = flag
        elif flag not in self.flags.split(","):
            self.flags = f"{self.flags},{flag}"

    @property
    def service(self) -> str:
        """Host of the destination service; empty when unknown."""
        return self.upstream.cluster.service if self.upstream is not None else ""

    @property
    def service_namespace(self) -> str:
        return self.upstream.cluster.service_namespace if self.upstream is not None else ""

    @property
    def workload(self) -> str:
        """Istio's `workload;namespace;canonical-service;canonical-revision;cluster` of the last endpoint."""
        return self.endpoint.workload if self.endpoint is not None else ""
