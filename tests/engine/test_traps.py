"""What servers do wrong, and what clients get wrong: every trap on asyncio, uvloop and blocking sockets."""

from __future__ import annotations

import pytest

from proxyless.engine import Timeouts
from proxyless.errors import EngineError
from tests.engine.helpers import FLAVOURS, OK, Peer, Server, Target, chunks, engine, replies, wait_until

EVIL = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_connection_is_used_again(flavour: str) -> None:
    with Server(replies(OK)) as server, engine(flavour) as client:
        target = Target(server.address)
        first, second = client.request(target.attempt()), client.request(target.attempt())
        assert (first.status, first.body, first.reused) == (200, b"ok", False)
        assert (second.body, second.reused) == (b"ok", True)
        assert server.accepted == 1
        assert target.state.connections == 1


def test_leaving_a_body_early_ends_the_connection_and_the_next_call_is_clean(flavour: str) -> None:
    def script(peer: Peer) -> None:
        if b"/slow" in peer.head():
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 10)
            peer.wait_closed()
        else:
            peer.send(OK)
            peer.wait_closed()

    with Server(script) as server, engine(flavour) as client:
        target = Target(server.address)
        exchange = client.open(target.attempt(target=b"/slow"))
        assert client.read(exchange, 1)
        exchange.close()
        with pytest.raises(EngineError, match="closed before its end"):
            client.read(exchange)
        assert client.request(target.attempt()).body == b"ok"
        client.settle(lambda: server.peers[0].closed_by_client)
        assert target.state.connections == 1


def test_an_idle_connection_that_the_server_closed_is_not_used(flavour: str) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(OK)

    with Server(script) as server, engine(flavour) as client:
        target = Target(server.address)
        assert client.request(target.attempt()).status == 200
        if flavour == "sync":
            wait_until(lambda: server.peers[0].sock.fileno() < 0)
        else:
            client.settle(lambda: target.state.connections == 0)
        assert client.request(target.attempt("POST"), b"zz").status == 200
        assert [len(peer.heads) for peer in server.peers] == [1, 1]


def test_a_close_that_races_with_a_reused_connection_is_reported_not_repeated(flavour: str) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(OK)
        peer.head()

    with Server(script) as server, engine(flavour) as client:
        target = Target(server.address)
        client.request(target.attempt())
        with pytest.raises(EngineError) as caught:
            client.request(target.attempt())
        assert (caught.value.kind, caught.value.reused, caught.value.bytes_seen) == ("closed", True, False)
        assert caught.value.request_sent
        assert len(server.requests) == 2
        assert target.state.connections == 0


def test_a_fresh_connection_closed_without_an_answer_is_not_repeated(flavour: str) -> None:
    def script(peer: Peer) -> None:
        peer.head()

    with Server(script) as server, engine(flavour) as client:
        with pytest.raises(EngineError) as caught:
            client.request(Target(server.address).attempt())
        assert (caught.value.kind, caught.value.reused, caught.value.bytes_seen) == ("closed", False, False)
        assert len(server.requests) == 1


def test_a_reset_is_told_apart_from_a_close(flavour: str) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.reset()

    with Server(script) as server, engine(flavour) as client:
        with pytest.raises(EngineError) as caught:
            client.request(Target(server.address).attempt())
        assert caught.value.kind == "read"


@pytest.mark.parametrize(
    "interim",
    [
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n",
    ],
    ids=["103", "unasked 100", "102 and 103"],
)
def test_interim_answers_are_not_the_answer(flavour: str, interim: bytes) -> None:
    with Server(replies(interim + OK)) as server, engine(flavour) as client:
        target = Target(server.address)
        for _ in range(2):
            answer = client.request(target.attempt())
            assert (answer.status, answer.headers, answer.body) == (200, [(b"Content-Length", b"2")], b"ok")
        assert server.accepted == 1


def test_an_interim_answer_that_announces_a_body_is_refused(flavour: str) -> None:
    hidden = b"HTTP/1.1 103 Early Hints\r\nContent-Length: %d\r\n\r\n" % len(OK)
    with (
        Server(replies(hidden + OK + EVIL)) as server,
        engine(flavour) as client,
        pytest.raises(EngineError, match="announces a body"),
    ):
        client.request(Target(server.address).attempt())


def test_switching_protocols_unasked_is_refused(flavour: str) -> None:
    answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nbytes"
    with Server(replies(answer)) as server, engine(flavour) as client:
        with pytest.raises(EngineError) as caught:
            client.request(Target(server.address).attempt())
        assert caught.value.kind == "protocol"


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n"),
    ],
    ids=["HEAD with a length", "HEAD without", "HEAD chunked", "204", "304 with a length"],
)
def test_answers_without_a_body_leave_the_connection_usable(flavour: str, method: str, answer: bytes) -> None:
    with Server(replies(answer, OK)) as server, engine(flavour) as client:
        target = Target(server.address)
        assert client.request(target.attempt(method)).body == b""
        assert client.request(target.attempt()).body == b"ok"
        assert server.accepted == 1


def test_a_body_after_an_answer_that_has_none_reaches_nobody(flavour: str) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    with Server(replies(answer, OK)) as server, engine(flavour) as client:
        target = Target(server.address)
        assert client.request(target.attempt("HEAD")).body == b""
        assert client.request(target.attempt()).body == b"ok"


def test_trailers_are_kept_out_of_the_headers(flavour: str) -> None:
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"
    with Server(replies(answer, OK)) as server, engine(flavour) as client:
        target = Target(server.address)
        got = client.request(target.attempt())
        assert got.body == b"abc"
        assert got.trailers == [(b"X-T", b"1")]
        assert [name for name, _ in got.headers] == [b"Transfer-Encoding", b"Trailer"]
        assert client.request(target.attempt()).reused


EXPECT = [(b"Expect", b"100-continue"), (b"Content-Length", b"5")]


def test_a_body_waits_for_100_continue(flavour: str) -> None:
    early: list[bytes] = []

    def script(peer: Peer) -> None:
        peer.head()
        peer.sock.settimeout(0.1)
        try:
            early.append(peer.sock.recv(5))
        except TimeoutError:
            peer.sock.settimeout(5)
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert peer.exactly(5) == b"12345"
        peer.send(OK)
        peer.wait_closed()

    with Server(script) as server, engine(flavour) as client:
        target = Target(server.address)
        assert client.request(target.attempt("POST", headers=EXPECT), b"12345").body == b"ok"
        assert early == []
        assert target.state.connections == 1


def test_a_final_answer_instead_of_100_continue_withholds_the_body_and_ends_the_connection(flavour: str) -> None:
    def script(peer: Peer) -> None:
        if peer.number == 1:
            peer.head()
            peer.send(b"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n")
            assert peer.sock.recv(10) == b""
        else:
            peer.head()
            peer.send(OK)

    with Server(script) as server, engine(flavour) as client:
        target = Target(server.address)
        assert client.request(target.attempt("POST", headers=EXPECT), b"12345").status == 417
        assert client.request(target.attempt()).body == b"ok"
        assert server.accepted == 2


@pytest.mark.parametrize(
    "headers",
    [
        b"X: " + b"a" * 60000 + b"\r\n",
        b"".join(b"X%d: a\r\n" % i for i in range(150)),
        b"".join(b"X%d: " % i + b"a" * 8000 + b"\r\n" for i in range(25)),
    ],
    ids=["60 kB line", "150 lines", "200 kB"],
)
def test_large_response_heads_are_read(flavour: str, headers: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\n" + headers + b"Content-Length: 0\r\n\r\n"
    with Server(replies(answer)) as server, engine(flavour) as client:
        assert client.request(Target(server.address).attempt()).status == 200


@pytest.mark.parametrize("where", ["headers", "one header", "trailers", "interim answers"])
def test_endless_heads_are_cut_off(flavour: str, where: str) -> None:
    sent = 0
    line = {"one header": b"a" * 1000, "interim answers": b"HTTP/1.1 102 Processing\r\n\r\n"}.get(
        where, b"X: " + b"a" * 996 + b"\r\n"
    )
    start = {
        "headers": b"HTTP/1.1 200 OK\r\n",
        "one header": b"HTTP/1.1 200 OK\r\nX: ",
        "trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
        "interim answers": b"",
    }[where]

    def script(peer: Peer) -> None:
        nonlocal sent
        peer.head()
        peer.send(start)
        while sent < 64 * 2**20:
            peer.send(line * 32)
            sent += len(line) * 32

    with Server(script) as server, engine(flavour) as client:
        with pytest.raises(EngineError, match="larger than") as caught:
            client.request(Target(server.address).attempt())
        assert caught.value.kind == "protocol"
    assert sent < 16 * 2**20


def test_request_headers_keep_order_case_duplicates_and_bytes(flavour: str) -> None:
    headers = [(b"X-Bb", b"1"), (b"x-Aa", b"caf\xe9"), (b"X-Bb", b"2")]
    with Server(replies(OK)) as server, engine(flavour) as client:
        client.request(Target(server.address).attempt(target=b"/a?b=c", headers=headers))
        assert server.requests == [
            b"GET /a?b=c HTTP/1.1\r\nHost: payments.myapp.com\r\nX-Bb: 1\r\nx-Aa: caf\xe9\r\nX-Bb: 2\r\n\r\n"
        ]


def test_response_headers_keep_order_case_duplicates_and_bytes(flavour: str) -> None:
    answer = b"HTTP/1.1 200 OK\r\nX-Bb: 1\r\nx-Aa: caf\xe9\r\nX-Bb: 2\r\nContent-Length: 0\r\n\r\n"
    with Server(replies(answer)) as server, engine(flavour) as client:
        got = client.request(Target(server.address).attempt())
        assert got.headers[:3] == [(b"X-Bb", b"1"), (b"x-Aa", b"caf\xe9"), (b"X-Bb", b"2")]


def test_bytes_after_the_body_do_not_reach_the_next_caller(flavour: str) -> None:
    with Server(replies(OK + b"EXTRA", OK)) as server, engine(flavour) as client:
        target = Target(server.address)
        assert client.request(target.attempt()).body == b"ok"
        assert client.request(target.attempt()).body == b"ok"
        assert server.accepted == 2


def test_a_second_answer_in_the_same_segment_does_not_reach_the_next_caller(flavour: str) -> None:
    with Server(replies(OK + EVIL, OK)) as server, engine(flavour) as client:
        target = Target(server.address)
        assert client.request(target.attempt()).body == b"ok"
        assert client.request(target.attempt()).body == b"ok"
        assert server.accepted == 2


def test_a_second_answer_while_idle_does_not_reach_the_next_caller(flavour: str) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(OK)
        if peer.number == 1:
            peer.send(EVIL)
        peer.wait_closed()

    with Server(script) as server, engine(flavour) as client:
        target = Target(server.address)
        client.request(target.attempt())
        if flavour == "sync":
            wait_until(lambda: _readable(client, target))
        else:
            client.settle(lambda: target.state.connections == 0)
        assert client.request(target.attempt()).body == b"ok"
        assert server.accepted == 2


def _readable(client: object, target: Target) -> bool:
    pool = next(iter(client.engine._registry))  # type: ignore[attr-defined]  # the test must see that the bytes arrived
    return not pool._free or bool(pool._free[0]._poll.poll(0))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ],
    ids=["length", "chunked"],
)
def test_a_body_that_ends_too_early_is_an_error(flavour: str, answer: bytes) -> None:
    with Server(replies(answer, close=True)) as server, engine(flavour) as client:
        with pytest.raises(EngineError, match="inside the body") as caught:
            client.request(Target(server.address).attempt())
        assert (caught.value.kind, caught.value.bytes_seen) == ("closed", True)


def test_a_body_without_length_ends_with_the_connection(flavour: str) -> None:
    with Server(replies(b"HTTP/1.1 200 OK\r\n\r\nabc", close=True)) as server, engine(flavour) as client:
        target = Target(server.address)
        assert client.request(target.attempt()).body == b"abc"
        assert target.state.connections == 0


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 204 No Content\r\nConnection: Close\r\n\r\n",
        b"HTTP/1.0 304 Not Modified\r\n\r\n",
    ],
    ids=["close", "HTTP/1.0", "204 close", "304 HTTP/1.0"],
)
def test_a_connection_that_the_server_will_not_keep_is_not_used_again(flavour: str, answer: bytes) -> None:
    with Server(replies(answer, OK)) as server, engine(flavour) as client:
        target = Target(server.address)
        client.request(target.attempt())
        assert client.request(target.attempt()).body == b"ok"
        assert server.accepted == 2


def test_a_connection_that_we_asked_to_end_is_not_used_again(flavour: str) -> None:
    with Server(replies(OK)) as server, engine(flavour) as client:
        target = Target(server.address)
        client.request(target.attempt(headers=[(b"Connection", b"close")]))
        client.request(target.attempt())
        assert server.accepted == 2


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"Content-Length: 3\r\nContent-Length: 2\r\n\r\nabc",
        b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
        b"X: 1\nContent-Length: 2\r\n\r\nok",
        b"Content-Length: +2\r\n\r\nok",
        b"Content-Length: 99999999999999999999999\r\n\r\nok",
    ],
    ids=["length and chunked", "two lengths", "chunk size", "bare LF", "signed length", "huge length"],
)
def test_ambiguous_framing_is_refused(flavour: str, rest: bytes) -> None:
    with Server(replies(b"HTTP/1.1 200 OK\r\n" + rest)) as server, engine(flavour) as client:
        with pytest.raises(EngineError) as caught:
            client.request(Target(server.address).attempt())
        assert caught.value.kind == "protocol"


@pytest.mark.parametrize(
    "garbage", [b"SSH-2.0-OpenSSH\r\n", b"\x16\x03\x01\x00\x05", b"HTTP/1.1 OK\r\n\r\n", b"HTTP/1.1 099 X\r\n\r\n"]
)
def test_garbage_is_a_protocol_error(flavour: str, garbage: bytes) -> None:
    with Server(replies(garbage)) as server, engine(flavour) as client:
        with pytest.raises(EngineError) as caught:
            client.request(Target(server.address).attempt())
        assert caught.value.kind == "protocol"


def test_an_early_answer_stops_an_upload(flavour: str) -> None:
    def script(peer: Peer) -> None:
        if peer.number > 1:
            peer.head()
            peer.send(OK)
            return
        peer.head()
        peer.send(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
        peer.wait_closed()

    with Server(script) as server, engine(flavour) as client:
        target = Target(server.address)
        answer = client.request(target.attempt("POST"), chunks(3200, 65536))
        assert (answer.status, answer.body) == (413, b"no")
        assert client.request(target.attempt()).body == b"ok"


def test_what_the_body_iterator_raises_reaches_the_caller_and_cuts_the_request(flavour: str) -> None:
    whole: list[bool] = []

    def script(peer: Peer) -> None:
        peer.head()
        try:
            peer.until(b"0\r\n\r\n")
            whole.append(True)
        except ConnectionError:
            whole.append(False)

    def broken() -> object:
        yield b"zzzz"
        raise KeyError("boom")

    with Server(script) as server, engine(flavour) as client:
        with pytest.raises(KeyError, match="boom"):
            client.request(Target(server.address).attempt("POST"), broken())
        client.settle(lambda: whole)
        assert whole == [False]


@pytest.mark.parametrize("count", [1, 3], ids=["too short", "too long"])
def test_a_stream_must_keep_the_length_it_declared(flavour: str, count: int) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.wait_closed()

    with Server(script) as server, engine(flavour) as client:
        with pytest.raises(EngineError) as caught:
            client.request(
                Target(server.address).attempt("POST", headers=[(b"Content-Length", b"8")]), chunks(count, 4)
            )
        assert caught.value.kind == "request"


def test_a_streamed_body_arrives_whole(flavour: str) -> None:
    def script(peer: Peer) -> None:
        while True:
            head = peer.head()
            if b"Content-Length" in head:
                assert peer.exactly(12) == b"z" * 12
            else:
                assert peer.until(b"0\r\n\r\n") == b"4\r\nzzzz\r\n" * 3 + b"0\r\n\r\n"
            peer.send(OK)

    with Server(script) as server, engine(flavour) as client:
        target = Target(server.address)
        assert client.request(target.attempt("POST"), chunks(3, 4)).body == b"ok"
        declared = target.attempt("POST", headers=[(b"Content-Length", b"12")])
        assert client.request(declared, chunks(3, 4)).reused
        chunked = target.attempt("POST", headers=[(b"Transfer-Encoding", b"chunked")])
        assert client.request(chunked, chunks(3, 4)).reused


@pytest.mark.parametrize("body", [b"", b"zzzz", b"z" * 100_000], ids=["empty", "short", "long"])
@pytest.mark.parametrize("expect", [False, True], ids=["", "expect"])
def test_a_whole_body_that_the_caller_announces_as_chunked_has_an_end(flavour: str, body: bytes, expect: bool) -> None:
    def script(peer: Peer) -> None:
        for _ in range(2):
            head = peer.head()
            if body:
                if b"Expect" in head:
                    peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
                assert peer.until(b"\r\n") == b"%x\r\n" % len(body)
                assert peer.exactly(len(body) + 2) == body + b"\r\n"
            assert peer.exactly(5) == b"0\r\n\r\n"
            peer.send(OK)
        peer.head()
        peer.send(OK)
        peer.wait_closed()

    headers = [(b"Transfer-Encoding", b"chunked")] + [(b"Expect", b"100-continue")] * expect
    with Server(script) as server, engine(flavour) as client:
        target = Target(server.address)
        for _ in range(2):
            assert client.request(target.attempt("POST", headers=headers), body).body == b"ok"
        assert client.request(target.attempt("GET")).reused


def test_a_large_body_arrives_whole(flavour: str) -> None:
    body = bytes(range(256)) * 8192

    def script(peer: Peer) -> None:
        peer.head()
        assert peer.exactly(len(body)) == body
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        peer.wait_closed()

    with Server(script) as server, engine(flavour) as client:
        target = Target(server.address)
        assert client.request(target.attempt("POST"), body).body == body
        assert target.state.connections == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"headers": [(b"X-A", b"1\r\nEvil: 1")]}, "illegal byte"),
        ({"headers": [(b"X-A", b"1\nEvil: 1")]}, "illegal byte"),
        ({"headers": [(b"X-A", b"a\0b")]}, "illegal byte"),
        ({"headers": [(b"X A", b"1")]}, "header name"),
        ({"headers": [(b"Transfer-Encoding ", b"chunked")]}, "header name"),
        ({"headers": [(b"", b"1")]}, "header name"),
        ({"headers": [(b"Host", b"other")]}, "Host"),
        ({"headers": [(b"Content-Length", b"3"), (b"Transfer-Encoding", b"chunked")]}, "both"),
        ({"headers": [(b"Content-Length", b"3")]}, "the body has 0"),
        ({"headers": [(b"Content-Length", b"0"), (b"content-length", b"0")]}, "repeated"),
        ({"headers": [(b"Transfer-Encoding", b"gzip")]}, "chunked"),
        ({"method": "GET / HTTP/1.1\r\nEvil: 1\r\nX"}, "method"),
        ({"method": "CONNECT"}, "method"),
        ({"target": b"/a b"}, "illegal byte"),
        ({"target": b""}, "illegal byte"),
        ({"target": b"/\r\nX: 1"}, "illegal byte"),
    ],
)
def test_a_request_that_could_be_read_in_two_ways_is_not_sent(change: dict[str, object], reason: str) -> None:
    with Server(replies(OK)) as server, engine("sync") as client:
        with pytest.raises(EngineError, match=reason) as caught:
            client.request(Target(server.address).attempt(**change))  # type: ignore[arg-type]  # table of keywords
        assert (caught.value.kind, caught.value.request_sent) == ("request", False)
        assert server.accepted == 0


def test_a_read_timeout_ends_the_attempt(flavour: str) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.wait_closed()

    with Server(script) as server, engine(flavour) as client:
        target = Target(server.address)
        with pytest.raises(EngineError) as caught:
            client.request(target.attempt(), timeouts=Timeouts(read=0.05))
        assert caught.value.kind == "read_timeout"
        client.settle(lambda: server.peers[0].closed_by_client)
        assert target.state.connections == 0


def test_a_deadline_ends_a_drip_that_keeps_the_read_timeout_alive(flavour: str) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        peer.sock.settimeout(0.02)
        while True:
            peer.send(b"x")
            try:
                if not peer.sock.recv(1):
                    return
            except TimeoutError:
                pass

    with Server(script) as server, engine(flavour) as client:
        with pytest.raises(EngineError) as caught:
            client.request(Target(server.address).attempt(within=0.2), timeouts=Timeouts(read=2))
        assert caught.value.kind == "deadline"


def test_a_deadline_that_is_lifted_at_the_head_does_not_end_the_body(flavour: str) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        peer.sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            peer.sock.recv(1)
        peer.send(b"ok")

    with Server(script) as server, engine(flavour) as client:
        exchange = client.open(Target(server.address).attempt(within=0.2))
        exchange.limit(None)
        assert client.read(exchange) == b"ok"


def test_a_write_timeout_ends_an_upload_that_nobody_reads(flavour: str) -> None:
    def script(peer: Peer) -> None:
        wait_until(lambda: done)

    done: list[bool] = []
    with Server(script) as server, engine(flavour) as client:
        with pytest.raises(EngineError) as caught:
            client.request(Target(server.address).attempt("POST"), chunks(3200, 65536), Timeouts(read=3, write=0.1))
        done.append(True)
        assert caught.value.kind == "write_timeout"


def test_back_pressure_holds_a_fast_sender(flavour: str) -> None:
    sent = 0
    stalled: list[bool] = []

    def script(peer: Peer) -> None:
        nonlocal sent
        peer.head()
        total = 24 * 2**20
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        peer.sock.settimeout(0.2)
        block = memoryview(b"z" * 65536)
        while sent < total:
            try:
                sent += peer.sock.send(block[: total - sent])
            except TimeoutError:
                stalled.append(True)

    with Server(script) as server, engine(flavour) as client:
        exchange = client.open(Target(server.address).attempt())
        client.settle(lambda: stalled)
        assert sent < 16 * 2**20
        if flavour != "sync":
            assert exchange._connection.response.size < 2**20
        assert len(client.read(exchange)) == 24 * 2**20


def test_a_refused_connection_is_reported(flavour: str) -> None:
    with Server(replies(OK)) as server:
        pass
    with engine(flavour) as client:
        target = Target(server.address)
        with pytest.raises(EngineError) as caught:
            client.request(target.attempt())
        assert (caught.value.kind, caught.value.request_sent) == ("connect", False)
        assert target.state.connections == 0
        assert target.state.pending == 0


def test_unix_sockets(flavour: str, tmp_path: object) -> None:
    with Server(replies(OK), path=f"{tmp_path}/s") as server, engine(flavour) as client:
        target = Target(server.address)
        assert client.request(target.attempt()).body == b"ok"
        assert client.request(target.attempt()).reused
