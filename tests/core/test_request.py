"""Headers of a request, indexed or not."""

from __future__ import annotations

import pytest

from proxyless.core.request import Request

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
