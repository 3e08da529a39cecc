"""Whether an attempt is repeated, and when.

Source: Envoy route.v3.RetryPolicy and `retry_state_impl.cc`; recordings of Envoy 1.40. Rules that surprise:

- `5xx`, `gateway-error` and `reset` also cover every attempt that ended without a response: refused, lost, timed out by itself.
- `x-envoy-ratelimited` in a response leaves only `envoy-ratelimited` to repeat it. gRPC words look at response headers, that is
  at trailers-only answers.
- Overflow and the call's own timeout are never repeated. `num_retries` used up sets URX, also when it was 0.
- `x-envoy-retry-on` and its kin on the application's own request add to the policy; `x-envoy-max-retries` replaces its number.

Our ruling on stale connections. A pooled connection can be found dead before a byte of the request was written
(RESET_BEFORE_REQUEST): such an attempt never happened, so it is repeated at once on the same endpoint, whatever the policy says,
without counting as a retry or a failure, up to `FREE_REPEATS` times. A re-used connection that is lost after bytes were written
(RESET) may have delivered the request: only the policy can repeat it, also when the method is idempotent. Envoy does neither;
for the first kind it never hands out a connection that it knows to be closed, which comes to the same.

A body that cannot be sent again is never repeated by the policy.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxyless.core.request import Outcome, OutcomeKind, Request
from proxyless.core.resources import RetryPolicy
from proxyless.core.rng import Rng
from proxyless.values import frozen

__all__ = ["FREE_REPEATS", "RETRY_HEADERS", "RetryRule", "compile_rule", "rule_of_request"]

FREE_REPEATS = 3

RETRY_HEADERS = (
    "x-envoy-retry-on",
    "x-envoy-retry-grpc-on",
    "x-envoy-max-retries",
    "x-envoy-retriable-status-codes",
    "x-envoy-retriable-header-names",
)
_GRPC_STATUS = {"cancelled": 1, "deadline-exceeded": 4, "internal": 13, "resource-exhausted": 8, "unavailable": 14}
_GATEWAY_ERRORS = frozenset({502, 503, 504})
_ANY_RESET = frozenset({"5xx", "gateway-error", "reset"})


@frozen(kw_only=True)
class RetryRule:
    """A retry policy, compiled for questions.

    Attributes:
        statuses: HTTP statuses to repeat; grpc_statuses: numbers likewise.
        header_names: response headers (lower case) whose presence is repeated.
        ratelimited: `envoy-ratelimited` was asked for.
        kinds: outcomes without a response that are repeated.
        active: any word was understood; False: nothing is ever repeated, nor flagged.
    """

    statuses: frozenset[int] = frozenset()
    grpc_statuses: frozenset[int] = frozenset()
    header_names: tuple[bytes, ...] = ()
    ratelimited: bool = False
    kinds: frozenset[OutcomeKind] = frozenset()
    num_retries: int = 1
    base_interval: float = 0.025
    max_interval: float = 0.25

    def repeats_response(self, outcome: Outcome) -> bool:
        """The policy wants this response repeated; how many retries are left is not looked at."""
        if (
            outcome.status not in self.statuses
            and (outcome.grpc_status is None or outcome.grpc_status not in self.grpc_statuses)
            and not self.ratelimited
            and not self.header_names
        ):
            return False
        return self._repeats_slowly(outcome)

    def _repeats_slowly(self, outcome: Outcome) -> bool:
        names = {name.lower() for name, _ in outcome.headers}
        if b"x-envoy-ratelimited" in names:
            return self.ratelimited
        if outcome.status in self.statuses or any(name in names for name in self.header_names):
            return True
        return outcome.grpc_status is not None and outcome.grpc_status in self.grpc_statuses

    def repeats_failure(self, kind: OutcomeKind) -> bool:
        """The policy wants an attempt without a response repeated."""
        return kind in self.kinds

    def back_off(self, retry: int, rng: Rng) -> float:
        """Seconds to wait before retry number `retry` (from 1): uniform in [0, w), w doubling from base up to the maximum."""
        width = self.base_interval
        for _ in range(retry - 1):
            if width >= self.max_interval / 2:
                width = self.max_interval
                break
            width *= 2
        return rng.random() * min(width, self.max_interval)


def compile_rule(policy: RetryPolicy | None) -> RetryRule | None:
    """The policy of a route; None when nothing of it can ever repeat anything."""
    if policy is None:
        return None
    return _rule(
        policy.retry_on,
        policy.status_codes,
        (),
        num_retries=policy.num_retries,
        base=policy.base_interval,
        longest=policy.max_interval,
    )


def _rule(
    words: frozenset[str],
    codes: frozenset[int],
    header_names: tuple[bytes, ...],
    *,
    num_retries: int,
    base: float,
    longest: float,
) -> RetryRule | None:
    statuses: set[int] = set()
    if "5xx" in words:
        statuses.update(range(500, 600))
    if "gateway-error" in words:
        statuses.update(_GATEWAY_ERRORS)
    if "retriable-4xx" in words:
        statuses.add(409)
    if "retriable-status-codes" in words:
        statuses.update(codes)
    rule = RetryRule(
        statuses=frozenset(statuses),
        grpc_statuses=frozenset(number for word, number in _GRPC_STATUS.items() if word in words),
        header_names=header_names if "retriable-headers" in words else (),
        ratelimited="envoy-ratelimited" in words,
        kinds=_kinds(words),
        num_retries=num_retries,
        base_interval=base,
        max_interval=longest,
    )
    anything = rule.statuses or rule.grpc_statuses or rule.header_names or rule.ratelimited or rule.kinds
    return rule if anything else None


def _kinds(words: frozenset[str]) -> frozenset[OutcomeKind]:
    kinds: set[OutcomeKind] = set()
    if words & _ANY_RESET:
        kinds |= {
            OutcomeKind.CONNECT_FAILURE,
            OutcomeKind.RESET_BEFORE_REQUEST,
            OutcomeKind.RESET,
            OutcomeKind.REFUSED_STREAM,
            OutcomeKind.PROTOCOL_ERROR,
            OutcomeKind.PER_TRY_TIMEOUT,
        }
    if "reset-before-request" in words:
        kinds |= {OutcomeKind.CONNECT_FAILURE, OutcomeKind.RESET_BEFORE_REQUEST}
    if "connect-failure" in words:
        kinds.add(OutcomeKind.CONNECT_FAILURE)
    if "refused-stream" in words:
        kinds.add(OutcomeKind.REFUSED_STREAM)
    return frozenset(kinds)


def rule_of_request(policy: RetryPolicy | None, request: Request) -> RetryRule | None:
    """The route's policy with what the application's own `x-envoy-*` headers add. Values that make no sense are ignored."""
    base = policy or RetryPolicy(retry_on=frozenset())
    words = base.retry_on | _words(request.values("x-envoy-retry-on")) | _words(request.values("x-envoy-retry-grpc-on"))
    number = _first_int(request.values("x-envoy-max-retries"))
    codes = frozenset(_numbers(request.values("x-envoy-retriable-status-codes")))
    names = tuple(word.lower().encode("latin-1") for word in _words(request.values("x-envoy-retriable-header-names")))
    return _rule(
        words,
        base.status_codes | codes,
        names,
        num_retries=base.num_retries if number is None else number,
        base=base.base_interval,
        longest=base.max_interval,
    )


def _words(values: Iterable[str]) -> frozenset[str]:
    return frozenset(word.strip() for value in values for word in value.split(",") if word.strip())


def _numbers(values: Iterable[str]) -> Iterable[int]:
    return (int(word) for word in _words(values) if word.isascii() and word.isdigit() and len(word) < 10)


def _first_int(values: Iterable[str]) -> int | None:
    return next(iter(_numbers(values)), None)
