from __future__ import annotations

import pytest

from proxyless.core.request import OutcomeKind
from proxyless.core.resources import RetryPolicy
from proxyless.core.retry import RetryRule, compile_rule, rule_of_request
from tests.core.outbound import Chance, answer, request, retries

LOST = [
    OutcomeKind.CONNECT_FAILURE,
    OutcomeKind.RESET_BEFORE_REQUEST,
    OutcomeKind.RESET,
    OutcomeKind.REFUSED_STREAM,
    OutcomeKind.PROTOCOL_ERROR,
    OutcomeKind.PER_TRY_TIMEOUT,
]
NEVER = [OutcomeKind.OVERFLOW, OutcomeKind.TIMEOUT, OutcomeKind.CANCELLED]


def rule(*words: str, **fields: object) -> RetryRule:
    compiled = compile_rule(retries(*words, **fields))
    assert compiled is not None
    return compiled


@pytest.mark.parametrize(
    ("words", "codes", "status", "repeats"),
    [
        (["5xx"], (), 500, True),
        (["5xx"], (), 599, True),
        (["5xx"], (), 499, False),
        (["gateway-error"], (), 503, True),
        (["gateway-error"], (), 500, False),
        (["retriable-4xx"], (), 409, True),
        (["retriable-4xx"], (), 404, False),
        (["retriable-status-codes"], (418,), 418, True),
        (["retriable-status-codes"], (), 503, False),
        (["connect-failure"], (503,), 503, False),
        (["reset"], (), 503, False),
        (["5xx"], (), 200, False),
    ],
)
def test_statuses(words: list[str], codes: tuple[int, ...], status: int, repeats: bool) -> None:
    compiled = compile_rule(retries(*words, status_codes=frozenset(codes)))
    assert (compiled is not None and compiled.repeats_response(answer(status))) is repeats


@pytest.mark.parametrize(
    ("word", "number"),
    [("cancelled", 1), ("deadline-exceeded", 4), ("resource-exhausted", 8), ("internal", 13), ("unavailable", 14)],
)
def test_grpc_words_look_at_response_headers(word: str, number: int) -> None:
    assert rule(word).repeats_response(answer(200, grpc_status=number))
    assert not rule(word).repeats_response(answer(200, grpc_status=0))
    assert not rule(word).repeats_response(answer(503))
    assert not rule(word).kinds


@pytest.mark.parametrize("word", ["5xx", "gateway-error", "reset"])
def test_three_words_cover_every_attempt_without_a_response(word: str) -> None:
    assert all(rule(word).repeats_failure(kind) for kind in LOST)


@pytest.mark.parametrize(
    ("word", "kinds"),
    [
        ("connect-failure", {OutcomeKind.CONNECT_FAILURE}),
        ("refused-stream", {OutcomeKind.REFUSED_STREAM}),
        ("reset-before-request", {OutcomeKind.CONNECT_FAILURE, OutcomeKind.RESET_BEFORE_REQUEST}),
    ],
)
def test_narrow_words(word: str, kinds: set[OutcomeKind]) -> None:
    assert {kind for kind in LOST if rule(word).repeats_failure(kind)} == kinds


@pytest.mark.parametrize("kind", NEVER)
def test_overflow_and_the_end_of_the_call_are_never_repeated(kind: OutcomeKind) -> None:
    assert not rule("5xx", "reset", "gateway-error", "connect-failure").repeats_failure(kind)


RATE_LIMITED: tuple[tuple[bytes, bytes], ...] = ((b"X-Envoy-RateLimited", b"true"),)


def test_a_rate_limited_response_is_left_to_its_own_word() -> None:
    limited = answer(503, headers=RATE_LIMITED)
    assert not rule("5xx").repeats_response(limited)
    assert rule("envoy-ratelimited").repeats_response(limited)
    assert not rule("envoy-ratelimited").repeats_response(answer(503))


@pytest.mark.parametrize(
    "policy", [None, retries(), retries("http3-post-connect-failure"), retries("retriable-status-codes")]
)
def test_a_policy_that_can_repeat_nothing_is_no_rule(policy: RetryPolicy | None) -> None:
    assert compile_rule(policy) is None


def test_back_off_is_uniform_below_a_width_that_doubles_up_to_the_maximum() -> None:
    compiled = rule("5xx", base_interval=0.025, max_interval=0.25)
    widths = [round(compiled.back_off(retry, Chance(0.5)) * 2, 6) for retry in range(1, 8)]
    assert widths == [0.025, 0.05, 0.1, 0.2, 0.25, 0.25, 0.25]
    assert compiled.back_off(1, Chance(0.0)) == 0.0


# -------------------------------------------------------------------------------------------------- headers of the request


def asked(policy: RetryPolicy | None = None, **headers: str) -> RetryRule | None:
    named = {f"x-envoy-{name.replace('_', '-')}": value for name, value in headers.items()}
    return rule_of_request(policy, request(headers=named))


def test_the_applications_words_add_to_the_policy() -> None:
    made = asked(retries("connect-failure", num_retries=3), retry_on="retriable-4xx, bogus", retry_grpc_on="internal")
    assert made is not None
    assert made.num_retries == 3
    assert made.statuses == {409}
    assert made.grpc_statuses == {13}
    assert made.kinds == {OutcomeKind.CONNECT_FAILURE}


def test_the_applications_number_replaces_the_policys() -> None:
    made = asked(retries("5xx", num_retries=3), max_retries="1")
    assert made is not None
    assert made.num_retries == 1


@pytest.mark.parametrize("value", ["x", "-1", "", "1.5"])
def test_a_number_that_is_none_is_ignored(value: str) -> None:
    made = asked(retries("5xx", num_retries=3), max_retries=value)
    assert made is not None
    assert made.num_retries == 3


def test_without_a_policy_the_application_alone_gets_one_retry() -> None:
    made = asked(retry_on="5xx")
    assert made is not None
    assert made.num_retries == 1
    assert asked(max_retries="4") is None


def test_the_applications_status_codes_and_header_names() -> None:
    made = asked(
        retry_on="retriable-status-codes,retriable-headers",
        retriable_status_codes="x,418",
        retriable_header_names="X-Again",
    )
    assert made is not None
    assert made.repeats_response(answer(418))
    assert made.repeats_response(answer(200, headers=[(b"x-again", b"1")]))
    assert not made.repeats_response(answer(200))
