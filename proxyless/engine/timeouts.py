"""How long an attempt may take: the route's deadline and the caller's own patience."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from proxyless.core.call import Attempt

__all__ = ["UNLIMITED", "Timeouts", "connect_limit", "wait_limit"]


class Timeouts(NamedTuple):
    """The caller's limits in seconds, None for no limit: time to connect, between two reads, to get rid of what is written,
    and to get a connection (httpx `extensions["timeout"]`)."""

    connect: float | None = None
    read: float | None = None
    write: float | None = None
    pool: float | None = None


UNLIMITED = Timeouts()


def connect_limit(attempt: Attempt, timeouts: Timeouts, now: float) -> tuple[float, str]:
    """-> seconds that connecting may take, and the kind of error when they are over."""
    limit = attempt.connect_timeout
    if timeouts.connect is not None and timeouts.connect < limit:
        limit = timeouts.connect
    if attempt.deadline is not None and attempt.deadline - now < limit:
        return attempt.deadline - now, "deadline"
    return limit, "connect_timeout"


def wait_limit(attempt: Attempt, timeouts: Timeouts, now: float) -> tuple[float | None, str]:
    """-> seconds that waiting for a connection may take, and the kind of error when they are over."""
    limit = timeouts.pool
    if attempt.deadline is not None and (limit is None or attempt.deadline - now < limit):
        return attempt.deadline - now, "deadline"
    return limit, "pool_timeout"
