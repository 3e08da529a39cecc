from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyless.core.matchers import CidrMatcher, HeaderMatcher, PathMatcher, QueryMatcher, StringMatcher, wire_text
from proxyless.core.request import Request


def request(*headers: tuple[str, str], **changes: str) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    return Request("GET", "/", raw, authority=changes.get("authority", "a.test"), query=changes.get("query", ""))


def matches(matcher: HeaderMatcher, *values: str) -> bool:
    return matcher.matches(request(*((matcher.name.title(), value) for value in values)))


EXACT_A = StringMatcher("exact", "a")


# --------------------------------------------------------------------------------------------------------------- strings


@pytest.mark.parametrize(
    ("kind", "value", "text", "expected"),
    [
        ("exact", "abc", "abc", True),
        ("exact", "abc", "ABC", False),
        ("prefix", "ab", "abc", True),
        ("suffix", "bc", "abc", True),
        ("suffix", "bc", "bca", False),
        ("contains", "b", "abc", True),
        ("regex", "a.", "abc", False),
        ("regex", "a..", "abc", True),
    ],
)
def test_a_string_matcher_tests_the_whole_text(kind: str, value: str, text: str, expected: bool) -> None:
    assert StringMatcher(kind, value).matches(text) is expected  # type: ignore[arg-type]  # parametrised literal


def test_ignore_case_folds_ascii_only() -> None:
    assert StringMatcher("exact", "Straße", ignore_case=True).matches("STRAßE")
    assert not StringMatcher("exact", "k", ignore_case=True).matches("\u212a")  # KELVIN SIGN
    assert not StringMatcher("contains", "é", ignore_case=True).matches("É")


def test_equal_settings_are_equal_matchers() -> None:
    assert StringMatcher("exact", "a") == StringMatcher("exact", "a")
    assert hash(StringMatcher("regex", "a+")) == hash(StringMatcher("regex", "a+"))


# --------------------------------------------------------------------------------------------------------------- headers


def test_repeated_headers_are_compared_value_by_value() -> None:
    matcher = HeaderMatcher("x-h", StringMatcher("exact", "a"))
    assert matches(matcher, "b", "a")
    assert not matches(matcher, "a,b")
    assert not matches(HeaderMatcher("x-h", StringMatcher("exact", "a,b")), "a", "b")


def test_an_inverted_matcher_needs_every_value_to_differ() -> None:
    matcher = HeaderMatcher("x-h", EXACT_A, invert=True)
    assert matches(matcher, "b", "c")
    assert not matches(matcher, "b", "a")


def test_single_entry_headers_are_joined_and_empty_repeats_dropped() -> None:
    assert matches(HeaderMatcher("user-agent", StringMatcher("exact", "a,b")), "a", "", "b")
    assert not matches(HeaderMatcher("content-type", EXACT_A), "a", "b")
    assert matches(HeaderMatcher("cookie", EXACT_A), "a", "b")


def test_an_absent_header_matches_nothing_inverted_or_not() -> None:
    assert not matches(HeaderMatcher("x-h", EXACT_A))
    assert not matches(HeaderMatcher("x-h", EXACT_A, invert=True))
    assert not matches(HeaderMatcher("x-h", range=(0, 9), invert=True))


def test_presence_is_the_exception() -> None:
    assert matches(HeaderMatcher("x-h", present=False))
    assert matches(HeaderMatcher("x-h", present=True, invert=True))
    assert not matches(HeaderMatcher("x-h", present=False), "")
    assert matches(HeaderMatcher("x-h"), "anything")


def test_a_missing_header_can_count_as_an_empty_value() -> None:
    empty = StringMatcher("exact", "")
    assert matches(HeaderMatcher("x-h", empty, treat_missing_as_empty=True))
    assert matches(HeaderMatcher("x-h", EXACT_A, invert=True, treat_missing_as_empty=True))
    assert matches(HeaderMatcher("x-h", present=True, treat_missing_as_empty=True))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("-10", True),
        ("9", True),
        ("10", False),
        ("1.0", False),
        ("", False),
        ("1x", False),
        ("+1", True),
        (" 1 ", True),
        ("٣", False),
        ("1_0", False),
        ("9" * 5000, False),
    ],
)
def test_a_range_takes_a_whole_int64_with_an_open_end(value: str, expected: bool) -> None:
    assert matches(HeaderMatcher("x-h", range=(-10, 10)), value) is expected


def test_names_are_case_insensitive_and_pseudo_headers_are_known() -> None:
    assert HeaderMatcher("X-H", EXACT_A).matches(request(("x-h", "a")))
    assert HeaderMatcher(":method", StringMatcher("exact", "GET")).matches(request())
    assert HeaderMatcher("host", StringMatcher("exact", "a.test:80")).matches(request(authority="a.test:80"))
    assert HeaderMatcher(":path", StringMatcher("exact", "/?x=1")).matches(request(query="x=1"))


def test_values_are_compared_as_bytes_of_utf8_and_broken_ones_step_around_nothing() -> None:
    assert matches(HeaderMatcher("x-h", StringMatcher("exact", "café")), "café")
    raw = Request("GET", "/\xff", [(b"x-h", b"a\xff")], authority="a", query="q=\xff")
    assert HeaderMatcher("x-h", StringMatcher("regex", ".+")).matches(raw)
    assert HeaderMatcher("x-h", StringMatcher("prefix", "a")).matches(raw)
    assert PathMatcher("regex", ".+").matches(raw.path)
    assert QueryMatcher("q", StringMatcher("regex", ".+")).matches(raw.query)


@settings(deadline=None)
@given(st.binary(max_size=20))
def test_reading_wire_text_never_fails(data: bytes) -> None:
    assert wire_text(data.decode("latin-1")).encode("utf-8", "surrogateescape") == data


# ----------------------------------------------------------------------------------------------------------------- query


@pytest.mark.parametrize(
    ("query", "expected"),
    [("q=a", True), ("q=b&q=a", False), ("x=1&q=a", True), ("q", False), ("Q=a", False), ("", False), ("q=%61", False)],
)
def test_the_first_value_of_a_query_parameter_counts_undecoded(query: str, expected: bool) -> None:
    assert QueryMatcher("q", EXACT_A).matches(query) is expected


def test_a_query_parameter_is_present_with_or_without_value() -> None:
    assert QueryMatcher("q").matches("q")
    assert QueryMatcher("q").matches("a=1&q=")
    assert not QueryMatcher("q").matches("qq=1")


# ----------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
    ("kind", "value", "path", "expected"),
    [
        ("prefix", "/a", "/ab", True),
        ("exact", "/a", "/a/", False),
        ("path_separated_prefix", "/api", "/api", True),
        ("path_separated_prefix", "/api", "/api/x", True),
        ("path_separated_prefix", "/api", "/apix", False),
        ("regex", "/a/[0-9]+", "/a/12", True),
        ("regex", "/a/[0-9]+", "/a/12/b", False),
        ("template", "/a/*", "/a/b", True),
        ("template", "/a/*", "/a/b/c", False),
        ("template", "/a/*", "/a/", False),
        ("template", "/a/**", "/a/", True),
        ("template", "/a/**", "/a", False),
        ("template", "/a/**", "/a/b\\c", False),
        ("template", "/store/**/cart", "/store//cart", True),
        ("template", "/store/**/cart", "/store/cart", False),
        ("template", "/{kind=v1/*}/x", "/v1/users/x", True),
        ("template", "/v/{file=**}.ts", "/v/a/b.ts", True),
    ],
)
def test_a_path_matcher_tests_a_path_without_query(kind: str, value: str, path: str, expected: bool) -> None:
    assert PathMatcher(kind, value).matches(path) is expected  # type: ignore[arg-type]  # parametrised literal


def test_case_can_be_ignored_for_literals_only() -> None:
    assert PathMatcher("prefix", "/A", case_sensitive=False).matches("/ab")
    assert PathMatcher("path_separated_prefix", "/API", case_sensitive=False).matches("/api/x")
    assert not PathMatcher("regex", "/A", case_sensitive=False).matches("/a")


@pytest.mark.parametrize(
    "template",
    ["a", "//b", "/a//b", "/**/b/*", "/{a}/{a}", "/{a}}", "/{1a}", "/{toolongvariablename}", "/{a=*", "/a b", "/*x",
     "/{a}/{b}/{c}/{d}/{e}/{f}", "/{x=**}/*", "/{x=}"],
)  # fmt: skip
def test_a_template_that_envoy_refuses_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"template|variable|segment"):
        PathMatcher("template", template)


@pytest.mark.parametrize("prefix", ["/a/", "a", "/a?b", "/a#b", ""])
def test_a_separated_prefix_has_no_slash_at_its_end(prefix: str) -> None:
    with pytest.raises(ValueError, match="path_separated_prefix"):
        PathMatcher("path_separated_prefix", prefix)


# -------------------------------------------------------------------------------------------------------------- addresses


def test_host_bits_of_a_range_are_masked() -> None:
    assert CidrMatcher("10.1.2.3", 8).matches("10.9.9.9")
    assert str(CidrMatcher("10.1.2.3", 8)) == "10.0.0.0/8"


def test_a_mapped_address_is_in_no_ipv4_range() -> None:
    assert not CidrMatcher("10.0.0.0", 8).matches("::ffff:10.1.2.3")


@pytest.mark.parametrize("host", ["", "/run/socket", "example.com", "10.0.0.256", "10.0.0.1:80"])
def test_what_is_no_address_is_in_no_range(host: str) -> None:
    assert not CidrMatcher("0.0.0.0", 0).matches(host)


@settings(deadline=None)
@given(st.ip_addresses(v=4), st.ip_addresses(v=4), st.integers(0, 32))
def test_a_range_holds_what_shares_its_first_bits(base: object, other: object, length: int) -> None:
    shift = 32 - length
    first, second = (int(ipaddress.IPv4Address(str(each))) for each in (base, other))
    assert CidrMatcher(str(base), length).matches(str(other)) is (first >> shift == second >> shift)
