"""How long a call and its attempts may take.

Source: Envoy `FilterUtility::finalTimeout` and `setTimeoutHeaders`. The application's own `x-envoy-upstream-rq-timeout-ms` and
`x-envoy-upstream-rq-per-try-timeout-ms` replace the route's; a number that is none is ignored. A per-try timeout that is not below
the whole one counts as absent. Differs from Envoy in one point: the time of a try also bounds its connecting.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxyless.core.request import Request
from proxyless.core.resources import RouteAction

__all__ = ["DEFAULT_TIMEOUT", "TIMEOUT_HEADERS", "Timeouts", "timeouts_of", "timeouts_of_request"]

DEFAULT_TIMEOUT = 15.0  # route.v3.RouteAction.timeout when absent
TIMEOUT_HEADERS = ("x-envoy-upstream-rq-timeout-ms", "x-envoy-upstream-rq-per-try-timeout-ms")


class Timeouts:
    """Lengths in seconds, None: no limit.

    Attributes:
        whole: all attempts together, from the moment the request is forwarded.
        per_try: one attempt.
        duration: the whole stream, from the moment the request arrived (`max_stream_duration`).
    """

    __slots__ = ("duration", "per_try", "whole")

    def __init__(self, whole: float | None, per_try: float | None, duration: float | None) -> None:
        self.whole, self.duration = whole or None, duration or None
        self.per_try = per_try or None
        if self.per_try is not None and self.whole is not None and self.per_try >= self.whole:
            self.per_try = None

    def expected_ms(self, left: float | None) -> int | None:
        """Value of `x-envoy-expected-rq-timeout-ms` with `left` of the whole time (None: no limit); None: not sent."""
        expected = self.per_try if self.per_try is not None else left
        if expected is None:
            return None
        if left is not None:
            expected = min(expected, left)
        return max(1, int(expected * 1000 + 0.5))


def timeouts_of(action: RouteAction) -> Timeouts:
    """What the route says."""
    per_try = action.retry.per_try_timeout if action.retry is not None else None
    if action.max_stream_duration is not None:
        return Timeouts(None, per_try, action.max_stream_duration)
    return Timeouts(DEFAULT_TIMEOUT if action.timeout is None else action.timeout, per_try, None)


def timeouts_of_request(action: RouteAction, request: Request) -> Timeouts:
    """What the route says for a request that carries headers about it."""
    base = timeouts_of(action)
    per_try = action.retry.per_try_timeout if action.retry is not None else None
    asked = _milliseconds(request.values("x-envoy-upstream-rq-timeout-ms"))
    asked_per_try = _milliseconds(request.values("x-envoy-upstream-rq-per-try-timeout-ms"))
    return Timeouts(
        base.whole if asked is None else asked, per_try if asked_per_try is None else asked_per_try, base.duration
    )


def _milliseconds(values: Sequence[str]) -> float | None:
    text = values[0].strip() if values else ""
    return int(text) / 1000 if text.isascii() and text.isdigit() and len(text) < 12 else None
