"""SPIFFE IDs: one spelling, one parser, no surprises (SPIFFE-ID 2)."""

from __future__ import annotations

import contextlib
import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyless.errors import InvalidSpiffeIdError
from proxyless.spiffe import AnyId, ExactId, MemberOf, OneOf, SpiffeId, TrustDomain, join_segments

SEGMENT = st.text("abzAZ019.-_", min_size=1, max_size=12).filter(lambda text: text not in (".", ".."))
NAME = st.text("az09.-_", min_size=1, max_size=30)


@given(NAME, st.lists(SEGMENT, max_size=5))
def test_what_is_built_from_valid_parts_parses_to_the_same_parts(name: str, segments: list[str]) -> None:
    built = SpiffeId.of(name, *segments)
    parsed = SpiffeId.parse(str(built))
    assert parsed == built
    assert hash(parsed) == hash(built)
    assert parsed.trust_domain == name
    assert parsed.path == "".join("/" + segment for segment in segments)
    assert parsed.is_workload == bool(segments)


@given(st.text(max_size=60))
def test_any_text_either_parses_to_itself_or_gives_a_typed_error(text: str) -> None:
    for candidate in (text, "spiffe://" + text, "spiffe://td/" + text):
        with contextlib.suppress(InvalidSpiffeIdError):
            assert str(SpiffeId.parse(candidate)) == candidate


@given(st.characters(exclude_characters="abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_/"))
def test_no_character_outside_the_allowed_ones_is_ever_accepted(char: str) -> None:
    for text in (f"spiffe://td{char}/x", f"spiffe://td/x{char}", f"spiffe://td/{char}x", f"{char}spiffe://td/x"):
        with pytest.raises(InvalidSpiffeIdError):
            SpiffeId.parse(text)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty"),
        ("http://td/x", "bad-scheme"),
        ("SPIFFE://td/x", "bad-scheme"),
        ("spiffe:/td/x", "bad-scheme"),
        ("spiffe://TD/x", "bad-trust-domain-char"),
        ("spiffe://user@td/x", "bad-trust-domain-char"),
        ("spiffe://td:80/x", "bad-trust-domain-char"),
        ("spiffe:///x", "missing-trust-domain"),
        ("spiffe://td/a%2fb", "bad-path-char"),
        ("spiffe://td/a?b", "bad-path-char"),
        ("spiffe://td/a\n", "bad-path-char"),
        ("spiffe://td//a", "empty-segment"),
        ("spiffe://td/a/", "trailing-slash"),
        ("spiffe://td/", "trailing-slash"),
        ("spiffe://td/a/../b", "dot-segment"),
        ("spiffe://td/.", "dot-segment"),
        ("spiffe://" + "t" * 256 + "/x", "trust-domain-too-long"),
        ("spiffe://td/" + "p" * 2037, "too-long"),
    ],
)
def test_a_broken_rule_is_named(text: str, code: str) -> None:
    with pytest.raises(InvalidSpiffeIdError) as caught:
        SpiffeId.parse(text)
    assert caught.value.code == code


def test_the_longest_id_is_accepted() -> None:
    assert SpiffeId.parse("spiffe://td/" + "p" * 2036).is_workload
    assert SpiffeId.parse("spiffe://" + "t" * 255 + "/x").is_workload


def test_an_error_about_hostile_input_is_one_short_printable_line() -> None:
    with pytest.raises(InvalidSpiffeIdError) as caught:
        SpiffeId.parse("spiffe://td/\r\n\x1b[31m" + "x" * 5000)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_operators_write_a_bare_name_or_an_id() -> None:
    assert TrustDomain.parse("example.org") == TrustDomain.parse("spiffe://example.org/x") == "example.org"
    assert str(TrustDomain.parse("example.org").id) == "spiffe://example.org"
    for text in ("example.org/x", "user@example.org", "example.org:80", "*", "Example.org", "http://example.org"):
        with pytest.raises(InvalidSpiffeIdError):
            TrustDomain.parse(text)


@pytest.mark.parametrize("segments", [("",), ("a/b",), ("..",), ("ns", ".", "sa"), ("a%2fb",), ("ä",)])
def test_no_part_can_add_a_segment(segments: tuple[str, ...]) -> None:
    with pytest.raises(InvalidSpiffeIdError):
        join_segments(*segments)
    with pytest.raises(InvalidSpiffeIdError):
        SpiffeId.of("td", *segments)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/ns/default/sa/web", ("default", "web")),
        ("/ns/default", (None, None)),
        ("/sa/web/ns/default", (None, None)),
        ("/ns/default/sa/web/extra", (None, None)),
        ("/x/ns/default/sa/web", (None, None)),
        ("/NS/default/SA/web", (None, None)),
        ("", (None, None)),
    ],
)
def test_namespace_and_service_account_exist_for_exactly_the_istio_form(
    path: str, expected: tuple[str | None, str | None]
) -> None:
    spiffe_id = SpiffeId.parse("spiffe://cluster.local" + path)
    assert (spiffe_id.namespace, spiffe_id.service_account) == expected
    assert spiffe_id.principal == "cluster.local" + path


def test_matchers_compare_whole_ids_and_whole_trust_domains() -> None:
    web, db, other = (
        SpiffeId.parse(text) for text in ("spiffe://a.test/web", "spiffe://a.test/db", "spiffe://xa.test/web")
    )
    assert all(AnyId().matches(each) for each in (web, db, other))
    assert [ExactId(web).matches(each) for each in (web, db, other)] == [True, False, False]
    assert [OneOf.of([web, other]).matches(each) for each in (web, db, other)] == [True, False, True]
    assert [MemberOf(TrustDomain.parse("a.test")).matches(each) for each in (web, db, other)] == [True, True, False]


def test_an_empty_expectation_refuses() -> None:
    assert not OneOf.of([]).matches(SpiffeId.parse("spiffe://a.test/web"))


def test_an_id_cannot_be_changed_and_survives_copying() -> None:
    spiffe_id = SpiffeId.parse("spiffe://a.test/web")
    with pytest.raises(AttributeError):
        spiffe_id.path = "/admin"
    assert pickle.loads(pickle.dumps(spiffe_id)) == copy.deepcopy(spiffe_id) == spiffe_id
    assert spiffe_id != "spiffe://a.test/web"
