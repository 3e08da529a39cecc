"""One outbound call: a sequence of decisions that an engine carries out.

The driver asks for the first action with `next`, does what it says, reports what came of an attempt with `on_outcome`, and so
on until it has a `Deliver`, `Reply`, `Passthrough` or `Fail`. Nothing here waits, connects or reads a clock.

    next ─► Wait (fault delay) ─► next ─► Attempt ─► on_outcome ─► Wait (back-off) ─► next ─► Attempt ...
                                                         └─► Deliver ─► on_body_end
    any step ─► Reply | Passthrough | Fail;  at any moment: abandon

Order of decisions as in Envoy: path normalisation, route, fault, cluster, limits, endpoint. Flags and details are Envoy's
(recordings of Envoy 1.40). What a call holds of the shared counters (active requests, retries) it gives back exactly once,
whatever way it ends.

Rulings. With REGISTRY_ONLY, a destination that no listener knows leads to Istio's black-hole cluster: Envoy closes that
connection, we answer 502, as Istio's `block_all` route does for HTTP.
"""

from __future__ import annotations

from proxyless.core.actions import Action, Attempt, CallRecord, Deliver, Fail, Passthrough, Reply, Wait
from proxyless.core.balancing import pick
from proxyless.core.breakers import may_request, may_retry
from proxyless.core.failures import BODY_BROKEN, describe_failure
from proxyless.core.headers import Pairs, mutate
from proxyless.core.learned import ClusterState, EndpointState, Learned
from proxyless.core.outgoing import Outgoing
from proxyless.core.outlier import observe_connected, observe_local_failure, observe_status, readmit, release_all
from proxyless.core.paths import is_plain, normalize_path
from proxyless.core.plan import NO_PLAN, Plan, plan_of, plan_of_request
from proxyless.core.replies import grpc_to_http_status, local_reply_parts
from proxyless.core.request import Address, Outcome, OutcomeKind, Request
from proxyless.core.resources import ClusterType, DirectResponse, Redirect, RouteAction, TcpProxy
from proxyless.core.retry import FREE_REPEATS, RetryRule
from proxyless.core.rewrites import redirect_location
from proxyless.core.rng import Rng
from proxyless.core.routing import RouteDecision, select_route
from proxyless.core.snapshot import Endpoint, HttpTarget, Snapshot, Upstream

__all__ = [
    "Action",
    "Attempt",
    "CallRecord",
    "Deliver",
    "Fail",
    "OutboundCall",
    "Passthrough",
    "Reply",
    "Wait",
]

BLACK_HOLE = "BlackHoleCluster"  # Istio's name for nowhere

_HERE = Redirect()  # to where the request was sent

_START, _DELAYED, _READY, _ATTEMPTING, _DELIVERED, _ENDED = range(6)


class OutboundCall:
    """See the module. One thread or task at a time.

    Attributes:
        record: names and results so far.
    """

    __slots__ = (
        "_arrived",
        "_caller_timeout",
        "_decision",
        "_endpoint",
        "_endpoint_state",
        "_free",
        "_left",
        "_limit",
        "_max_duration",
        "_outgoing",
        "_plan",
        "_previous",
        "_request",
        "_retrying",
        "_rng",
        "_snapshot",
        "_stage",
        "_state",
        "_tunnel",
        "_upstream",
        "learned",
        "record",
    )

    _plan: Plan
    _state: ClusterState
    _upstream: Upstream
    _outgoing: Outgoing
    _endpoint: Endpoint
    _endpoint_state: EndpointState

    def __init__(
        self,
        snapshot: Snapshot,
        request: Request,
        learned: Learned,
        *,
        now: float,
        rng: Rng,
        timeout: float | None = None,
    ) -> None:
        """`timeout`: seconds that the caller gives the whole call; the shorter of this and the route's counts."""
        self._snapshot, self._request, self.learned = snapshot, request, learned
        self._rng, self._arrived, self._caller_timeout = rng, now, timeout
        self._stage = _START
        self._decision: RouteDecision | None = None
        self._limit: float | None = None
        self._left = self._free = 0
        self._max_duration = self._retrying = self._tunnel = False
        self._previous: set[Address] | None = None
        self.record = CallRecord()

    # ---------------------------------------------------------------------------------------------------------- driver

    def next(self, now: float) -> Action:
        """The first action, and what follows a `Wait`."""
        stage = self._stage
        if stage == _START:
            target = self._snapshot.target(self._request)
            if target is None:
                return self._pass("", "no listener knows this destination")
            if isinstance(target, HttpTarget):
                return self._route(target, now)
            return self._proxy(target, now)
        if stage == _DELAYED:
            return self._fault_abort() or self._act(now)
        if stage == _READY:
            return self._attempt(now)
        raise RuntimeError("the call has an attempt under way, or is over")

    def on_outcome(self, outcome: Outcome, now: float) -> Action:
        """What came of the attempt. After anything but `Deliver` the driver discards what it has of it."""
        if self._stage != _ATTEMPTING:
            raise RuntimeError("the call has no attempt under way")
        if outcome.kind is OutcomeKind.RESPONSE:
            return self._respond(outcome, now)
        return self._fall(outcome, now)

    def on_body_end(self, error: OutcomeKind | None, now: float) -> None:
        """The delivered body ended, or broke with `error`. Later calls do nothing."""
        if self._stage != _DELIVERED:
            return
        if error is not None:
            self._break_body(error, now)
        self._end()

    def abandon(self, now: float) -> None:
        """The caller went away. Harmless at any time and more than once."""
        if self._stage not in (_START, _ENDED):
            self.record.add_flag("DC")
            self.record.details = "downstream_remote_disconnect"
        self._end()

    # ----------------------------------------------------------------------------------------------------------- route

    def _route(self, target: HttpTarget, now: float) -> Action:
        path = self._request.path
        if target.paths is not None and not is_plain(path):
            normalized = normalize_path(path, target.paths)
            if normalized.action == "reject":
                return self._answer(400, b"", "-", "path_normalization_failed")
            if normalized.action == "redirect":
                if self._request.is_grpc:  # a gRPC client follows no redirect
                    return self._answer(400, b"", "-", "path_normalization_failed")
                location = [(b"location", _target(normalized.path, self._request.query))]
                return self._answer(307, b"", "-", "path_normalization_failed", location)
            if normalized.path != path:
                self._request = self._request.with_path(normalized.path)
        decision = self._decision = select_route(target.table, self._request, self._rng)
        record = self.record
        if decision is None:
            return self._answer(404, b"", "NR", "route_not_found")
        route = decision.route
        record.virtual_host, record.route, record.origin = decision.virtual_host, route.name, route.origin
        record.cluster = decision.cluster
        if route.fault is not None:
            return self._fault_delay(now) or self._fault_abort() or self._act(now)
        return self._act(now)

    def _fault_delay(self, now: float) -> Action | None:
        fault = self._decision.route.fault if self._decision is not None else None
        if fault is None or not fault.delay or not fault.delay_fraction.draw(self._rng.random()):
            return None
        self.record.add_flag("DI")
        self._stage = _DELAYED
        until = now + fault.delay
        return Wait(until if self._caller_timeout is None else min(until, self._arrived + self._caller_timeout))

    def _fault_abort(self) -> Action | None:
        fault = self._decision.route.fault if self._decision is not None else None
        if fault is None or not (fault.abort_status or fault.abort_grpc_status is not None):
            return None
        if not fault.abort_fraction.draw(self._rng.random()):
            return None
        status = fault.abort_status or 200
        return self._answer(
            status, b"fault filter abort", "FI", "fault_filter_abort", grpc_status=fault.abort_grpc_status
        )

    def _act(self, now: float) -> Action:
        decision = self._decision
        action = decision.route.action if decision is not None else None
        if isinstance(action, RouteAction) and decision is not None:
            return self._forward(decision, action, now)
        if isinstance(action, Redirect) and decision is not None:
            location = redirect_location(action, decision.route.match.path, self._request)
            headers = [(b"location", location.encode("latin-1"))]
            return self._answer(action.status, b"", "-", "direct_response", headers)
        if isinstance(action, DirectResponse) and decision is not None:
            headers = []
            if action.status == 201 or 300 <= action.status < 400:  # recorded: Envoy tells these where they are
                location = redirect_location(_HERE, decision.route.match.path, self._request)
                headers = [(b"location", location.encode("latin-1"))]
            return self._answer(action.status, action.body, "-", "direct_response", headers)
        return self._answer(503, b"", "NR", "non_forwarding_action")

    def _forward(self, decision: RouteDecision, action: RouteAction, now: float) -> Action:
        upstream = self._snapshot.upstreams.get(decision.cluster)
        if upstream is None:
            return self._no_cluster()
        if upstream.cluster.type is ClusterType.ORIGINAL_DST and upstream.cluster.tls is None:
            return self._pass(decision.cluster, "the route passes it through")
        outgoing = self._outgoing = Outgoing(self._request, decision)
        self.record.grpc = outgoing.grpc
        plan = plan_of_request(action, self._request) if outgoing.instructed else plan_of(decision, action)
        return self._begin(upstream, plan, now)

    # --------------------------------------------------------------------------------------------------------- tunnels

    def _proxy(self, proxy: TcpProxy, now: float) -> Action:
        """A connection that carries no routed HTTP of ours: TLS of the application, or plain text to a TCP service."""
        request, rng = self._request, self._rng
        clusters = proxy.clusters
        weights = sum(cluster.weight for cluster in clusters)
        name = clusters[0].name
        if len(clusters) > 1 and weights:
            drawn = rng.random() * weights
            for cluster in clusters:
                name = cluster.name
                drawn -= cluster.weight
                if drawn < 0:
                    break
        self.record.cluster = name
        if name == BLACK_HOLE:
            return self._answer(502, b"", "UH", "no_healthy_upstream{REGISTRY_ONLY_and_host_not_in_the_mesh}")
        upstream = self._snapshot.upstreams.get(name)
        if upstream is None:
            return self._no_cluster()
        if upstream.cluster.type is ClusterType.ORIGINAL_DST and upstream.cluster.tls is None:
            return self._pass(name, "the listener passes it through")
        self._tunnel = request.scheme == "https"
        self._outgoing = Outgoing(request, None)
        return self._begin(upstream.for_tcp, NO_PLAN, now)

    # -------------------------------------------------------------------------------------------------------- attempts

    def _begin(self, upstream: Upstream, plan: Plan, now: float) -> Action:
        self._upstream, self._plan = upstream, plan
        self.record.upstream = upstream
        self._state = self.learned.cluster(upstream.cluster.name)
        timeouts, caller = plan.timeouts, self._caller_timeout
        limit = now + timeouts.whole if timeouts.whole is not None else None
        if caller is not None and (limit is None or self._arrived + caller < limit):
            limit = self._arrived + caller
        if timeouts.duration is not None and (limit is None or self._arrived + timeouts.duration < limit):
            limit, self._max_duration = self._arrived + timeouts.duration, True
        self._limit = limit
        self._left = plan.rule.num_retries if plan.rule is not None else 0
        return self._attempt(now)

    def _attempt(self, now: float) -> Action:
        upstream, state, limit = self._upstream, self._state, self._limit
        cluster = upstream.cluster
        if limit is not None and now >= limit:
            return self._fail(OutcomeKind.TIMEOUT, None)
        if not may_request(state, cluster.breakers):
            return self._overflow()
        if state.ejected:
            if cluster.outlier is None:
                release_all(state, now)
            elif now >= state.next_return:
                readmit(state, now)
        if cluster.type is ClusterType.ORIGINAL_DST:
            self._endpoint = upstream.endpoint_for(self._request.destination)
            self._endpoint_state = EndpointState(self._request.destination)  # addresses without bound: not kept
        else:
            if self._previous is None:
                chosen = pick(upstream, state, self._rng)
            else:
                chosen = pick(upstream, state, self._rng, self._previous, self._plan.selection_retries)
            if chosen is None:
                return self._answer(503, b"no healthy upstream", "UH", "no_healthy_upstream")
            self._endpoint, self._endpoint_state = chosen
        state.requests += 1
        self._endpoint_state.active += 1
        self.record.attempts += 1
        self.record.endpoint = self._endpoint
        return self._send(now, fresh=False)

    def _send(self, now: float, *, fresh: bool) -> Attempt:
        record, plan, outgoing, endpoint = self.record, self._plan, self._outgoing, self._endpoint
        self._stage = _ATTEMPTING
        one = plan.timeouts.per_try
        if outgoing.rewrite_host and self._decision is not None:
            action = self._decision.route.action
            if isinstance(action, RouteAction):
                outgoing.address_to(endpoint, action)
        expected = None
        limit = None if self._max_duration else self._limit
        if self._decision is not None and (limit is not None or one is not None):
            expected = plan.timeouts.expected_ms(None if limit is None else limit - now)
        return Attempt(
            record.attempts,
            self._upstream,
            endpoint,
            self._state,
            self._limit,
            one,
            self._upstream.cluster.connect_timeout,
            outgoing.method,
            outgoing.target,
            outgoing.authority,
            outgoing.numbered(record.attempts, expected),
            self._tunnel,
            (self._request.sni or self._request.destination.host) if self._tunnel else "",
            fresh,
        )

    def _respond(self, outcome: Outcome, now: float) -> Action:
        record = self.record
        record.status, record.grpc_status = outcome.status, outcome.grpc_status
        if self._upstream.cluster.outlier is not None:
            self._observe(outcome, now)
        rule = self._plan.rule
        if rule is not None and rule.repeats_response(outcome) and self._may_retry():
            return self._repeat(rule, now)
        self._stage = _DELIVERED
        record.details = "via_upstream"
        decision = self._decision
        return Deliver(outcome, decision.response_headers if decision is not None else (), self._limit)

    def _fall(self, outcome: Outcome, now: float) -> Action:
        """The attempt ended without a response."""
        kind = outcome.kind
        if kind is OutcomeKind.RESET_BEFORE_REQUEST and self._free < FREE_REPEATS:
            self._free += 1
            return self._send(now, fresh=True)
        if kind is OutcomeKind.OVERFLOW:
            return self._overflow()
        if self._upstream.cluster.outlier is not None and kind is not OutcomeKind.CANCELLED:
            self._observe(outcome, now)
        rule = self._plan.rule
        if rule is not None and rule.repeats_failure(kind) and self._may_retry():
            return self._repeat(rule, now)
        return self._fail(kind, outcome)

    def _observe(self, outcome: Outcome, now: float) -> None:
        upstream, state, endpoint, kind = self._upstream, self._state, self._endpoint_state, outcome.kind
        if kind is not OutcomeKind.CONNECT_FAILURE:
            observe_connected(upstream, endpoint)
        if kind is OutcomeKind.RESPONSE:
            status = outcome.status
            if outcome.grpc_status is not None:
                status = grpc_to_http_status(outcome.grpc_status)
            found = observe_status(upstream, state, endpoint, status, now, self._rng)
        else:
            late = kind in (OutcomeKind.PER_TRY_TIMEOUT, OutcomeKind.TIMEOUT)
            found = observe_local_failure(upstream, state, endpoint, late, now, self._rng)
        if found:
            self.record.ejections += found

    # --------------------------------------------------------------------------------------------------------- retries

    def _may_retry(self) -> bool:
        """Take a retry, if body, number and breaker allow. Sets URX or UO where Envoy does."""
        if not self._request.body_replayable:
            return False
        state = self._state
        if self._retrying:
            state.retries -= 1
            self._retrying = False
        if self._left <= 0:
            self.record.add_flag("URX")
            return False
        self._left -= 1
        if not may_retry(state, self._upstream.cluster.breakers):
            self.record.add_flag("UO")
            return False
        state.retries += 1
        self._retrying = True
        return True

    def _repeat(self, rule: RetryRule, now: float) -> Action:
        if self._plan.selection_retries:
            if self._previous is None:
                self._previous = set()
            self._previous.add(self._endpoint.address)
        self._give_back()
        self._stage = _READY
        until = now + rule.back_off(self.record.attempts, self._rng)
        return Wait(until if self._limit is None else min(until, self._limit))

    # ------------------------------------------------------------------------------------------------------------- end

    def _break_body(self, error: OutcomeKind, now: float) -> None:
        record = self.record
        if error is OutcomeKind.CANCELLED:
            record.add_flag("DC")
            record.details = "downstream_remote_disconnect"
            return
        if error in (OutcomeKind.TIMEOUT, OutcomeKind.PER_TRY_TIMEOUT):
            failure = describe_failure(OutcomeKind.TIMEOUT, None, 1, max_duration=self._max_duration)
            record.details = failure.details
            if failure.flag != "-":
                record.add_flag(failure.flag)
        else:
            record.add_flag("UPE")
            record.details = BODY_BROKEN
        if self._upstream.cluster.outlier is not None:
            self._observe(Outcome(kind=error), now)

    def _fail(self, kind: OutcomeKind, outcome: Outcome | None) -> Fail:
        record = self.record
        failure = describe_failure(kind, outcome, record.attempts, max_duration=self._max_duration)
        if failure.flag != "-":
            record.add_flag(failure.flag)
        record.details, record.status = failure.details, failure.status
        self._end()
        return Fail(record.flags, failure.details, failure.status, outcome, failure.error, failure.message, record.grpc)

    def _overflow(self) -> Reply:
        text = b"upstream connect error or disconnect/reset before headers. reset reason: overflow"
        details = "upstream_reset_before_response_started{overflow}"
        return self._answer(503, text, "UO", details, [(b"x-envoy-overloaded", b"true")])

    def _no_cluster(self) -> Reply:
        self.record.cluster = ""
        return self._answer(503, b"", "NC", "cluster_not_found")

    def _answer(
        self,
        status: int,
        body: bytes,
        flag: str,
        details: str,
        headers: Pairs | None = None,
        grpc_status: int | None = None,
    ) -> Reply:
        record = self.record
        record.grpc = self._request.is_grpc
        if flag != "-":
            record.add_flag(flag)
        status, own, body = local_reply_parts(status, body, grpc=record.grpc, grpc_status=grpc_status)
        own += headers or []
        if self._decision is not None:
            mutate(own, self._decision.response_headers)
        record.status, record.details = status, details
        self._end()
        return Reply(status, own, body, record.flags, details)

    def _pass(self, cluster: str, reason: str) -> Passthrough:
        self._stage = _ENDED
        self.record.cluster = cluster
        return Passthrough(cluster, reason)

    def _give_back(self) -> None:
        self._state.requests -= 1
        self._endpoint_state.active -= 1

    def _end(self) -> None:
        if self._stage in (_ATTEMPTING, _DELIVERED):
            self._give_back()
        if self._retrying:
            self._state.retries -= 1
            self._retrying = False
        self._stage = _ENDED


def _target(path: str, query: str) -> bytes:
    return (f"{path}?{query}" if query else path).encode("latin-1")
