"""A network in virtual time for `OutboundCall`: carries out its actions against a programmed upstream. Decides nothing."""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxyless.core.breakers import may_connect, may_wait
from proxyless.core.call import Attempt, Deliver, Fail, OutboundCall, Passthrough, Reply, Wait
from proxyless.core.learned import ClusterState, Learned
from proxyless.core.request import Address, Outcome, OutcomeKind, Request
from proxyless.core.snapshot import Snapshot

OK = [{"status": 200}]
RESPONSE_HEADERS = ((b"content-type", b"text/plain"), (b"x-app", b"one"))


@dataclass(slots=True)
class Result:
    """What the caller of one call saw. `last` is the attempt that was delivered or failed last."""

    status: int | None
    flags: str
    cluster: str | None
    route: str | None
    details: str | None
    attempts: int
    last: Attempt | None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    passthrough: bool = False


@dataclass(slots=True)
class Network:
    """What the endpoints do. `plan` is for every endpoint, `endpoints` for some; `dead` refuse connections."""

    plan: Sequence[Mapping[str, Any]] = ()
    endpoints: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    dead: frozenset[str] = frozenset()
    asked: Counter[str] = field(default_factory=Counter)
    order: list[str] = field(default_factory=list)

    def outcome(self, attempt: Attempt, number: int, now: float) -> tuple[float, Outcome]:
        """(instant, what is reported) of an attempt that begins now; `number` counts requests the upstream saw."""
        where = str(attempt.endpoint.address)
        if where in self.dead:
            return now, Outcome(kind=OutcomeKind.CONNECT_FAILURE, detail="connection refused")
        self.asked[where] += 1
        self.order.append(where)
        steps = self.plan or OK
        step = self.endpoints.get(where) or steps[min(number, len(steps)) - 1]
        arrives, outcome, deadline = now + step.get("delay_ms", 0) / 1000, _outcome(step), attempt.begin(now)
        if step.get("action") == "hang" or (deadline is not None and arrives > deadline):
            kind = OutcomeKind.PER_TRY_TIMEOUT if attempt.per_try else OutcomeKind.TIMEOUT
            return (deadline if deadline is not None else float("inf")), Outcome(kind=kind)
        return arrives, outcome


def _outcome(step: Mapping[str, Any]) -> Outcome:
    action = step.get("action", "")
    if action in ("reset", "close"):
        return Outcome(kind=OutcomeKind.RESET, detail="connection termination")
    headers = [(k.encode(), str(v).encode()) for k, v in step.get("headers", ())] or list(RESPONSE_HEADERS)
    return Outcome(kind=OutcomeKind.RESPONSE, status=step.get("status", 200), headers=headers, bytes_seen=True)


def build_request(request: Mapping[str, Any]) -> Request:
    """A recorded request as the core sees it."""
    host, _, port = request["to"].rpartition(":")
    path, _, query = request.get("path", "/").partition("?")
    headers = [(name, value) for name, value in request.get("headers", ())]
    authority = next((value for name, value in headers if name.lower() == "host"), request["to"])
    raw = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers if name.lower() != "host"]
    return Request(
        request.get("method", "GET"),
        path,
        raw,
        authority=authority,
        query=query,
        scheme="https" if request.get("tls") is not None else "http",
        sni=(request.get("tls") or {}).get("sni", ""),
        destination=Address(host.strip("[]"), int(port)),
    )


def one_call(
    snapshot: Snapshot,
    request: Request,
    network: Network,
    learned: Learned,
    rng: random.Random,
    now: float = 0.0,
    patience: float | None = None,
) -> tuple[Result, float]:
    """Carry out one call; the result and the instant of its end. `patience`: seconds until the caller goes away."""
    gives_up = float("inf") if patience is None else now + patience
    call = OutboundCall(snapshot, request, learned, now=now, rng=rng)
    action, seen, last = call.next(now), 0, None
    while True:
        if isinstance(action, Attempt):
            last = action
            if str(action.endpoint.address) not in network.dead:
                seen += 1
            now, outcome = network.outcome(action, max(seen, 1), now)
            if now > gives_up:
                call.abandon(gives_up)
                return _result(call, None, last, seen), gives_up
            action = call.on_outcome(outcome, now)
        elif isinstance(action, Wait):
            now = action.until
            action = call.next(now)
        else:
            break
    if isinstance(action, Deliver):
        call.on_body_end(None, now)
    return _result(call, action, last, seen), now


def _result(call: OutboundCall, action: Any, last: Attempt | None, seen: int) -> Result:
    record = call.record
    result = Result(
        record.status,
        record.flags.replace("-", ""),
        record.cluster or None,
        record.route or None,
        record.details,
        seen,
        last,
    )
    if isinstance(action, Passthrough):
        result.status, result.passthrough, result.attempts = 200, True, 1
        result.cluster, result.details = action.cluster or "PassthroughCluster", "via_upstream"
        result.headers = list(RESPONSE_HEADERS)
    elif isinstance(action, Deliver):
        result.headers = action.headers(action.outcome.headers)
    elif isinstance(action, Reply):
        result.status, result.headers = action.status, list(action.headers)
    elif isinstance(action, Fail):
        result.status = action.status
    elif action is None:
        result.status = None
    return result


# ------------------------------------------------------------------------------------------------------------------ burst


class Burst:
    """Many calls at once over connections that carry one request at a time, within the cluster's limits."""

    def __init__(self, snapshot: Snapshot, network: Network, rng: random.Random) -> None:
        self._snapshot, self._network, self._rng = snapshot, network, rng
        self._learned = Learned()
        self._events: list[tuple[float, int, Any]] = []
        self._tick = 0
        self._idle: dict[Address, int] = Counter()
        self._open: Counter[Address] = Counter()
        self._waiting: dict[Address, deque[tuple[OutboundCall, Attempt]]] = {}
        self.results: list[Result] = []

    def run(self, request: Request, count: int, interval: float) -> list[Result]:
        for index in range(count):
            self._at(index * interval, ("start", request))
        while self._events:
            now, _, event = heapq.heappop(self._events)
            getattr(self, "_" + event[0])(now, *event[1:])
        return self.results

    def connections(self) -> dict[str, int]:
        return {str(address): count for address, count in self._open.items()}

    def _at(self, instant: float, event: Any) -> None:
        self._tick += 1
        heapq.heappush(self._events, (instant, self._tick, event))

    def _start(self, now: float, request: Request) -> None:
        call = OutboundCall(self._snapshot, request, self._learned, now=now, rng=self._rng)
        self._do(now, call, call.next(now))

    def _do(self, now: float, call: OutboundCall, action: Any) -> None:
        if isinstance(action, Attempt):
            self._connect(now, call, action)
        elif isinstance(action, Wait):
            self._at(action.until, ("resume", call))
        else:
            if isinstance(action, Deliver):
                call.on_body_end(None, now)
            self.results.append(_result(call, action, None, call.record.attempts if isinstance(action, Deliver) else 0))

    def _resume(self, now: float, call: OutboundCall) -> None:
        self._do(now, call, call.next(now))

    def _connect(self, now: float, call: OutboundCall, attempt: Attempt) -> None:
        address, limits, state = attempt.endpoint.address, attempt.upstream.cluster.breakers, attempt.state
        if self._idle[address]:
            self._idle[address] -= 1
            self._exchange(now, call, attempt)
        elif not may_wait(state, limits):
            self._do(now, call, call.on_outcome(Outcome(kind=OutcomeKind.OVERFLOW), now))
        elif may_connect(state, limits, self._open[address]):
            state.connections += 1
            self._open[address] += 1
            self._exchange(now, call, attempt)
        else:
            state.pending += 1
            self._waiting.setdefault(address, deque()).append((call, attempt))

    def _exchange(self, now: float, call: OutboundCall, attempt: Attempt) -> None:
        instant, outcome = self._network.outcome(attempt, 1, now)
        self._at(instant, ("answered", call, attempt, outcome))

    def _answered(self, now: float, call: OutboundCall, attempt: Attempt, outcome: Outcome) -> None:
        state: ClusterState = attempt.state
        self._do(now, call, call.on_outcome(outcome, now))
        queue = self._waiting.get(attempt.endpoint.address)
        if queue:
            state.pending -= 1
            self._exchange(now, *queue.popleft())
        else:
            self._idle[attempt.endpoint.address] += 1
