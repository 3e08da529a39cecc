"""Builders for the tests of outbound decisions: short ways to say a cluster, a route, a snapshot, a call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from proxyless.core.actions import Action, Attempt, Wait
from proxyless.core.call import OutboundCall
from proxyless.core.learned import Learned
from proxyless.core.matchers import PathMatcher
from proxyless.core.request import Address, Outcome, OutcomeKind, Request
from proxyless.core.resources import (
    Cluster,
    ClusterType,
    FilterChain,
    HttpConnectionManager,
    LbEndpoint,
    Listener,
    LoadAssignment,
    LocalityEndpoints,
    Redirect,
    RetryPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
    WeightedCluster,
)
from proxyless.core.snapshot import Resources, Snapshot, Upstream, compile_snapshot


class Chance:
    """Gives the listed numbers one after the other, the last for ever."""

    def __init__(self, *values: float) -> None:
        self.values = list(values) or [0.0]

    def random(self) -> float:
        return self.values.pop(0) if len(self.values) > 1 else self.values[0]


def address(index: int) -> Address:
    return Address(f"10.0.0.{index}", 8080)


def assignment(name: str, endpoints: Iterable[LbEndpoint], priority: int = 0) -> LoadAssignment:
    return LoadAssignment(name=name, localities=(LocalityEndpoints(priority=priority, endpoints=tuple(endpoints)),))


def cluster(name: str = "c", endpoints: int | Sequence[LbEndpoint] = 3, **fields: object) -> Cluster:
    if isinstance(endpoints, int):
        endpoints = [LbEndpoint(address=address(index)) for index in range(endpoints)]
    fields.setdefault("panic_threshold", 0.0)
    fields.setdefault("assignment", assignment(name, endpoints))
    return Cluster(name=name, type=ClusterType.STATIC, **fields)  # type: ignore[arg-type]  # keywords of a dataclass


def upstream_of(what: Cluster) -> Upstream:
    return compile_snapshot(Resources(clusters={what.name: what}), None, 1).upstreams[what.name]


def match(path: str = "/", kind: str = "prefix", **fields: object) -> RouteMatch:
    return RouteMatch(path=PathMatcher(kind, path), **fields)  # type: ignore[arg-type]  # keywords of a dataclass


def forward(*clusters: str | tuple[str, int], **fields: object) -> RouteAction:
    pairs = [(each, 1) if isinstance(each, str) else each for each in clusters]
    weighted = tuple(WeightedCluster(name=name, weight=weight) for name, weight in pairs)
    total = sum(weight for _, weight in pairs)
    return RouteAction(clusters=weighted, total_weight=total, **fields)  # type: ignore[arg-type]  # see above


def retries(*words: str, **fields: object) -> RetryPolicy:
    return RetryPolicy(retry_on=frozenset(words), **fields)  # type: ignore[arg-type]  # keywords of a dataclass


def routes(*entries: Route, domains: tuple[str, ...] = ("*",), **fields: object) -> RouteConfiguration:
    host = VirtualHost(name="vh", domains=domains, routes=entries)
    return RouteConfiguration(name="80", virtual_hosts=(host,), **fields)  # type: ignore[arg-type]  # see above


def route(action: RouteAction | Redirect | object, path: str = "/", **fields: object) -> Route:
    return Route(match=match(path), action=action, **fields)  # type: ignore[arg-type]  # keywords of a dataclass


def listener(configuration: RouteConfiguration, port: int = 80) -> Listener:
    return Listener(
        name=f"0.0.0.0_{port}",
        address=Address("0.0.0.0", port),
        direction="OUTBOUND",
        filter_chains=(FilterChain(filter=HttpConnectionManager(routes=configuration)),),
    )


def snapshot(configuration: RouteConfiguration, *clusters: Cluster) -> Snapshot:
    resources = Resources(
        listeners={"80": listener(configuration)}, clusters={each.name: each for each in clusters or (cluster(),)}
    )
    return compile_snapshot(resources, None, 1)


def request(path: str = "/", host: str = "svc", headers: dict[str, str] | None = None, **fields: object) -> Request:
    path, _, query = path.partition("?")
    fields.setdefault("destination", Address(host.partition(":")[0], 80))
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
    method = str(fields.pop("method", "GET"))
    return Request(method, path, pairs, authority=host, query=query, **fields)  # type: ignore[arg-type]  # see above


def answer(status: int = 200, **fields: object) -> Outcome:
    return Outcome(kind=OutcomeKind.RESPONSE, status=status, **fields)  # type: ignore[arg-type]  # see above


def failure(kind: OutcomeKind, **fields: object) -> Outcome:
    return Outcome(kind=kind, **fields)  # type: ignore[arg-type]  # keywords of a dataclass


class Driver:
    """Drives a call on a clock of its own, answering each attempt from a plan whose last entry repeats."""

    def __init__(
        self,
        shot: Snapshot,
        what: Request,
        plan: Sequence[Outcome] = (),
        *,
        learned: Learned | None = None,
        rng: object = None,
        took: float = 0.0,
        timeout: float | None = None,
    ) -> None:
        self.learned = learned or Learned()
        self.now, self.took, self.plan = 1000.0, took, list(plan) or [answer()]
        self.attempts: list[Attempt] = []
        self.waits: list[float] = []
        self.call = OutboundCall(
            shot,
            what,
            self.learned,
            now=self.now,
            rng=rng or Chance(0.5),  # type: ignore[arg-type]  # Chance is an Rng
            timeout=timeout,
        )

    def run(self) -> Action:
        action = self.call.next(self.now)
        while isinstance(action, Attempt | Wait):
            if isinstance(action, Wait):
                self.waits.append(action.until - self.now)
                self.now = action.until
                action = self.call.next(self.now)
            else:
                self.attempts.append(action)
                action = self._answer(action)
        return action

    def _answer(self, attempt: Attempt) -> Action:
        outcome = self.plan[min(len(self.attempts), len(self.plan)) - 1]
        end = self.now + self.took
        deadline = attempt.begin(self.now)
        if deadline is not None and end >= deadline:
            end = deadline
            outcome = failure(OutcomeKind.PER_TRY_TIMEOUT if attempt.per_try else OutcomeKind.TIMEOUT)
        self.now = end
        return self.call.on_outcome(outcome, self.now)

    @property
    def flags(self) -> str:
        return self.call.record.flags

    @property
    def counters(self) -> tuple[int, int, int]:
        """Requests and retries held in the cluster, and active on its endpoints."""
        states = self.learned.clusters.values()
        active = sum(endpoint.active for state in states for endpoint in state.endpoints.values())
        return sum(state.requests for state in states), sum(state.retries for state in states), active
