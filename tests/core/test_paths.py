from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyless.core.paths import canonicalize, is_plain, normalize_path, split_target
from proxyless.core.resources import EscapedSlashes, PathNormalization

NONE = PathNormalization()
BASE = PathNormalization(normalize=True)
MERGE = PathNormalization(normalize=True, merge_slashes=True)
DECODE = PathNormalization(normalize=True, merge_slashes=True, escaped_slashes=EscapedSlashes.UNESCAPE_AND_FORWARD)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a/b/../c", "/a/c"),
        ("/a/./b", "/a/b"),
        ("/a/.", "/a/"),
        ("/.", "/"),
        ("/..", "/"),
        ("/a/..", "/"),
        ("/../../a", "/a"),
        ("/a//../b", "/a/b"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/.%2e/b", "/b"),
        ("/a/...", "/a/..."),
        ("/.hidden/..x/y.", "/.hidden/..x/y."),
        (r"/a\b\..\c", "/a/c"),
        ("/%41%7e%2d", "/A~-"),
        ("/%2f%5c%25", "/%2f%5c%25"),
        ("/%ff", "/%ff"),
        ("/%zz%", "/%zz%"),
        ("/a b", "/a%20b"),
        ("/caf\xc3\xa9", "/caf%C3%A9"),
        ("a/b", "/a/b"),
        ("", "/"),
        ("/a;p=1/b", "/a;p=1/b"),
        ("//a", "//a"),
    ],
)
def test_base_normalisation_is_rfc_3986_as_envoy_does_it(path: str, expected: str) -> None:
    assert normalize_path(path, BASE) == (expected, "continue")


def test_without_normalisation_a_path_stays() -> None:
    assert normalize_path("/a/../%2e\\", NONE).path == "/a/../%2e\\"


@pytest.mark.parametrize("path", ["/a%00", "/\0", "/%00..%00./", "/\xff"])
def test_a_nul_or_broken_utf8_is_rejected(path: str) -> None:
    assert normalize_path(path, BASE).action == "reject"


@pytest.mark.parametrize(
    ("path", "expected"), [("/a//b///c", "/a/b/c"), ("/a//", "/a/"), ("//", "//"), (r"/a\/\/b", "/a/b")]
)
def test_runs_of_slashes_are_merged_after_the_rest(path: str, expected: str) -> None:
    assert normalize_path(path, MERGE).path == expected


def test_escaped_slashes_are_decoded_before_dot_segments() -> None:
    assert normalize_path("/a%2f..%5cadmin", DECODE).path == "/admin"
    assert normalize_path("/a%252fb", DECODE).path == "/a%252fb"


def test_escaped_slashes_can_be_rejected_or_redirected() -> None:
    reject = PathNormalization(escaped_slashes=EscapedSlashes.REJECT_REQUEST)
    redirect = PathNormalization(escaped_slashes=EscapedSlashes.UNESCAPE_AND_REDIRECT)
    assert normalize_path("/a%2Fb", reject).action == "reject"
    assert normalize_path("/a%2Fb", redirect) == ("/a/b", "redirect")
    assert normalize_path("/ab", redirect).action == "continue"


def test_the_asterisk_form_stays() -> None:
    assert normalize_path("*", DECODE).path == "*"


def test_a_fragment_is_no_part_of_a_request() -> None:
    assert split_target("/a?b=1#c?d") == ("/a", "b=1")
    assert split_target("/a#b?c") == ("/a", "")
    assert split_target("/a?") == ("/a", "")


_PATHS = st.lists(
    st.sampled_from(["/", "\\", ".", "..", "%2e", "%2F", "%5c", "a", "%41", "%00", "%zz", "%", "\xff", " ", "é"]),
    max_size=12,
).map("".join)
_RULES = st.builds(
    PathNormalization,
    normalize=st.booleans(),
    merge_slashes=st.booleans(),
    escaped_slashes=st.sampled_from(EscapedSlashes),
)


@settings(deadline=None)
@given(path=st.text(max_size=30) | _PATHS, rules=_RULES)
def test_normalising_never_raises(path: str, rules: PathNormalization) -> None:
    normalize_path(path, rules)


@settings(deadline=None)
@given(path=_PATHS)
def test_normalising_twice_is_normalising_once_unless_escapes_are_nested(path: str) -> None:
    once = canonicalize(path)
    if once is not None:
        assert canonicalize(once) == once


@settings(deadline=None)
@given(path=_PATHS)
def test_a_canonical_path_has_no_dot_segment_and_no_back_slash(path: str) -> None:
    result = canonicalize(path)
    if result is not None:
        assert result.startswith("/")
        assert not {".", ".."} & set(result.split("/"))
        assert "\\" not in result


def reference(path: str) -> str:
    """RFC 3986 5.2.4 on whole segments, where empty ones count."""
    segments = path.replace("\\", "/").replace("%2e", ".").replace("%2E", ".").split("/")[1:]
    out: list[str] = []
    for index, segment in enumerate(segments):
        last = index == len(segments) - 1
        if segment == "..":
            del out[-1:]
        elif segment != ".":
            out.append(segment)
            continue
        if last:
            out.append("")
    return "/" + "/".join(out)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["/", "\\", ".", "..", "%2e", "a"]), max_size=10).map(lambda parts: "/" + "".join(parts))
)
def test_dot_segments_go_as_in_rfc_3986(path: str) -> None:
    assert canonicalize(path) == reference(path)


@given(st.text("/ab-_.%A2\\\n", max_size=12).map("/".__add__), st.sampled_from([NONE, BASE, MERGE, DECODE]))
def test_a_plain_path_is_left_as_it_is_by_every_rule(path: str, rules: PathNormalization) -> None:
    if is_plain(path):
        assert normalize_path(path, rules) == (path, "continue")


@pytest.mark.parametrize("path", ["", "a", "/a//b", "//", "/.", "/a.b", "/%41", "/a\n", "/\xe9", "/a;b"])
def test_what_a_rule_might_change_is_not_plain(path: str) -> None:
    assert not is_plain(path)


@pytest.mark.parametrize("path", ["/", "/a", "/a/", "/Api-v1/x_y/7"])
def test_the_usual_paths_are_plain(path: str) -> None:
    assert is_plain(path)
