"""Outlier detection: endpoints that keep failing are left out for a while.

Source: Envoy cluster.v3.OutlierDetection and `outlier_detection_impl.cc`, and recordings of Envoy 1.40:

- Counters are per endpoint and process, and are looked at when the result arrives, not at the interval.
- A detection resets its counter, whether it leads to an ejection or not.
- An endpoint is ejected only while 100 * (ejected + 1) / hosts <= `max_ejection_percent`, so the default of 10 % ejects nobody
  among fewer than ten hosts; `always_eject_one_host` lifts that for the first. The share is checked before the enforcing dice.
- Without `split_external_local_origin_errors` a failure of our own side counts as the status that Envoy maps it to: 503, and
  504 for a timeout. With it, only `consecutive_local_origin_failure` counts them, and each connection that was made begins
  that count anew.
- An ejection lasts min(base * multiplier, max); the multiplier grows with each ejection and falls by one for each interval
  that the endpoint was in use. The endpoint returns at the first tick of the interval after that. We compute both when they are asked
  for: ticks are the multiples of `interval` on the monotonic clock (Envoy's begin with the cluster; nobody can tell).

Success rate and failure percentage detectors are not built.
"""

from __future__ import annotations

from math import ceil, floor, inf

from proxyless.core.learned import ClusterState, EndpointState
from proxyless.core.request import Address
from proxyless.core.resources import OutlierDetection
from proxyless.core.rng import Rng
from proxyless.core.snapshot import Upstream
from proxyless.values import frozen

__all__ = ["Ejection", "observe_connected", "observe_local_failure", "observe_status", "readmit", "release_all"]

_LOCAL_FAILURE, _LOCAL_TIMEOUT = 503, 504


@frozen
class Ejection:
    """One detection that may eject.

    Attributes:
        detector: Envoy's name, for example ``consecutive_5xx``.
        enforced: the endpoint is out now; False: the enforcing percentage said no.
        until: the instant of its return (0 when not enforced).
        ejections: how often it was ejected in all, this one included.
    """

    address: Address
    detector: str
    enforced: bool
    until: float
    ejections: int


def observe_status(
    upstream: Upstream, state: ClusterState, endpoint: EndpointState, status: int, now: float, rng: Rng
) -> tuple[Ejection, ...]:
    """A response came (for gRPC: the HTTP equivalent of its status). Returns what was detected, mostly nothing."""
    if not 500 <= status <= 599:
        endpoint.consecutive_5xx = endpoint.consecutive_gateway_failure = 0
        return ()
    rules = upstream.cluster.outlier
    if rules is None:
        return ()
    found: tuple[Ejection, ...] = ()
    if status in (502, 503, 504):
        endpoint.consecutive_gateway_failure += 1
        if _reached(endpoint, endpoint.consecutive_gateway_failure, rules.consecutive_gateway_failure):
            share = rules.enforcing_consecutive_gateway_failure
            found = _eject(rules, upstream, state, endpoint, "consecutive_gateway_failure", share, now, rng)
            endpoint.consecutive_gateway_failure = 0
    else:
        endpoint.consecutive_gateway_failure = 0
    endpoint.consecutive_5xx += 1
    if _reached(endpoint, endpoint.consecutive_5xx, rules.consecutive_5xx):
        share = rules.enforcing_consecutive_5xx
        found += _eject(rules, upstream, state, endpoint, "consecutive_5xx", share, now, rng)
        endpoint.consecutive_5xx = 0
    return found


def observe_connected(upstream: Upstream, endpoint: EndpointState) -> None:
    """An attempt got a connection, fresh or re-used."""
    rules = upstream.cluster.outlier
    if rules is not None and rules.split_external_local_origin_errors:
        endpoint.consecutive_local_origin_failure = 0


def observe_local_failure(
    upstream: Upstream, state: ClusterState, endpoint: EndpointState, timed_out: bool, now: float, rng: Rng
) -> tuple[Ejection, ...]:
    """No response: connection refused or lost, or (`timed_out`) none in time."""
    rules = upstream.cluster.outlier
    if rules is None:
        return ()
    if not rules.split_external_local_origin_errors:
        status = _LOCAL_TIMEOUT if timed_out else _LOCAL_FAILURE
        return observe_status(upstream, state, endpoint, status, now, rng)
    endpoint.consecutive_local_origin_failure += 1
    if not _reached(endpoint, endpoint.consecutive_local_origin_failure, rules.consecutive_local_origin_failure):
        return ()
    share = rules.enforcing_consecutive_local_origin_failure
    found = _eject(rules, upstream, state, endpoint, "consecutive_local_origin_failure", share, now, rng)
    endpoint.consecutive_local_origin_failure = 0
    return found


def _reached(endpoint: EndpointState, count: int, threshold: int) -> bool:
    """At or beyond it: two threads may count one result each before either looks, and a push may lower the threshold. 0 is
    never reached, as in Envoy."""
    return 0 < threshold <= count and not endpoint.ejected_until


def _eject(
    rules: OutlierDetection,
    upstream: Upstream,
    state: ClusterState,
    endpoint: EndpointState,
    detector: str,
    enforcing_percent: int,
    now: float,
    rng: Rng,
) -> tuple[Ejection, ...]:
    addresses = upstream.addresses
    out = sum(1 for ejected in list(state.ejected) if ejected in addresses)
    allowed = 100.0 * (out + 1) / max(len(addresses), 1) <= min(rules.max_ejection_percent, 100)
    if not allowed and not (rules.always_eject_one_host and out == 0):
        state.ejections_refused += 1
        return ()
    if enforcing_percent < 100 and rng.random() * 100 >= enforcing_percent:
        return (Ejection(endpoint.address, detector, False, 0.0, endpoint.ejections),)
    longest = max(rules.max_ejection_time, rules.base_ejection_time)
    _cool_down(endpoint, rules.interval, now)
    if endpoint.multiplier * rules.base_ejection_time < longest + rules.base_ejection_time:
        endpoint.multiplier += 1
    until = _next_tick(now + min(rules.base_ejection_time * endpoint.multiplier, longest), rules.interval)
    endpoint.ejections += 1
    endpoint.ejected_until = until
    state.ejected[endpoint.address] = endpoint
    state.next_return = min(state.next_return, until)
    state.version += 1
    return (Ejection(endpoint.address, detector, True, until, endpoint.ejections),)


def _next_tick(instant: float, interval: float) -> float:
    return ceil(instant / interval) * interval if interval > 0 else instant


def _cool_down(endpoint: EndpointState, interval: float, now: float) -> None:
    """One less for each tick since the return; the tick of the return itself does not count."""
    if endpoint.multiplier and interval > 0:
        quiet = floor(now / interval) - round(endpoint.returned_at / interval)
        endpoint.multiplier = max(0, endpoint.multiplier - max(0, quiet))


def readmit(state: ClusterState, now: float) -> None:
    """Return the endpoints whose time is over. Call it when `now` >= `state.next_return`."""
    for endpoint in list(state.ejected.values()):
        if endpoint.ejected_until <= now:
            _release(state, endpoint, endpoint.ejected_until)
    _set_next_return(state)


def release_all(state: ClusterState, now: float) -> None:
    """Return everybody: the cluster has no outlier detection any more."""
    for endpoint in list(state.ejected.values()):
        _release(state, endpoint, now)
    _set_next_return(state)


def _release(state: ClusterState, endpoint: EndpointState, instant: float) -> None:
    endpoint.consecutive_5xx = endpoint.consecutive_gateway_failure = endpoint.consecutive_local_origin_failure = 0
    endpoint.returned_at, endpoint.ejected_until = instant, 0.0
    state.ejected.pop(endpoint.address, None)
    state.version += 1


def _set_next_return(state: ClusterState) -> None:
    """Write, then look again: an ejection by another thread between the two must not be lost."""
    while True:
        earliest = min((endpoint.ejected_until for endpoint in list(state.ejected.values())), default=inf)
        state.next_return = earliest
        if earliest == min((endpoint.ejected_until for endpoint in list(state.ejected.values())), default=inf):
            return
