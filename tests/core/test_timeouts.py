from __future__ import annotations

import pytest

from proxyless.core.timeouts import timeouts_of, timeouts_of_request
from tests.core.outbound import forward, request, retries


def test_without_a_timeout_envoys_default_holds_and_zero_switches_it_off() -> None:
    assert timeouts_of(forward("c")).whole == 15.0
    assert timeouts_of(forward("c", timeout=0.0)).whole is None


@pytest.mark.parametrize(
    ("whole", "per_try", "kept"),
    [(5.0, 2.0, 2.0), (2.0, 2.0, None), (1.0, 2.0, None), (0.0, 2.0, 2.0), (5.0, 0.0, None)],
)
def test_a_per_try_timeout_that_is_not_below_the_whole_counts_as_absent(
    whole: float, per_try: float, kept: float | None
) -> None:
    action = forward("c", timeout=whole, retry=retries("5xx", per_try_timeout=per_try))
    assert timeouts_of(action).per_try == kept


@pytest.mark.parametrize(("duration", "kept"), [(3.0, 3.0), (0.0, None)])
def test_max_stream_duration_takes_the_place_of_the_timeout(duration: float, kept: float | None) -> None:
    made = timeouts_of(forward("c", timeout=5.0, max_stream_duration=duration))
    assert (made.whole, made.duration) == (None, kept)


@pytest.mark.parametrize(
    ("headers", "whole", "per_try"),
    [
        ({"x-envoy-upstream-rq-timeout-ms": "700"}, 0.7, 0.2),
        ({"x-envoy-upstream-rq-timeout-ms": "0"}, None, 0.2),
        ({"x-envoy-upstream-rq-timeout-ms": "x"}, 5.0, 0.2),
        ({"x-envoy-upstream-rq-per-try-timeout-ms": "400"}, 5.0, 0.4),
        ({"x-envoy-upstream-rq-per-try-timeout-ms": "0"}, 5.0, None),
        ({"x-envoy-upstream-rq-timeout-ms": "300", "x-envoy-upstream-rq-per-try-timeout-ms": "300"}, 0.3, None),
        ({}, 5.0, 0.2),
    ],
)
def test_the_applications_own_headers_replace_the_routes_times(
    headers: dict[str, str], whole: float | None, per_try: float | None
) -> None:
    action = forward("c", timeout=5.0, retry=retries("5xx", per_try_timeout=0.2))
    made = timeouts_of_request(action, request(headers=headers))
    assert (made.whole, made.per_try) == (whole, per_try)


@pytest.mark.parametrize(
    ("whole", "per_try", "left", "sent"),
    [
        pytest.param(15.0, None, 15.0, 15000, id="the whole time"),
        pytest.param(5.0, 2.0, 5.0, 2000, id="the time of a try"),
        pytest.param(5.0, 2.0, 0.5, 500, id="no more than what is left"),
        pytest.param(5.0, 2.0, 0.0, 1, id="never zero, which would mean no limit"),
        pytest.param(0.0, None, None, None, id="no limit, no header"),
        pytest.param(0.0, 2.0, None, 2000, id="only a try is limited"),
    ],
)
def test_expected_time(whole: float, per_try: float | None, left: float | None, sent: int | None) -> None:
    action = forward("c", timeout=whole, retry=retries("5xx", per_try_timeout=per_try))
    assert timeouts_of(action).expected_ms(left) == sent
