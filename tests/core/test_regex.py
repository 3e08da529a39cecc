from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyless.core.automaton import Automaton
from proxyless.core.regex import compile_re2, full_matcher
from proxyless.core.regex_syntax import byte_text, parse


def matches(pattern: str, text: str) -> bool:
    """Both engines, which must agree."""
    found = full_matcher(pattern)(text)
    assert Automaton(parse(pattern)).fullmatch(byte_text(text)) is found
    return found


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
        r"\x{100}",
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
        (r"\x41\101\z", "AA", True),
        (r"(?<year>\d{4})", "2024", True),
        (".*/ns/foo/.*", "spiffe://td/ns/foo/sa/a", True),
        ("", "", True),
        ("a#b c", "a#b c", True),
    ],
)
def test_a_pattern_means_what_it_means_in_re2(pattern: str, text: str, expected: bool) -> None:
    assert matches(pattern, text) is expected


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        (".*", "é", True),
        (".", "é", False),
        ("..", "é", True),
        ("[^x]", "é", False),
        ("é", "é", True),
        ("[é]{2}", "é", True),
        ("(?i)É", "é", False),
        ("(?i)É", "É", True),
        (".", "\udce9", True),
        (r"\x{e9}", "\udce9", True),
        (r"\x{e9}", "é", False),
        (r"(?i)\x{c9}", "\udce9", False),
        ("a.*", "a\udcff", True),
        (r"\w", "\udce9", False),
        (r"a\b", "a", True),
        (r"a\b\x{e9}", "a\udce9", True),
        (".{3}", "\ud800", True),
    ],
)
def test_patterns_and_texts_are_bytes(pattern: str, text: str, expected: bool) -> None:
    """Each recorded from Envoy 1.40, which compiles for Latin-1: no byte of a caller can step around `.*`."""
    assert matches(pattern, text) is expected


_ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", r"\d", "(a)", "(?:b|c)", "^", "$", r"\.", "x"])
_PATTERNS = st.lists(st.tuples(_ATOMS, st.sampled_from(["", "*", "+", "?", "{2}", "*?"])), min_size=1, max_size=5).map(
    lambda parts: "".join(atom + ("" if atom in "^$" else count) for atom, count in parts)
)


@settings(deadline=None)  # the machine may be busy
@given(pattern=_PATTERNS, text=st.text("ab1.x\n", max_size=6))
def test_on_the_common_dialect_the_translation_agrees_with_python(pattern: str, text: str) -> None:
    plain = re.compile(pattern.replace("$", r"\Z"), re.ASCII)
    assert matches(pattern, text) is (plain.fullmatch(text) is not None)


@settings(deadline=None)  # the machine may be busy
@given(st.text(max_size=20))
def test_any_text_compiles_or_is_refused_and_nothing_else(pattern: str) -> None:
    try:
        compiled = compile_re2(pattern)
    except ValueError:
        return
    compiled.fullmatch("abc")


@settings(deadline=None)  # the machine may be busy
@given(st.text(max_size=20))
def test_quoted_text_matches_itself_only(text: str) -> None:
    pattern = "\\Q" + text.replace("\\E", "") + "\\E"
    assert matches(pattern, text.replace("\\E", ""))
    assert not matches(pattern, text.replace("\\E", "") + "x")


# ------------------------------------------------------------------------------------------------------------ bounded time


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("(a+)+b", "a" * 5_000),
        ("(a|a)*b", "a" * 5_000),
        ("(a|aa)+b", "a" * 5_000),
        ("(.*)*x", "a" * 5_000),
        ("(a?){40}a{40}b", "a" * 60),
        (".*a.*b.*c.*d", "ab" * 2_500),
        ("(?i)(x+x+)+y", "x" * 5_000),
        (r"(\w+\s?)*!", "word " * 1_000),
    ],
)
def test_no_text_makes_a_pattern_slow(pattern: str, text: str) -> None:
    """With a backtracking engine each of these takes longer than the age of the universe, or minutes at least."""
    assert not full_matcher(pattern)(text)


def test_a_pattern_that_is_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="too large"):
        full_matcher("((a{1000}){1000}){1000}")
    with pytest.raises(ValueError, match="nested"):
        full_matcher("(" * 200 + "a" + ")" * 200)


_NESTED = st.recursive(
    st.sampled_from(["a", "b", ".", "[^a]", r"\b", "^", "$", r"\B", "(?m:^)", "(?m:$)", "(?i:A)", ""]),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map("".join)
        | st.lists(inner, min_size=2, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})")
        | st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}"])).map(
            lambda pair: f"({pair[0]}){pair[1]}"
        )
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(pattern=_NESTED, texts=st.lists(st.text("ab \n", max_size=6), min_size=1, max_size=5))
def test_the_automaton_and_python_agree(pattern: str, texts: list[str]) -> None:
    automaton, compiled = Automaton(parse(pattern)), compile_re2(pattern)
    for text in texts:
        assert automaton.fullmatch(text) is (compiled.fullmatch(text) is not None)


def test_the_cache_of_states_is_bounded() -> None:
    automaton = Automaton(parse("(a|b)*a(a|b){12}"))
    words = ["".join("ab"[number >> bit & 1] for bit in range(14)) for number in range(1 << 14)]
    hits = sum(automaton.fullmatch(word) for word in words)
    assert hits == len(words) // 2
    assert len(automaton._states) <= 1_000
