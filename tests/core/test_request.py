"""Headers of a request, indexed or not."""

from __future__ import annotations

import pytest

from proxyless.core.request import Address, Request

HEADERS = [(b"Accept", b"*/*"), (b"X-Forwarded-For", b" 192.0.2.1"), (b"x-forwarded-for", b"192.0.2.2")]


@pytest.mark.parametrize("indexed", [False, True])
def test_whether_a_header_is_there_is_told_without_an_index_and_with_it(indexed: bool) -> None:
    request = Request("GET", "/", HEADERS, authority="a")
    if indexed:
        assert request.values("x-forwarded-for") == ["192.0.2.1", "192.0.2.2"]
    assert request.has(b"x-forwarded-for")
    assert request.has(b"accept")
    assert not request.has(b"x-forwarded-fox")
    assert not request.has(b"host")


def test_another_path_changes_nothing_else_and_keeps_the_class() -> None:
    class Narrower(Request):
        pass

    request = Narrower(
        "GET", "/a", [(b"x", b"1")], authority="shop.test", scheme="https", query="q=1", sni="shop.test",
        destination=Address("shop.test", 443), body_replayable=False,
    )  # fmt: skip
    assert request.values("x") == ["1"]
    other = request.with_path("/b")
    assert (type(other), other.path, request.path) == (Narrower, "/b", "/a")
    for name in ("method", "headers", "authority", "scheme", "query", "sni", "destination", "body_replayable"):
        assert getattr(other, name) == getattr(request, name)
    assert (other.values(":path"), other.values("x")) == (("/b?q=1",), ["1"])
