"""Which connection is free, who waits, what the limits allow. No I/O, no clock; both engines use it.

One pool holds the connections to one endpoint of one cluster that were made with one TLS context. The free list is last in,
first out: the warmest connection is used, the surplus ages and is swept. Checkout is O(1).

Envoy's meaning of the limits (config.cluster.v3.CircuitBreakers): a request without a free connection is *pending* until it
has one, also while its own is being made; a host without any connection may always have one. So whoever waits here waits for
a connection that exists or is being made, and is woken when it comes free or dies.

Not thread-safe: the engine serialises access (one event loop, or one lock).
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from math import inf
from typing import Generic, Protocol, TypeVar

from proxyless.core.breakers import may_connect, may_wait
from proxyless.core.learned import ClusterState
from proxyless.core.resources import Cluster

__all__ = ["Grant", "Pool", "Pooled", "Waiter"]


class Pooled(Protocol):
    """What a pool must know of a connection.

    Attributes:
        closed: it cannot be used any more.
        uses: requests begun on it.
        opened_at: monotonic instant of the handshake's end.
        expires_at: monotonic instant from which it must not be picked; set by the pool on release.
        valid_until: POSIX time at which the first of both certificates ends; None without TLS.
    """

    closed: bool
    uses: int
    opened_at: float
    expires_at: float
    valid_until: float | None


C = TypeVar("C", bound=Pooled)
CC = TypeVar("CC", contravariant=True)


class Grant(Enum):
    """What a waiter can get instead of a connection."""

    CONNECT = "connect"  # make one; it is counted already
    LOOK_AGAIN = "look again"  # the pool is retired


class Waiter(Protocol[CC]):
    """A request that waits for a connection."""

    def grant(self, what: CC | Grant) -> bool:
        """Called at most once. -> False when the request has gone away; the pool then asks the next."""
        ...


class Pool(Generic[C]):
    """Bookkeeping for one endpoint.

    Attributes:
        state: counters of the cluster; limits hold for all its pools together.
        connections: open ones and those being made.
        retired: nothing goes back; requests must look for another pool.
    """

    __slots__ = ("_doomed", "_free", "_waiters", "cluster", "connections", "retired", "state")

    def __init__(self, cluster: Cluster, state: ClusterState, doomed: list[C]) -> None:
        """`doomed` receives the connections to close, which are no longer counted; the engine empties it."""
        self.cluster, self.state, self._doomed = cluster, state, doomed
        self._free: list[C] = []
        self._waiters: deque[Waiter[C]] = deque()
        self.connections = 0
        self.retired = False

    @property
    def idle(self) -> int:
        return len(self._free)

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def checkout(self, now: float, wall: float) -> C | None:
        """The warmest usable connection, or None. `now` is monotonic, `wall` POSIX time."""
        free = self._free
        while free:
            connection = free.pop()
            if not _stale(connection, now, wall):
                return connection
            self._drop(connection)
        return None

    def pend(self) -> bool:
        """Whether one more request may be without a connection. True counts it; `unpend` ends that."""
        if not may_wait(self.state, self.cluster.breakers):
            return False
        self.state.pending += 1
        return True

    def unpend(self) -> None:
        self.state.pending -= 1

    def reserve(self) -> bool:
        """Whether one more connection may be made. True counts it; `release` or `forget` ends that."""
        if not may_connect(self.state, self.cluster.breakers, self.connections):
            return False
        self._count(1)
        return True

    def wait(self, waiter: Waiter[C]) -> None:
        self._waiters.append(waiter)

    def release(self, connection: C, reusable: bool, now: float) -> None:
        """Take a connection back after an exchange."""
        if not reusable or self.retired or connection.closed or self._worn(connection, now):
            self._drop(connection)
            return
        while self._waiters:
            if self._waiters.popleft().grant(connection):
                return
        self._free.append(connection)

    def forget(self) -> None:
        """A counted connection is gone, or was not made: its place goes to the next that waits."""
        self._count(-1)
        while self._waiters and self.reserve():
            if self._waiters.popleft().grant(Grant.CONNECT):
                return
            self._count(-1)

    def lost(self, connection: C) -> None:
        """The peer closed a connection; nothing to do if it was in use."""
        if connection in self._free:
            self._free.remove(connection)
            self.forget()

    def sweep(self, now: float, wall: float) -> None:
        """Drop free connections that are too old."""
        old = [connection for connection in self._free if _stale(connection, now, wall)]
        for connection in old:
            self._free.remove(connection)
            self._drop(connection)

    def drain(self) -> None:
        """Free connections go now: one of them was found dead."""
        free, self._free = self._free, []
        for connection in free:
            self._count(-1)
            self._doomed.append(connection)

    def retire(self) -> None:
        """Free connections go now, busy ones after their response, waiters ask again."""
        self.retired = True
        self.drain()
        while self._waiters:
            self._waiters.popleft().grant(Grant.LOOK_AGAIN)

    def _count(self, delta: int) -> None:
        self.connections += delta
        self.state.connections += delta

    def _drop(self, connection: C) -> None:
        self._doomed.append(connection)
        self.forget()

    def _worn(self, connection: C, now: float) -> bool:
        """Sets when the connection expires; True when that is now."""
        cluster = self.cluster
        if 0 < cluster.max_requests_per_connection <= connection.uses:
            return True
        expires_at = now + cluster.idle_timeout if cluster.idle_timeout else inf
        if cluster.max_connection_duration is not None:
            expires_at = min(expires_at, connection.opened_at + cluster.max_connection_duration)
        connection.expires_at = expires_at
        return now >= expires_at


def _stale(connection: Pooled, now: float, wall: float) -> bool:
    until = connection.valid_until
    return connection.closed or now >= connection.expires_at or (until is not None and wall >= until)
