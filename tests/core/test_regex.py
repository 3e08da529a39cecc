from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyless.core.regex import compile_re2, re2_fullmatch


def matches(pattern: str, text: str) -> bool:
    return re2_fullmatch(compile_re2(pattern), text)


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=a)a",
        "(?!a)b",
        "(?<=a)b",
        "(?<!a)b",
        r"(a)\1",
        r"(?P<x>a)(?P=x)",
        "(?>a)",
        "a++",
        "a*+",
        "a?+",
        "a**",
        "a{2}{3}",
        "a{1001}",
        "a{3,2}",
        "*a",
        "(*a)",
        "a|*",
        "(",
        "a)",
        "[a",
        "[z-a]",
        "\\",
        r"\Z",
        r"\_",
        r"\8",
        r"\pN",
        r"\x{110000}",
        "(?x)a",
        "(?a)a",
        "(?L)a",
        "(?#comment)",
        "(?)",
        "(?U)a*",
        "[[:nope:]]",
    ],
)
def test_what_re2_refuses_or_cannot_be_expressed_is_refused_with_a_reason(pattern: str) -> None:
    with pytest.raises(ValueError, match="invalid regular expression"):
        compile_re2(pattern)


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("a|ab", "ab", True),
        ("a", "ab", False),
        ("a$", "a\n", False),
        ("(?m)a$\nb", "a\nb", True),
        (".", "\n", False),
        ("(?s).", "\n", True),
        (r"\s", "\v", False),
        (r"\d", "\u0661", False),
        (r"\w", "é", False),
        ("a{,2}", "aa", False),
        ("a{,2}", "a{,2}", True),
        ("a(?i)b|c", "aB", True),
        ("a(?i)b|c", "C", True),
        ("a(?i)b|c", "AB", False),
        ("(a(?i)b)c", "aBC", False),
        ("(?i:a)b", "Ab", True),
        ("(?i:a)b", "AB", False),
        (r"\Qa.b*\E+", "a.b**", True),
        (r"\Qa.b", "axb", False),
        (r"[[:alpha:]_]+", "ab_", True),
        (r"[^]a]", "]", False),
        (r"[a\]]+", "a]", True),
        (r"[&&--~~||[]+", "&-~|[", True),
        (r"\x{e9}", "é", True),
        (r"\x41\101\z", "AA", True),
        (r"(?<year>\d{4})", "2024", True),
        (".*/ns/foo/.*", "spiffe://td/ns/foo/sa/a", True),
        ("", "", True),
        ("a#b c", "a#b c", True),
    ],
)
def test_a_pattern_means_what_it_means_in_re2(pattern: str, text: str, expected: bool) -> None:
    assert matches(pattern, text) is expected


def test_text_that_is_no_unicode_matches_nothing() -> None:
    assert matches(".*", "é")
    assert not matches(".*", "a\udcff")


_ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", "(a)", "(?:b|c)", "^", "$", r"\.", "x"])
_PATTERNS = st.lists(st.tuples(_ATOMS, st.sampled_from(["", "*", "+", "?", "{2}", "*?"])), min_size=1, max_size=5).map(
    lambda parts: "".join(atom + ("" if atom in "^$" else count) for atom, count in parts)
)


@given(pattern=_PATTERNS, text=st.text("ab1.x\n", max_size=6))
def test_on_the_common_dialect_the_translation_agrees_with_python(pattern: str, text: str) -> None:
    plain = re.compile(pattern.replace("$", r"\Z"), re.ASCII)
    assert matches(pattern, text) is (plain.fullmatch(text) is not None)


@given(st.text(max_size=20))
def test_any_text_compiles_or_is_refused_and_nothing_else(pattern: str) -> None:
    try:
        compiled = compile_re2(pattern)
    except ValueError:
        return
    compiled.fullmatch("abc")


@given(st.text(max_size=20))
def test_quoted_text_matches_itself_only(text: str) -> None:
    pattern = "\\Q" + text.replace("\\E", "") + "\\E"
    assert matches(pattern, text.replace("\\E", ""))
    assert not matches(pattern, text.replace("\\E", "") + "x")
