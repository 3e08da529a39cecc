from __future__ import annotations

import pytest

from proxyless.core.matchers import PathMatcher
from proxyless.core.resources import Redirect
from proxyless.core.rewrites import redirect_location, rewrite_path
from tests.core.outbound import forward, request


@pytest.mark.parametrize(
    ("kind", "value", "rewrite", "path", "expected"),
    [
        pytest.param("prefix", "/adm", "/x", "/adm/y", "/x/y", id="the prefix is replaced"),
        pytest.param("prefix", "/", "/adm", "/x", "/admx", id="only the text that matched"),
        pytest.param("prefix", "//adm", "/adm", "//adm/x", "/adm/x", id="two slashes"),
        pytest.param("path_separated_prefix", "/a", "/b", "/a/c", "/b/c", id="path separated"),
        pytest.param("exact", "/a/b", "/c", "/a/b", "/c", id="exact: whole path"),
        pytest.param("regex", "/a/.*", "/c", "/a/b", "/c", id="regex: whole path"),
        pytest.param("prefix", "/ü", "/a", "/Ã¼/b", "/a/b", id="matched bytes, not characters"),
        pytest.param("prefix", "/a", "/ü", "/a/b", "/Ã¼/b", id="written as UTF-8"),
    ],
)
def test_prefix_rewrite(kind: str, value: str, rewrite: str, path: str, expected: str) -> None:
    matcher = PathMatcher(kind, value)  # type: ignore[arg-type]  # one of the kinds
    assert rewrite_path(forward("c", prefix_rewrite=rewrite), matcher, path) == expected


@pytest.mark.parametrize(
    ("pattern", "substitution", "path", "expected"),
    [
        pytest.param("^/svc/([^/]+)(/.*)$", r"\2/of/\1", "/svc/foo/v1", "/v1/of/foo", id="groups"),
        pytest.param("one", "two", "/xxx/one/yyy/one", "/xxx/two/yyy/two", id="every occurrence"),
        pytest.param("x+", r"<\0>", "/axxb", "/a<xx>b", id="whole match"),
        pytest.param("a", r"\\", "/a", "/\\", id="backslash"),
        pytest.param("/gone", "", "/gone", None, id="an empty result leaves the path"),
        pytest.param("a", r"\3", "/a", None, id="a missing group leaves the path"),
        pytest.param("nothing", "x", "/a", "/a", id="no match"),
        pytest.param(".*", "/all", "/a", "/all", id="no empty match behind a match"),
        pytest.param("x*", "Y", "/xxa", "Y/YaY", id="an empty match goes on by a character"),
        pytest.param("|a", "-", "/ab", "-/-a-b-", id="the first alternative, not the longest"),
        pytest.param("$", "/end", "/a", "/a/end", id="the end"),
        pytest.param("^", "/v1", "/a", "/v1/a", id="the start"),
    ],
)
def test_regex_rewrite(pattern: str, substitution: str, path: str, expected: str | None) -> None:
    action = forward("c", regex_rewrite=(pattern, substitution))
    assert rewrite_path(action, PathMatcher("prefix", "/"), path) == expected


@pytest.mark.parametrize(
    ("redirect", "host", "path", "expected"),
    [
        pytest.param(Redirect(host="n.test"), "a.test", "/p?q=1", "http://n.test/p?q=1", id="host"),
        pytest.param(Redirect(scheme="https"), "a.test:80", "/p", "https://a.test/p", id="default port of the old scheme goes"),
        pytest.param(Redirect(scheme="https"), "a.test:8080", "/p", "https://a.test:8080/p", id="any other port stays"),
        pytest.param(Redirect(port=443), "a.test:8080", "/p", "http://a.test:443/p", id="a new port replaces the old"),
        pytest.param(Redirect(host="n.test:44", port=443), "a", "/", "http://n.test:44:443/", id="port after host redirect"),
        pytest.param(Redirect(path="/new"), "a", "/old?q=1", "http://a/new?q=1", id="path keeps the query"),
        pytest.param(Redirect(path="/new?z=2"), "a", "/old?q=1", "http://a/new?z=2", id="path with a query of its own"),
        pytest.param(Redirect(path="new"), "a", "/old", "http://a/new", id="path without a slash"),
        pytest.param(Redirect(prefix_rewrite="/b"), "a", "/a/x?q=1", "http://a/b/x?q=1", id="prefix"),
        pytest.param(Redirect(regex_rewrite=("/a/(.*)", r"/\1")), "a", "/a/x", "http://a/x", id="regex"),
        pytest.param(Redirect(strip_query=True), "a", "/p?q=1", "http://a/p", id="query stripped"),
        pytest.param(Redirect(prefix_rewrite="/b?z=1", strip_query=True), "a", "/a", "http://a/b", id="written query stripped too"),
        pytest.param(Redirect(port=81), "[::1]:80", "/", "http://[::1]:81/", id="IPv6"),
        pytest.param(Redirect(scheme="https"), "[::1]", "/", "https://[::1]/", id="IPv6 without port"),
    ],
)  # fmt: skip
def test_redirect_location(redirect: Redirect, host: str, path: str, expected: str) -> None:
    assert redirect_location(redirect, PathMatcher("prefix", "/a"), request(path, host)) == expected
