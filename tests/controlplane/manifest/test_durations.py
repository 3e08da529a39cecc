"""Durations as Go writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyless.controlplane.manifest.durations import DurationError, parse_duration
from proxyless.controlplane.manifest.model import DestinationRule

from .helpers import load, only_error, route

FIELDS = {
    "timeout": "timeout: {}\nroute: [{{destination: {{host: a.b}}}}]",
    "retries.perTryTimeout": "retries: {{attempts: 1, perTryTimeout: {}}}\nroute: [{{destination: {{host: a.b}}}}]",
    "corsPolicy.maxAge": "corsPolicy: {{maxAge: {}}}\nroute: [{{destination: {{host: a.b}}}}]",
}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("1m30s", 90), ("600.000s", 600), ("0.5s", 0.5), ("1.5h", 5400), (".5s", 0.5), ("+2s", 2)],
)
def test_go_durations_are_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text, 0.001) == seconds


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("1d", "24h"),
        ('"30"', "30s"),
        ("30", "30s"),
        ("1.5", "1.5s"),
        ('""', "30s"),
        ("10 s", "10s"),
        ("-1s", "30s"),
        ("5S", "5s"),
        ("100us", "1ms"),
        ("0s", "leave the field out"),
        ("1.0000001s", "1500ms"),
        ("forever", "30s"),
        ("true", "30s"),
    ],
)
def test_what_people_write_instead_is_refused_with_an_example(field: str, text: str, hint: str) -> None:
    error = only_error(route(FIELDS[field].format(text)))
    assert (error.path, error.place.line) == (f"spec.http[0].{field}", 7)
    assert hint in error.hint


@pytest.mark.parametrize("text", ["0s", "0ms", "1us"])
def test_some_fields_take_zero(text: str) -> None:
    policy = f"trafficPolicy: {{connectionPool: {{tcp: {{idleTimeout: {text}}}}}}}"
    assert len(load("DestinationRule", f"host: a.b\n{policy}").of(DestinationRule)) == 1


@given(st.integers(1, 10**6), st.sampled_from(["ms", "s", "m", "h"]))
def test_every_whole_number_with_a_unit_is_taken(number: int, unit: str) -> None:
    seconds = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]
    assert parse_duration(f"{number}{unit}", 0.001) == pytest.approx(number * seconds)


@given(st.text(max_size=60))
def test_any_text_is_a_duration_or_a_clear_refusal(text: str) -> None:
    try:
        outcome: object = parse_duration(text, 0.0)
    except DurationError as error:
        outcome = error.reason and error.hint
    assert outcome or outcome == 0


def test_absurd_numbers_are_refused_without_counting() -> None:
    for text in ("9" * 39 + "h", "9" * 5000 + "s"):
        with pytest.raises(DurationError):
            parse_duration(text, 0.0)
