"""Framing without sockets: what holds for every split, every garbage and every request."""

from __future__ import annotations

import itertools

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxyless.engine.h1 import FramingError, ResponseReader, request_head
from proxyless.errors import EngineError

TOKEN = st.text(st.sampled_from("abcXYZ019-_!~"), min_size=1, max_size=12)
VALUE = st.binary(max_size=30)
BODIES = st.lists(st.binary(min_size=1, max_size=40), max_size=5)


def _answer(chunks: list[bytes], *, chunked: bool) -> bytes:
    body = b"".join(chunks)
    head = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 Fine So\r\nX-A: 1\r\nx-a: \xe9\r\n"
    if not chunked:
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    return (
        head
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x;ext=1\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        + b"0\r\nX-Trailer: t\r\n\r\n"
    )


@settings(deadline=None)
@given(chunks=BODIES, chunked=st.booleans(), cuts=st.lists(st.integers(0, 400), max_size=8))
def test_however_it_is_cut_an_answer_reads_the_same(chunks: list[bytes], chunked: bool, cuts: list[int]) -> None:
    data = _answer(chunks, chunked=chunked)
    reader = ResponseReader()
    for _ in range(2):  # and the connection is good for another one
        reader.begin("GET", close=False)
        body = b""
        places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
        for start, end in itertools.pairwise(places):
            assert not reader.complete
            reader.feed(data[start:end])
            body += reader.take()
        assert reader.complete
        assert reader.keep_alive
        assert (reader.status, reader.reason) == (200, b"Fine So")
        assert reader.headers[:2] == [(b"X-A", b"1"), (b"x-a", b"\xe9")]
        assert reader.trailers == ([(b"X-Trailer", b"t")] if chunked else [])
        assert body == b"".join(chunks)


@settings(deadline=None)
@given(chunks=BODIES, chunked=st.booleans(), cut=st.integers(0, 10**6))
def test_an_answer_that_ends_too_early_is_never_complete(chunks: list[bytes], chunked: bool, cut: int) -> None:
    data = _answer(chunks, chunked=chunked)
    reader = ResponseReader()
    reader.begin("GET", close=False)
    reader.feed(data[: cut % len(data)])
    assert not reader.complete
    with pytest.raises(FramingError):
        reader.end(True)


@settings(deadline=None)
@given(
    data=st.lists(st.binary(max_size=60), max_size=6),
    prefix=st.sampled_from([b"", b"HTTP/1.1 ", b"HTTP/1.1 200 OK\r\n"]),
)
def test_garbage_is_a_framing_error_or_waits_for_more(data: list[bytes], prefix: bytes) -> None:
    reader = ResponseReader()
    reader.begin("GET", close=False)
    try:
        for piece in (prefix, *data):
            if not reader.complete:
                reader.feed(piece)
        reader.end(True)
    except FramingError:
        pass
    else:
        assert reader.complete
        assert 200 <= reader.status <= 999


@settings(deadline=None)
@given(
    method=TOKEN.filter(lambda text: text != "CONNECT"),
    target=st.binary(max_size=20),
    headers=st.lists(st.tuples(TOKEN.map(str.encode), VALUE), max_size=6),
    length=st.none() | st.integers(0, 100),
)
def test_a_head_that_is_sent_says_what_was_meant(
    method: str, target: bytes, headers: list[tuple[bytes, bytes]], length: int | None
) -> None:
    """Whatever passes has exactly one reading: as many lines as headers, and nothing in them that ends one."""
    try:
        head = request_head(method, b"/" + target, "host.example", headers, length)
    except EngineError:
        return
    lines = head.data.split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    assert lines[0] == b"%b /%b HTTP/1.1" % (method.encode(), target)
    assert lines[1] == b"Host: host.example"
    assert lines[2 : 2 + len(headers)] == [b"%b: %b" % pair for pair in headers]
    framing = lines[2 + len(headers) : -2]
    if length is None:
        assert framing == [b"Transfer-Encoding: chunked"]
    else:
        assert framing == ([b"Content-Length: %d" % length] if length else [])


def test_a_server_reads_the_same_head() -> None:
    seen: list[tuple[bytes, bytes]] = []

    class Reader:
        def on_header(self, name: bytes, value: bytes) -> None:
            seen.append((name, value))

    head = request_head("POST", b"/a?b", "h:80", [(b"X-A", b"1"), (b"Content-Length", b"3")], 3)
    parser = httptools.HttpRequestParser(Reader())
    parser.feed_data(head.data + b"abc")
    assert seen == [(b"Host", b"h:80"), (b"X-A", b"1"), (b"Content-Length", b"3")]
    assert (head.length, head.chunked, head.expect, head.close) == (3, False, False, False)


def test_an_authority_must_be_in_its_ascii_form() -> None:
    with pytest.raises(EngineError, match="ASCII form"):
        request_head("GET", b"/", "甲.example", [], 0)
