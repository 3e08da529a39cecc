from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyless.core.actions import Action, Attempt, Deliver, Fail, Passthrough, Reply, Wait
from proxyless.core.call import OutboundCall
from proxyless.core.learned import Learned
from proxyless.core.matchers import HeaderMatcher, StringMatcher
from proxyless.core.request import Address, Outcome, OutcomeKind
from proxyless.core.resources import (
    CircuitBreakers,
    Cluster,
    ClusterType,
    DirectResponse,
    Fault,
    FilterChain,
    FilterChainMatch,
    Fraction,
    HeaderMutation,
    HeaderMutations,
    HttpConnectionManager,
    LbEndpoint,
    Listener,
    OutlierDetection,
    PathNormalization,
    Redirect,
    Route,
    RouteConfiguration,
    TcpProxy,
    UpstreamTls,
    VirtualHost,
    WeightedCluster,
)
from proxyless.core.retry import FREE_REPEATS
from proxyless.core.snapshot import Resources, Snapshot, compile_snapshot
from proxyless.errors import (
    ConnectFailureError,
    ConnectionTerminatedError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from proxyless.values import replace
from tests.core.outbound import (
    Chance,
    Driver,
    address,
    answer,
    cluster,
    failure,
    forward,
    match,
    request,
    retries,
    route,
    routes,
    snapshot,
)

REFUSED = failure(OutcomeKind.CONNECT_FAILURE, detail="Connection refused")
RESET = failure(OutcomeKind.RESET)


def simple(*words: str, **fields: object) -> Snapshot:
    """One route to one cluster of three endpoints, without a timeout; `words` are retried, `fields` are the policy's."""
    timeout = fields.pop("timeout", 0.0)
    policy = retries(*words, **fields) if words else None
    return snapshot(routes(route(forward("c", timeout=timeout, retry=policy))))


def reply(action: Action) -> Reply:
    assert isinstance(action, Reply)
    return action


def fail(action: Action) -> Fail:
    assert isinstance(action, Fail)
    return action


# ---------------------------------------------------------------------------------------------------------- one good call


def test_a_good_call_delivers_and_names_what_decided() -> None:
    entry = Route(match=match("/pay"), action=forward("c", timeout=0.0), name="main", origin="/apis/x")
    what = cluster("c", [LbEndpoint(address=address(1), workload="w;ns")], service="pay.shop", service_namespace="shop")
    driver = Driver(snapshot(routes(entry), what), request("/pay/1?q=2", "pay"))
    action = driver.run()
    assert isinstance(action, Deliver)
    (attempt,) = driver.attempts
    assert (attempt.number, attempt.method, attempt.target, attempt.authority) == (1, "GET", b"/pay/1?q=2", "pay")
    assert (attempt.deadline, attempt.per_try_timeout, attempt.app_tls, attempt.fresh) == (None, None, False, False)
    record = driver.call.record
    assert (record.virtual_host, record.route, record.origin, record.cluster) == ("vh", "main", "/apis/x", "c")
    assert (record.service, record.service_namespace, record.workload) == ("pay.shop", "shop", "w;ns")
    assert (record.attempts, record.flags, record.details, record.status) == (1, "-", "via_upstream", 200)
    assert driver.counters == (1, 0, 1)
    driver.call.on_body_end(None, driver.now)
    assert driver.counters == (0, 0, 0)


def test_headers_are_sent_as_given_without_host_and_control_headers() -> None:
    what = request(
        headers={"X-A": "1", "Host": "x", "accept": "*/*", "x-envoy-max-retries": "3", "X-Envoy-Retry-On": "5xx"}
    )
    driver = Driver(simple(), what)
    driver.run()
    assert driver.attempts[0].headers == [(b"X-A", b"1"), (b"accept", b"*/*")]


def test_response_headers_are_changed_as_the_route_says() -> None:
    change = HeaderMutations(add=(HeaderMutation(b"x-new", b"1"),), remove=(b"server",))
    driver = Driver(snapshot(routes(route(forward("c", timeout=0.0), response_headers=change))), request())
    action = driver.run()
    assert isinstance(action, Deliver)
    raw = [(b"Server", b"x"), (b"x-b", b"f\xfcr")]
    assert action.headers(raw) == [(b"x-b", b"f\xfcr"), (b"x-new", b"1")]
    assert raw[0] == (b"Server", b"x")


def test_request_mutations_and_rewrites_reach_the_attempt() -> None:
    action = forward("c", timeout=0.0, prefix_rewrite="/v2", host_rewrite="inner", append_x_forwarded_host=True)
    change = HeaderMutations(add=(HeaderMutation(b"x-new", b"1"),))
    driver = Driver(snapshot(routes(route(action, "/v1", request_headers=change))), request("/v1/a?b", "outer"))
    driver.run()
    (attempt,) = driver.attempts
    assert (attempt.target, attempt.authority) == (b"/v2/a?b", "inner")
    assert attempt.headers == [
        (b"x-new", b"1"),
        (b"x-envoy-original-host", b"outer"),
        (b"x-forwarded-host", b"outer"),
        (b"x-envoy-original-path", b"/v1/a?b"),
    ]


@pytest.mark.parametrize(("status", "location"), [(200, []), (201, [b"http://svc/a?b"]), (304, [b"http://svc/a?b"])])
def test_a_direct_response_that_creates_or_redirects_says_where(status: int, location: list[bytes]) -> None:
    action = Driver(snapshot(routes(route(DirectResponse(status=status)))), request("/a?b")).run()
    assert isinstance(action, Reply)
    assert [value for name, value in action.headers if name == b"location"] == location


def test_auto_host_rewrite_takes_the_endpoints_name() -> None:
    endpoints = [LbEndpoint(address=address(index), hostname=f"h{index}") for index in range(2)]
    action = forward("c", timeout=0.0, auto_host_rewrite=True, retry=retries("5xx"))
    driver = Driver(snapshot(routes(route(action)), cluster("c", endpoints)), request(host="outer"), [answer(503)])
    driver.run()
    assert sorted(attempt.authority for attempt in driver.attempts) == ["h0", "h1"]
    originals = [pair for pair in driver.attempts[1].headers if pair[0] == b"x-envoy-original-host"]
    assert originals == [(b"x-envoy-original-host", b"outer")]


def test_attempts_are_numbered_when_the_virtual_host_asks_for_it() -> None:
    host = VirtualHost(
        name="v",
        domains=("*",),
        routes=(route(forward("c", timeout=0.0, retry=retries("5xx"))),),
        include_attempt_count=True,
    )
    shot = snapshot(RouteConfiguration(name="r", virtual_hosts=(host,)))
    driver = Driver(shot, request(headers={"x-envoy-attempt-count": "9"}), [answer(500)])
    driver.run()
    assert [attempt.headers for attempt in driver.attempts] == [
        [(b"x-envoy-attempt-count", b"1")],
        [(b"x-envoy-attempt-count", b"2")],
    ]


def test_the_path_is_normalised_before_it_is_routed_and_sent() -> None:
    manager = HttpConnectionManager(
        routes=routes(route(forward("c", timeout=0.0), "/b")), paths=PathNormalization(normalize=True)
    )
    outbound = Listener(name="l", address=Address("0.0.0.0", 80), filter_chains=(FilterChain(filter=manager),))
    shot = compile_snapshot(Resources(listeners={"l": outbound}, clusters={"c": cluster()}), None, 1)
    driver = Driver(shot, request("/a/../b?x=.."))
    assert isinstance(driver.run(), Deliver)
    assert driver.attempts[0].target == b"/b?x=.."
    assert reply(Driver(shot, request("/a%00")).run()).status == 400


# ----------------------------------------------------------------------------------------------- what the mesh answers itself


def test_no_route_is_404_nr() -> None:
    driver = Driver(snapshot(routes(route(forward("c"), "/only"))), request("/else"))
    action = reply(driver.run())
    assert (action.status, action.flag, action.details, action.body) == (404, "NR", "route_not_found", b"")
    assert driver.call.record.attempts == 0


def test_a_missing_cluster_is_503_nc() -> None:
    action = reply(Driver(snapshot(routes(route(forward("gone")))), request()).run())
    assert (action.status, action.flag, action.details) == (503, "NC", "cluster_not_found")


@pytest.mark.parametrize("endpoints", [0, 1])
def test_no_healthy_endpoint_is_503_uh(endpoints: int) -> None:
    what = cluster("c", endpoints, outlier=OutlierDetection(consecutive_5xx=1, max_ejection_percent=100))
    learned = Learned()
    shot = snapshot(routes(route(forward("c"))), what)
    if endpoints:
        Driver(shot, request(), [answer(500)], learned=learned).run()
    action = reply(Driver(shot, request(), learned=learned).run())
    assert (action.status, action.flag, action.details) == (503, "UH", "no_healthy_upstream")
    assert (action.headers, action.body) == ([(b"content-type", b"text/plain")], b"no healthy upstream")


def test_max_requests_is_503_uo() -> None:
    shot = snapshot(routes(route(forward("c"))), cluster(breakers=CircuitBreakers(max_requests=1)))
    learned = Learned()
    first = Driver(shot, request(), learned=learned)
    assert isinstance(first.run(), Deliver)
    action = reply(Driver(shot, request(), learned=learned).run())
    assert (action.status, action.flag) == (503, "UO")
    assert action.details == "upstream_reset_before_response_started{overflow}"
    assert (b"x-envoy-overloaded", b"true") in action.headers
    first.call.on_body_end(None, first.now)
    assert isinstance(Driver(shot, request(), learned=learned).run(), Deliver)


def test_overflow_of_the_pool_is_503_uo_and_never_repeated() -> None:
    driver = Driver(simple("5xx", "reset"), request(), [failure(OutcomeKind.OVERFLOW)])
    assert reply(driver.run()).flag == "UO"
    assert len(driver.attempts) == 1
    assert driver.counters == (0, 0, 0)


def test_direct_response_and_redirect() -> None:
    entries = (
        route(
            DirectResponse(status=502, body=b"blocked"),
            "/no",
            response_headers=HeaderMutations(add=(HeaderMutation(b"x", b"y"),)),
        ),
        route(Redirect(status=308, host="other"), "/go"),
    )
    shot = snapshot(routes(*entries))
    direct, redirect = reply(Driver(shot, request("/no")).run()), reply(Driver(shot, request("/go?q")).run())
    assert (direct.status, direct.body, direct.details, direct.flag) == (502, b"blocked", "direct_response", "-")
    assert direct.headers == [(b"content-type", b"text/plain"), (b"x", b"y")]
    assert (redirect.status, redirect.headers) == (308, [(b"location", b"http://other/go?q")])


def test_a_grpc_request_is_answered_in_grpc() -> None:
    what = request(headers={"content-type": "application/grpc"})
    action = reply(Driver(snapshot(routes(route(forward("c"))), cluster("c", 0)), what).run())
    assert action.status == 200
    assert action.headers == [
        (b"content-type", b"application/grpc"),
        (b"grpc-status", b"14"),
        (b"grpc-message", b"no healthy upstream"),
    ]
    assert action.body == b""


# ------------------------------------------------------------------------------------------------------------------ faults


def faulty(**fields: object) -> Snapshot:
    fault = Fault(**fields)  # type: ignore[arg-type]  # keywords of a dataclass
    return snapshot(routes(route(forward("c", timeout=0.0, retry=retries("5xx")), fault=fault)))


def test_an_aborted_call_is_answered_without_an_attempt_and_not_retried() -> None:
    driver = Driver(faulty(abort_status=503, abort_fraction=Fraction(100)), request())
    action = reply(driver.run())
    assert (action.status, action.flag, action.details) == (503, "FI", "fault_filter_abort")
    assert action.body == b"fault filter abort"
    assert not driver.attempts


def test_the_answer_of_a_fault_is_changed_as_the_route_says() -> None:
    change = HeaderMutations(add=(HeaderMutation(b"x-new", b"1"),))
    fault = Fault(abort_status=503, abort_fraction=Fraction(100))
    action = Driver(snapshot(routes(route(forward("c"), fault=fault, response_headers=change))), request()).run()
    assert isinstance(action, Reply)
    assert (b"x-new", b"1") in action.headers


def test_a_delayed_call_goes_on_after_its_delay() -> None:
    driver = Driver(faulty(delay=2.0, delay_fraction=Fraction(100)), request())
    assert isinstance(driver.run(), Deliver)
    assert driver.waits == [2.0]
    assert driver.flags == "DI"


def test_delay_comes_before_abort() -> None:
    driver = Driver(
        faulty(delay=2.0, delay_fraction=Fraction(100), abort_status=500, abort_fraction=Fraction(100)), request()
    )
    assert reply(driver.run()).flag == "DI,FI"
    assert driver.waits == [2.0]


def test_without_a_percentage_no_request_is_affected() -> None:
    driver = Driver(faulty(delay=2.0, abort_status=500), request())
    assert isinstance(driver.run(), Deliver)
    assert (driver.waits, driver.flags) == ([], "-")


def test_a_grpc_abort_has_its_own_status() -> None:
    driver = Driver(
        faulty(abort_grpc_status=7, abort_fraction=Fraction(100)), request(headers={"content-type": "application/grpc"})
    )
    assert (b"grpc-status", b"7") in reply(driver.run()).headers


# ----------------------------------------------------------------------------------------------------------------- retries


def test_a_retry_goes_to_another_endpoint_and_saves_the_call() -> None:
    shot = simple("connect-failure", num_retries=2, avoid_previous_hosts=True, host_selection_attempts=5)
    driver = Driver(shot, request(), [REFUSED, answer()], rng=random.Random(1))
    assert isinstance(driver.run(), Deliver)
    first, second = driver.attempts
    assert first.endpoint is not second.endpoint
    assert (second.number, driver.flags) == (2, "-")
    assert all(0 <= wait < 0.025 for wait in driver.waits)
    assert driver.counters == (1, 1, 1)
    driver.call.on_body_end(None, driver.now)
    assert driver.counters == (0, 0, 0)


def test_when_retries_are_used_up_the_last_response_is_delivered() -> None:
    driver = Driver(simple("5xx", num_retries=2), request(), [answer(503)])
    action = driver.run()
    assert isinstance(action, Deliver)
    assert (action.outcome.status, len(driver.attempts), driver.flags) == (503, 3, "URX")
    assert driver.call.record.details == "via_upstream"


def test_when_retries_are_used_up_without_a_response_the_call_fails() -> None:
    driver = Driver(simple("connect-failure", num_retries=2), request(), [REFUSED])
    action = fail(driver.run())
    assert (action.flag, action.status, action.error) == ("URX,UF", 503, ConnectFailureError)
    assert action.details == "upstream_reset_before_response_started{remote_connection_failure|Connection_refused}"
    assert "retried and the latest reset reason" in action.message
    error = action.to_error(driver.call.record)
    assert (error.flag, error.cluster, error.attempts) == ("URX,UF", "c", 3)
    assert error.endpoint.startswith("10.0.0.")
    assert driver.counters == (0, 0, 0)


def test_no_retries_at_all_is_still_a_limit() -> None:
    driver = Driver(simple("5xx", num_retries=0), request(), [answer(500)])
    assert isinstance(driver.run(), Deliver)
    assert driver.flags == "URX"


def test_what_the_policy_does_not_name_is_not_repeated() -> None:
    """Istio's default words: a 503 and a connection lost after the request was sent are one attempt."""
    shot = simple(
        "connect-failure", "refused-stream", "unavailable", "cancelled", "retriable-status-codes", num_retries=3
    )
    for outcome in (answer(503), RESET):
        driver = Driver(shot, request(), [outcome])
        driver.run()
        assert len(driver.attempts) == 1
        assert "URX" not in driver.flags


def test_a_method_match_alone_leaves_the_other_methods_to_their_own_route() -> None:
    """GET has retries on 5xx, the second route repeats refused connections only."""
    get = match(headers=(HeaderMatcher(":method", StringMatcher("exact", "GET")),))
    entries = (
        Route(match=get, action=forward("c", timeout=0.0, retry=retries("5xx", num_retries=2))),
        route(forward("c", timeout=0.0, retry=retries("connect-failure", num_retries=2))),
    )
    tries = {}
    for method in ("GET", "POST", "HEAD"):
        for name, outcome in (("500", answer(500)), ("refused", REFUSED)):
            driver = Driver(snapshot(routes(*entries)), request(method=method), [outcome])
            driver.run()
            tries[method, name] = len(driver.attempts)
    assert {method: tries[method, "500"] for method in ("GET", "POST", "HEAD")} == {"GET": 3, "POST": 1, "HEAD": 1}
    assert {method: tries[method, "refused"] for method in ("GET", "POST", "HEAD")} == {"GET": 3, "POST": 3, "HEAD": 3}


def test_a_body_that_cannot_be_sent_again_is_not_retried() -> None:
    driver = Driver(simple("5xx", "connect-failure", num_retries=3), request(body_replayable=False), [REFUSED])
    assert fail(driver.run()).flag == "UF"
    assert len(driver.attempts) == 1


def test_the_retry_breaker_ends_retries_with_uo() -> None:
    shot = snapshot(
        routes(route(forward("c", timeout=0.0, retry=retries("5xx", num_retries=5)))),
        cluster(breakers=CircuitBreakers(max_retries=1)),
    )
    learned = Learned()
    first = Driver(shot, request(), [answer(500), answer()], learned=learned)
    assert isinstance(first.run(), Deliver)
    second = Driver(shot, request(), [answer(500)], learned=learned)
    assert isinstance(second.run(), Deliver)
    assert (len(second.attempts), second.flags) == (1, "UO")


def test_the_applications_own_headers_ask_for_retries() -> None:
    headers = {"x-envoy-retry-on": "5xx", "x-envoy-max-retries": "3"}
    driver = Driver(simple(), request(headers=headers), [answer(503)])
    driver.run()
    assert len(driver.attempts) == 4


# ------------------------------------------------------------------------------------------------------- stale connections

STALE = failure(OutcomeKind.RESET_BEFORE_REQUEST, reused=True)


def test_a_connection_found_dead_before_the_request_is_repeated_on_the_same_endpoint_for_free() -> None:
    driver = Driver(simple(), request(method="POST", body_replayable=False), [STALE, answer()])
    assert isinstance(driver.run(), Deliver)
    first, second = driver.attempts
    assert first.endpoint is second.endpoint
    assert (first.number, second.number, second.fresh) == (1, 1, True)
    assert (driver.waits, driver.flags, driver.call.record.attempts) == ([], "-", 1)
    assert driver.counters == (1, 0, 1)


def test_free_repeats_end() -> None:
    driver = Driver(simple(), request(), [STALE])
    action = fail(driver.run())
    assert (action.flag, action.error) == ("UC", ConnectionTerminatedError)
    assert len(driver.attempts) == 1 + FREE_REPEATS
    assert driver.counters == (0, 0, 0)


def test_a_reused_connection_lost_after_the_request_is_left_to_the_policy() -> None:
    lost = failure(OutcomeKind.RESET, reused=True)
    driver = Driver(simple(), request(), [lost])
    assert fail(driver.run()).flag == "UC"
    assert len(driver.attempts) == 1


# ---------------------------------------------------------------------------------------------------------------- timeouts


def test_the_routes_time_spans_all_attempts() -> None:
    driver = Driver(simple("5xx", num_retries=9, timeout=1.0), request(), [answer(503)], took=0.4)
    action = fail(driver.run())
    assert (action.flag, action.details, action.status, action.error) == (
        "UT",
        "response_timeout",
        504,
        UpstreamTimeoutError,
    )
    assert driver.now == pytest.approx(1001.0)


def test_without_a_timeout_in_the_route_fifteen_seconds_hold() -> None:
    driver = Driver(snapshot(routes(route(forward("c")))), request(), took=20.0)
    fail(driver.run())
    assert driver.now == 1015.0


def test_a_timeout_of_zero_is_no_timeout() -> None:
    driver = Driver(simple(timeout=0.0), request(), took=20.0)
    assert isinstance(driver.run(), Deliver)


def test_half_a_second_ends_the_call_after_half_a_second() -> None:
    driver = Driver(simple(timeout=0.5), request(), took=1.0)
    assert fail(driver.run()).flag == "UT"
    assert driver.now == 1000.5


def test_a_try_that_takes_too_long_is_repeated_where_the_policy_covers_it() -> None:
    driver = Driver(simple("5xx", num_retries=1, per_try_timeout=0.2, timeout=5.0), request(), took=1.0)
    action = fail(driver.run())
    assert (action.flag, action.details, action.status) == ("URX,UT", "upstream_per_try_timeout", 504)
    assert [attempt.per_try for attempt in driver.attempts] == [True, True]


def test_a_try_that_takes_too_long_ends_the_call_where_it_does_not() -> None:
    """Three retries of 2 s within 5 s, with Istio's default words: 504 after 2 s."""
    driver = Driver(simple("connect-failure", num_retries=3, per_try_timeout=2.0, timeout=5.0), request(), took=9.0)
    assert fail(driver.run()).flag == "UT"
    assert driver.now == 1002.0


def test_the_time_of_a_try_begins_with_its_connection() -> None:
    """Recorded: requests that wait 0.7 s for one of 100 connections still have their 2 s."""
    attempt = Driver(simple("5xx", per_try_timeout=2.0, timeout=5.0), request()).call.next(1000.0)
    assert isinstance(attempt, Attempt)
    assert (attempt.connect_timeout, attempt.deadline) == (5.0, 1005.0)
    assert (attempt.begin(1000.7), attempt.per_try) == (1002.7, True)
    assert Driver(simple("5xx", per_try_timeout=2.0, timeout=1.0), request()).call.next(0.0).begin(0.0) == 1.0  # type: ignore[union-attr]  # an Attempt


def test_the_callers_time_bounds_the_routes() -> None:
    driver = Driver(simple(timeout=5.0), request(), took=9.0, timeout=1.0)
    assert fail(driver.run()).details == "response_timeout"
    assert driver.now == 1001.0
    assert Driver(simple(timeout=1.0), request(), timeout=5.0).call.next(1000.0).deadline == 1001.0  # type: ignore[union-attr]  # an Attempt


def test_no_attempt_begins_after_the_time_is_over() -> None:
    driver = Driver(simple(), request(), timeout=0.0)
    assert fail(driver.run()).flag == "UT"
    assert not driver.attempts


def test_a_back_off_never_outlasts_the_call() -> None:
    shot = simple("5xx", num_retries=1, base_interval=10.0, max_interval=10.0, timeout=1.0)
    driver = Driver(shot, request(), [answer(500)], rng=Chance(0.99))
    assert fail(driver.run()).flag == "UT"
    assert driver.waits == [1.0]


def test_max_stream_duration_ends_the_call_with_its_own_details() -> None:
    driver = Driver(snapshot(routes(route(forward("c", max_stream_duration=1.0)))), request(), took=2.0)
    action = fail(driver.run())
    assert (action.flag, action.details, action.status) == ("-", "max_duration_timeout", 504)


@pytest.mark.parametrize(
    ("policy", "timeout", "sent"),
    [
        pytest.param({}, None, b"15000", id="the default"),
        pytest.param({}, 0.5, b"500", id="the route's"),
        pytest.param({}, 0.0, None, id="none"),
        pytest.param({"per_try_timeout": 0.2}, 0.5, b"200", id="the try's"),
    ],
)
def test_the_expected_time_is_sent(policy: dict[str, float], timeout: float | None, sent: bytes | None) -> None:
    driver = Driver(simple("5xx", timeout=timeout, **policy), request(headers={"x-envoy-expected-rq-timeout-ms": "7"}))
    driver.run()
    values = [value for name, value in driver.attempts[0].headers if name == b"x-envoy-expected-rq-timeout-ms"]
    assert values == ([] if sent is None else [sent])


def test_the_expected_time_shrinks_with_what_is_left() -> None:
    driver = Driver(simple("5xx", num_retries=1, timeout=1.0), request(), [answer(503)], took=0.3, rng=Chance(0.0))
    driver.run()
    sent = [dict(attempt.headers)[b"x-envoy-expected-rq-timeout-ms"] for attempt in driver.attempts]
    assert sent == [b"1000", b"700"]


# ------------------------------------------------------------------------------------------------------ failures and bodies


@pytest.mark.parametrize(
    ("outcome", "flag", "details", "status", "error"),
    [
        (RESET, "UC", "connection_termination", 503, ConnectionTerminatedError),
        (failure(OutcomeKind.PROTOCOL_ERROR), "UPE", "protocol_error", 502, UpstreamProtocolError),
        (failure(OutcomeKind.REFUSED_STREAM), "UR", "remote_refused_stream_reset", 503, ConnectionTerminatedError),
        (failure(OutcomeKind.CONNECT_FAILURE), "UF", "remote_connection_failure", 503, ConnectFailureError),
        (failure(OutcomeKind.CONNECT_FAILURE, timed_out=True), "UF", "connection_timeout", 503, ConnectFailureError),
    ],
)  # fmt: skip
def test_failures_have_envoys_names(outcome: Outcome, flag: str, details: str, status: int, error: type) -> None:
    driver = Driver(simple(), request(), [outcome])
    action = fail(driver.run())
    assert (action.flag, action.status, action.error) == (flag, status, error)
    assert action.details == f"upstream_reset_before_response_started{{{details}}}"
    assert driver.call.record.status == status


def test_a_failure_can_be_answered_as_envoy_would() -> None:
    answered = fail(Driver(simple(), request(), [RESET]).run()).reply()
    assert (answered.status, answered.flag) == (503, "UC")
    assert answered.body.startswith(b"upstream connect error or disconnect/reset before headers")
    grpc = request(headers={"content-type": "application/grpc"})
    assert (b"grpc-status", b"14") in fail(Driver(simple(), grpc, [RESET]).run()).reply().headers


@pytest.mark.parametrize(
    ("error", "flag", "details"),
    [
        (OutcomeKind.RESET, "UPE", "upstream_reset_after_response_started{protocol_error}"),
        (OutcomeKind.TIMEOUT, "UT", "response_timeout"),
        (OutcomeKind.CANCELLED, "DC", "downstream_remote_disconnect"),
    ],
)
def test_a_body_that_breaks_is_counted_once_and_never_repeated(error: OutcomeKind, flag: str, details: str) -> None:
    shot = simple("5xx", "reset", num_retries=3, timeout=2.0)
    driver = Driver(shot, request())
    action = driver.run()
    assert isinstance(action, Deliver)
    assert action.deadline == 1002.0
    driver.call.on_body_end(error, 1002.0)
    driver.call.on_body_end(None, 1003.0)
    assert (driver.flags, driver.call.record.details, driver.call.record.status) == (flag, details, 200)
    assert len(driver.attempts) == 1
    assert driver.counters == (0, 0, 0)
    with pytest.raises(RuntimeError):
        driver.call.on_outcome(answer(), 1003.0)


def test_a_broken_body_counts_against_the_endpoint() -> None:
    what = cluster("c", 2, outlier=OutlierDetection(consecutive_5xx=1, max_ejection_percent=50))
    driver = Driver(snapshot(routes(route(forward("c"))), what), request())
    driver.run()
    driver.call.on_body_end(OutcomeKind.RESET, driver.now)
    assert len(driver.learned.cluster("c").ejected) == 1
    assert [found.detector for found in driver.call.record.ejections] == ["consecutive_5xx"]


def test_a_grpc_answer_counts_as_its_http_equivalent() -> None:
    what = cluster("c", 2, outlier=OutlierDetection(consecutive_5xx=1, max_ejection_percent=50))
    shot = snapshot(routes(route(forward("c"))), what)
    for grpc_status, out in ((5, 0), (14, 1)):
        driver = Driver(shot, request(), [answer(200, grpc_status=grpc_status)])
        driver.run()
        assert len(driver.learned.cluster("c").ejected) == out


def test_ejected_endpoints_return_when_their_time_is_over() -> None:
    what = cluster(
        "c",
        1,
        outlier=OutlierDetection(consecutive_5xx=1, max_ejection_percent=100, interval=1.0, base_ejection_time=5.0),
    )
    shot, learned = snapshot(routes(route(forward("c"))), what), Learned()
    Driver(shot, request(), [answer(500)], learned=learned).run()
    driver = Driver(shot, request(), learned=learned)
    assert isinstance(driver.run(), Reply)
    later = OutboundCall(shot, request(), learned, now=1005.0, rng=Chance())
    assert isinstance(later.next(1005.0), Attempt)


def test_a_push_without_outlier_detection_lets_everybody_back() -> None:
    ejecting = cluster("c", 1, outlier=OutlierDetection(consecutive_5xx=1, max_ejection_percent=100))
    learned = Learned()
    configuration = routes(route(forward("c")))
    Driver(snapshot(configuration, ejecting), request(), [answer(500)], learned=learned).run()
    driver = Driver(snapshot(configuration, replace(ejecting, outlier=None)), request(), learned=learned)
    assert isinstance(driver.run(), Deliver)


# ------------------------------------------------------------------------------------------------------------ going away


def test_abandoning_gives_back_everything_once() -> None:
    driver = Driver(simple("5xx", num_retries=1), request(), [answer(500), answer()])
    driver.run()
    assert driver.counters == (1, 1, 1)
    driver.call.abandon(driver.now)
    driver.call.abandon(driver.now)
    driver.call.on_body_end(None, driver.now)
    assert driver.counters == (0, 0, 0)
    assert driver.flags == "DC"


def test_abandoning_before_and_after_a_call_changes_nothing() -> None:
    driver = Driver(simple(), request())
    driver.call.abandon(1000.0)
    assert driver.flags == "-"
    done = Driver(simple(), request())
    done.run()
    done.call.on_body_end(None, done.now)
    done.call.abandon(done.now)
    assert done.flags == "-"


# ----------------------------------------------------------------------------------------------------- beyond the routes


def proxy(name: str) -> TcpProxy:
    return TcpProxy(clusters=(WeightedCluster(name=name, weight=1),))


def egress(fallback: str) -> Snapshot:
    """`ext.test` by server name on port 443, everything else as `fallback` says."""
    elsewhere = FilterChain(filter=proxy(fallback))
    by_name = FilterChain(match=FilterChainMatch(server_names=("ext.test",)), filter=proxy("ext"))
    listeners = {
        "443": Listener(
            name="443", address=Address("0.0.0.0", 443), filter_chains=(by_name,), default_filter_chain=elsewhere
        ),
        "v": Listener(name="v", address=Address("0.0.0.0", 15001), filter_chains=(elsewhere,), use_original_dst=True),
    }
    mesh = UpstreamTls(alpn=("istio-peer-exchange", "istio"))
    clusters = [
        cluster("ext", 1, tls=mesh),
        Cluster(name="PassthroughCluster", type=ClusterType.ORIGINAL_DST),
        cluster("BlackHoleCluster", 0),
    ]
    return compile_snapshot(Resources(listeners=listeners, clusters={each.name: each for each in clusters}), None, 1)


def test_unknown_destinations_pass_through() -> None:
    shot = egress("PassthroughCluster")
    for what in (
        request(host="other.test", destination=Address("other.test", 443), scheme="https"),
        request(host="other.test", destination=Address("other.test", 8080)),
    ):
        action = Driver(shot, what).run()
        assert isinstance(action, Passthrough)
        assert action.cluster == "PassthroughCluster"
    assert isinstance(Driver(compile_snapshot(Resources(), None, 1), request()).run(), Passthrough)


def test_registry_only_answers_502() -> None:
    what = request(host="other.test", destination=Address("other.test", 8080))
    action = reply(Driver(egress("BlackHoleCluster"), what).run())
    assert (action.status, action.flag) == (502, "UH")


def test_https_by_server_name_is_tls_of_the_application_inside_the_connection() -> None:
    what = request(host="ext.test", destination=Address("ext.test", 443), scheme="https")
    driver = Driver(egress("PassthroughCluster"), what)
    assert isinstance(driver.run(), Deliver)
    (attempt,) = driver.attempts
    assert (attempt.app_tls, attempt.server_name) == (True, "ext.test")
    assert attempt.tls is not None
    assert attempt.tls.alpn == ("istio-peer-exchange", "istio")


def test_a_tcp_listener_on_all_addresses_takes_only_its_own_service() -> None:
    what = Listener(
        name="9000",
        address=Address("0.0.0.0", 9000),
        filter_chains=(FilterChain(filter=proxy("db")),),
        direction="OUTBOUND",
    )
    shot = compile_snapshot(
        Resources(listeners={"l": what}, clusters={"db": cluster("db", service="db.store.svc.cluster.local")}), None, 1
    )
    assert isinstance(Driver(shot, request(host="db.store", destination=Address("db.store", 9000))).run(), Deliver)
    assert isinstance(Driver(shot, request(host="other", destination=Address("other", 9000))).run(), Passthrough)


def test_a_route_to_original_destinations_passes_through_unless_it_must_be_secured() -> None:
    plain = Cluster(name="c", type=ClusterType.ORIGINAL_DST)
    configuration = routes(route(forward("c", timeout=0.0)))
    assert isinstance(Driver(snapshot(configuration, plain), request()).run(), Passthrough)
    secured = replace(plain, tls=UpstreamTls(alpn=("istio",)))
    driver = Driver(snapshot(configuration, secured), request(host="pod-1.svc"))
    assert isinstance(driver.run(), Deliver)
    (attempt,) = driver.attempts
    assert attempt.endpoint.address == Address("pod-1.svc", 80)
    assert attempt.tls is not None
    driver.call.on_body_end(None, driver.now)
    assert driver.counters == (0, 0, 0)


# -------------------------------------------------------------------------------------------------------------- properties

OUTCOMES = st.builds(
    Outcome,
    kind=st.sampled_from([kind for kind in OutcomeKind if kind is not OutcomeKind.RESPONSE])
    | st.just(OutcomeKind.RESPONSE),
    status=st.sampled_from([200, 404, 409, 500, 503]),
    grpc_status=st.sampled_from([None, 0, 14]),
)
WORDS = st.sets(
    st.sampled_from(
        ["5xx", "reset", "connect-failure", "gateway-error", "retriable-4xx", "unavailable", "refused-stream"]
    )
)


@given(
    plan=st.lists(OUTCOMES, min_size=1, max_size=12),
    words=WORDS,
    num_retries=st.integers(0, 5),
    replayable=st.booleans(),
    per_try=st.sampled_from([None, 0.3]),
    timeout=st.sampled_from([0.0, 1.0]),
    took=st.sampled_from([0.0, 0.2, 0.4]),
    breakers=st.sampled_from([CircuitBreakers(), CircuitBreakers(max_retries=0), CircuitBreakers(max_requests=0)]),
    ejecting=st.booleans(),
    body_end=st.sampled_from([None, OutcomeKind.RESET, OutcomeKind.TIMEOUT, OutcomeKind.CANCELLED]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_call_always_ends_within_its_policy_and_gives_back_what_it_held(
    plan: list[Outcome],
    words: set[str],
    num_retries: int,
    replayable: bool,
    per_try: float | None,
    timeout: float,
    took: float,
    breakers: CircuitBreakers,
    ejecting: bool,
    body_end: OutcomeKind | None,
    seed: int,
) -> None:
    outlier = OutlierDetection(consecutive_5xx=1, max_ejection_percent=100, interval=0.1, base_ejection_time=0.2)
    policy = retries(*words, num_retries=num_retries, per_try_timeout=per_try, avoid_previous_hosts=True)
    shot = snapshot(
        routes(route(forward("c", timeout=timeout, retry=policy))),
        cluster(breakers=breakers, outlier=outlier if ejecting else None),
    )
    driver = Driver(shot, request(body_replayable=replayable), plan, rng=random.Random(seed), took=took)
    action = driver.run()
    assert isinstance(action, Deliver | Fail | Reply)
    counted = driver.call.record.attempts
    assert counted <= 1 + num_retries
    assert len(driver.attempts) <= counted + FREE_REPEATS
    if not replayable or not words:
        assert counted <= 1
    if timeout:
        assert driver.now <= 1000.0 + timeout + 1e-9
    if isinstance(action, Deliver):
        driver.call.on_body_end(body_end, driver.now)
    assert driver.counters == (0, 0, 0)
    assert not isinstance(action, Wait)
