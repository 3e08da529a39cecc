"""Which endpoint takes an attempt.

Health, ejections and priorities are worked out once for each (upstream, ejection) state and kept in `ClusterState.view`; a pick
then costs one or two draws, whatever the number of endpoints. Source: Envoy `load_balancer_impl.cc`.

- Priorities: availability of a level is min(100, 140 * healthy / hosts); load fills from level 0, degraded endpoints take what
  healthy ones leave, rounding goes to the first level that has any.
- Panic: where the whole is less than fully available and a level has less than `panic_threshold` percent, all its endpoints
  count as healthy, ejected and unhealthy ones too. A threshold of 0 switches that off: then nobody is picked and the request
  gets 503 UH.
- Round robin by weight is the order of Envoy's EDF scheduler. Least request: two draws (by weight, with repetition), the less
  busy one, the first on a tie. RING_HASH and MAGLEV draw at random until they are built, which the decoder reports.
"""

from __future__ import annotations

from collections.abc import Container
from functools import reduce
from math import gcd

from proxyless.core.learned import ClusterState, EndpointState
from proxyless.core.request import Address
from proxyless.core.resources import Health, LbPolicy
from proxyless.core.rng import Rng
from proxyless.core.snapshot import Endpoint, Upstream

__all__ = ["Level", "Loads", "pick", "priority_loads"]

_OVERPROVISIONING = 140
_MAX_SCHEDULE = 4096
_CURSOR_RANGE = 2**20
_NOBODY: frozenset[Address] = frozenset()

Picked = tuple[Endpoint, EndpointState]


def pick(
    upstream: Upstream,
    state: ClusterState,
    rng: Rng,
    previous: Container[Address] = _NOBODY,
    retries: int = 0,
) -> Picked | None:
    """An endpoint and its state; None: nobody is healthy.

    `previous` are addresses to avoid: at most `retries` further draws are made for that, then whatever came is taken.
    """
    view: _View | None = state.view
    if view is None or view.upstream is not upstream or view.version != state.version:
        view = state.view = _View(upstream, state)
    chosen = view.pick(state, rng)
    while retries > 0 and chosen is not None and chosen[0].address in previous:
        chosen = view.pick(state, rng)
        retries -= 1
    return chosen


# ------------------------------------------------------------------------------------------------------------ priorities


class Level:
    """Hosts of one priority, counted."""

    __slots__ = ("degraded", "healthy", "hosts")

    def __init__(self, hosts: int, healthy: int, degraded: int = 0) -> None:
        self.hosts, self.healthy, self.degraded = hosts, healthy, degraded


class Loads:
    """Percent of requests for the healthy and the degraded hosts of each level, and which levels are in panic."""

    __slots__ = ("degraded", "healthy", "panic")

    def __init__(self, levels: int) -> None:
        self.healthy, self.degraded = [0] * levels, [0] * levels
        self.panic = [False] * levels


def priority_loads(levels: list[Level], panic_threshold: float) -> Loads:
    """Envoy's `recalculatePerPriorityState`, with the default overprovisioning factor. `levels` is not empty."""
    loads = Loads(len(levels))
    healthy = [_availability(level.healthy, level.hosts) for level in levels]
    degraded = [_availability(level.degraded, level.hosts) for level in levels]
    total = min(100, sum(healthy) + sum(degraded))
    if total:
        first_healthy, rest = _distribute(loads.healthy, healthy, 100, total)
        first_degraded, rest = _distribute(loads.degraded, degraded, rest, total)
        if first_healthy >= 0:
            loads.healthy[first_healthy] += rest
        else:
            loads.degraded[first_degraded] += rest
    elif panic_threshold == 0:
        loads.healthy[0] = 100
        return loads
    if total < 100:
        loads.panic = [_in_panic(level, panic_threshold) for level in levels]
        if all(loads.panic):
            _panic_everywhere(loads, levels)
    return loads


def _availability(usable: int, hosts: int) -> int:
    return min(100, _OVERPROVISIONING * usable // hosts) if hosts else 0


def _distribute(into: list[int], availability: list[int], load: int, total: int) -> tuple[int, int]:
    """Returns the first level that has any, -1 for none, and the load that is left."""
    first = -1
    for level, available in enumerate(availability):
        if first < 0 and available:
            first = level
        into[level] = min(load, available * 100 // total)
        load -= into[level]
    return first, load


def _in_panic(level: Level, threshold: float) -> bool:
    percent = 100.0 * (level.healthy + level.degraded) / level.hosts if level.hosts else 0.0
    return percent < threshold


def _panic_everywhere(loads: Loads, levels: list[Level]) -> None:
    hosts = sum(level.hosts for level in levels)
    loads.degraded = [0] * len(levels)
    loads.healthy = [100 * level.hosts // hosts if hosts else 0 for level in levels]
    first = next((index for index, level in enumerate(levels) if level.hosts), 0)
    loads.healthy[first] += 100 - sum(loads.healthy)


# ------------------------------------------------------------------------------------------------------------------ hosts


class _Pool:
    """Hosts that take requests together, in the order of the policy. `order` repeats a host by its weight."""

    __slots__ = ("hosts", "order", "size")

    def __init__(self, hosts: list[Picked], *, weighted: bool) -> None:
        self.hosts = hosts
        order = _edf_order([endpoint.weight for endpoint, _ in hosts]) if weighted else None
        self.order = hosts if order is None else [hosts[index] for index in order]
        self.size = len(self.order)


def _edf_order(weights: list[int]) -> list[int] | None:
    """Indexes in earliest-deadline order, each as often as its weight in lowest terms; None when all are equal.

    Weights whose sum in lowest terms is beyond the limit are rounded, none below one.
    """
    if len(set(weights)) <= 1:
        return None
    divisor = reduce(gcd, weights) or 1
    shares = [max(1, weight // divisor) for weight in weights]
    total, limit = sum(shares), max(_MAX_SCHEDULE, 2 * len(shares))
    if total > limit:
        shares = [max(1, round(share * limit / total)) for share in shares]
    deadlines = [((turn + 1) / share, index) for index, share in enumerate(shares) for turn in range(share)]
    return [index for _, index in sorted(deadlines)]


class _View:
    """The hosts of an upstream as they can be picked now. Immutable; thrown away when anything changes."""

    __slots__ = ("choices", "least", "only", "round_robin", "upstream", "version")

    def __init__(self, upstream: Upstream, state: ClusterState) -> None:
        self.upstream, self.version = upstream, state.version
        policy = upstream.cluster.lb_policy
        self.round_robin = policy is LbPolicy.ROUND_ROBIN
        self.least = policy is LbPolicy.LEAST_REQUEST
        self.choices: list[tuple[int, _Pool]] = []  # (cumulative percent, pool)
        self._fill(upstream, state)
        self.only = self.choices[0][1] if len(self.choices) == 1 else None

    def _fill(self, upstream: Upstream, state: ClusterState) -> None:
        levels: dict[int, list[Picked]] = {}
        for endpoint in upstream.endpoints:
            levels.setdefault(endpoint.priority, []).append((endpoint, state.endpoint(endpoint.address)))
        if not levels:
            return
        everyone = [levels[priority] for priority in sorted(levels)]
        healthy = [[host for host in hosts if _usable(host, degraded=False)] for hosts in everyone]
        degraded = [[host for host in hosts if _usable(host, degraded=True)] for hosts in everyone]
        counts = [Level(*map(len, parts)) for parts in zip(everyone, healthy, degraded, strict=True)]
        loads = priority_loads(counts, upstream.cluster.panic_threshold)
        reached = 0
        for tier, shares in ((healthy, loads.healthy), (degraded, loads.degraded)):
            for index, share in enumerate(shares):
                hosts = everyone[index] if loads.panic[index] else tier[index]
                if share and hosts:
                    reached += share
                    self.choices.append((reached, _Pool(hosts, weighted=self.round_robin or self.least)))
                elif share:
                    reached += share

    def pick(self, state: ClusterState, rng: Rng) -> Picked | None:
        pool = self.only or self._pool(rng)
        if pool is None:
            return None
        size = pool.size
        if self.round_robin:
            cursor = state.cursor
            if cursor < 0:  # processes that start together must not all begin with the same endpoint
                cursor = int(rng.random() * _CURSOR_RANGE)
            state.cursor = cursor + 1
            return pool.order[cursor % size]
        first = pool.order[int(rng.random() * size)]
        if self.least and size > 1:
            second = pool.order[int(rng.random() * size)]
            if second[1].active < first[1].active:
                return second
        return first

    def _pool(self, rng: Rng) -> _Pool | None:
        if not self.choices:
            return None
        percent = rng.random() * 100
        for reached, pool in self.choices:
            if percent < reached:
                return pool
        return None


def _usable(host: Picked, *, degraded: bool) -> bool:
    endpoint, state = host
    if state.ejected_until or not endpoint.health.eligible:
        return False
    return (endpoint.health is Health.DEGRADED) is degraded
