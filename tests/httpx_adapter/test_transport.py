"""Both transports below httpx and httpx2: what comes back, and in whose names."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

from proxyless.core.request import Address
from proxyless.core.resources import FilterChain, FilterChainMatch, Listener, TcpProxy, WeightedCluster
from proxyless.errors import (
    ConnectFailureError,
    ConnectionTerminatedError,
    ProxylessError,
    RequestError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)
from proxyless.httpx import AsyncMeshTransport, MeshTransport
from tests.engine.helpers import OK, Peer, Server, replies, wait_until
from tests.engine.identities import web_contexts
from tests.httpx_adapter.helpers import URL, cluster, forward, mesh, retry, simple_mesh, snapshot


class Client:
    """`httpx.AsyncClient`, `httpx.Client` or one of httpx2's, with one face."""

    def __init__(self, library: Any, is_async: bool, given: Any, **options: Any) -> None:
        self.library, self.is_async = library, is_async
        timeout = options.pop("timeout", 5.0)
        self.runner = asyncio.Runner() if is_async else None
        kind = AsyncMeshTransport if is_async else MeshTransport
        self.transport = kind(given, **options)
        self.client = (library.AsyncClient if is_async else library.Client)(transport=self.transport, timeout=timeout)

    def request(self, method: str, url: str = URL, **options: Any) -> Any:
        if self.runner is None:
            return self.client.request(method, url, **options)
        return self.runner.run(self.client.request(method, url, **options))

    def get(self, url: str = URL, **options: Any) -> Any:
        return self.request("GET", url, **options)

    def stream(self, read: Callable[[Any], Any], url: str = URL) -> Any:
        """`read` gets the chunks one by one; what it returns, or raises, ends the stream."""
        if self.runner is None:
            with self.client.stream("GET", url) as response:
                for chunk in response.iter_raw():
                    read(chunk)
            return response

        async def run() -> Any:
            async with self.client.stream("GET", url) as response:
                async for chunk in response.aiter_raw():
                    read(chunk)
            return response

        return self.runner.run(run())

    def close(self) -> None:
        if self.runner is None:
            self.client.close()
        else:
            self.runner.run(self.client.aclose())
            self.runner.close()


KINDS = {
    "httpx async": (httpx, True),
    "httpx sync": (httpx, False),
    "httpx2 async": (httpx2, True),
    "httpx2 sync": (httpx2, False),
}

Make = Callable[..., Client]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    library, is_async = KINDS[request.param]
    made: list[Client] = []

    def client(given: Any, **options: Any) -> Client:
        made.append(Client(library, is_async, given, **options))
        return made[-1]

    yield client
    for each in made:
        each.close()


def test_a_name_that_only_the_mesh_knows_is_reached(make: Make) -> None:
    with Server(replies(OK)) as server:
        client = make(simple_mesh(server.address))
        for _ in range(3):
            response = client.get()
            assert (response.status_code, response.text, response.http_version) == (200, "ok", "HTTP/1.1")
            assert type(response) is client.library.Response
            assert response.reason_phrase == "OK"
            said = response.extensions["proxyless"]
            assert (said["flag"], said["details"], said["cluster"], said["attempts"]) == ("-", "via_upstream", "c", 1)
            assert said["endpoint"].startswith("127.0.0.1:")
        assert server.accepted == 1
        assert server.requests[0].startswith(b"GET / HTTP/1.1\r\nHost: orders.store\r\n")


def test_no_route_is_a_response_with_flag_and_details(make: Make) -> None:
    client = make(mesh(snapshot({"other": []})))
    response = client.get()
    assert response.status_code == 404
    said = response.extensions["proxyless"]
    assert (said["flag"], said["details"], said["attempts"]) == ("NR", "route_not_found", 0)


def test_an_unknown_cluster_and_an_empty_one_are_503(make: Make) -> None:
    given = mesh(snapshot([forward("gone", path="/gone"), forward("empty")], cluster("empty", [])))
    client = make(given)
    assert client.get(f"{URL}gone").extensions["proxyless"]["flag"] == "NC"
    response = client.get()
    assert (response.status_code, response.extensions["proxyless"]["flag"]) == (503, "UH")


def test_an_answer_of_the_mesh_to_head_has_no_body(make: Make) -> None:
    response = make(mesh(snapshot([forward("empty")], cluster("empty", [])))).request("HEAD")
    assert (response.status_code, response.content) == (503, b"")
    assert int(response.headers["content-length"]) > 0


def test_a_refused_connection_is_our_error_and_theirs(make: Make) -> None:
    with Server(replies(OK)) as server:
        pass
    given = simple_mesh(server.address)
    client = make(given)
    with pytest.raises(client.library.ConnectError) as caught:
        client.get()
    error = caught.value
    assert isinstance(error, ConnectFailureError)
    assert isinstance(error, client.library.TransportError)
    assert (error.flag, error.status, error.attempts, error.cluster) == ("UF", 503, 1, "c")
    assert error.endpoint == str(server.address)
    assert error.request.url == URL
    assert given.learned.cluster("c").requests == 0


def test_failures_can_be_responses_as_from_envoy(make: Make) -> None:
    with Server(replies(OK)) as server:
        pass
    client = make(simple_mesh(server.address), failures="respond")
    response = client.get()
    assert (response.status_code, response.extensions["proxyless"]["flag"]) == (503, "UF")
    assert response.text.startswith("upstream connect error")


def _close(peer: Peer) -> None:
    peer.head()


def _reset(peer: Peer) -> None:
    peer.head()
    peer.reset()


def _garbage(peer: Peer) -> None:
    peer.head()
    peer.send(b"SSH-2.0\r\n\r\n")


def _silence(peer: Peer) -> None:
    peer.head()
    peer.wait_closed()


@pytest.mark.parametrize(
    ("script", "theirs", "ours", "flag"),
    [
        (_close, "RemoteProtocolError", ConnectionTerminatedError, "UC"),
        (_reset, "ReadError", ConnectionTerminatedError, "UC"),
        (_garbage, "RemoteProtocolError", UpstreamProtocolError, "UPE"),
        (_silence, "ReadTimeout", UpstreamTimeoutError, "UT"),
    ],
    ids=["close", "reset", "garbage", "silence"],
)
def test_what_breaks_on_the_wire_keeps_its_httpx_name(
    make: Make, script: Callable[[Peer], None], theirs: str, ours: type[RequestError], flag: str
) -> None:
    with Server(script) as server:
        client = make(simple_mesh(server.address), timeout=0.2)
        with pytest.raises(getattr(client.library, theirs)) as caught:
            client.get()
        assert isinstance(caught.value, ours)
        assert caught.value.flag == flag
        assert len(server.requests) == 1


def test_the_route_timeout_ends_a_silent_attempt(make: Make) -> None:
    with Server(_silence) as server:
        client = make(simple_mesh(server.address, route={"timeout": 0.1}), timeout=None)
        with pytest.raises(client.library.ReadTimeout) as caught:
            client.get()
        assert isinstance(caught.value, UpstreamTimeoutError)
        assert (caught.value.status, caught.value.details) == (504, "response_timeout")


def test_a_retry_saves_a_call_and_the_body_is_sent_again(make: Make) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        assert peer.exactly(5) == b"hello"
        if peer.number < 3:
            return
        peer.send(OK)

    with Server(script) as server:
        given = simple_mesh(server.address, route={"retry": retry("5xx")})
        client = make(given)
        assert client.request("POST", content=b"hello").text == "ok"
        assert server.accepted == 3
        assert given.learned.cluster("c").retries == 0


def test_a_retried_response_is_discarded_and_the_last_one_delivered(make: Make) -> None:
    bad = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 3\r\n\r\nbad"
    with Server(replies(bad)) as server:
        client = make(simple_mesh(server.address, route={"retry": retry("5xx", attempts=2)}))
        response = client.get()
        assert (response.status_code, response.text) == (503, "bad")
        assert len(server.requests) == 3


def test_a_streamed_body_is_not_repeated(make: Make) -> None:
    with Server(_close) as server:
        client = make(simple_mesh(server.address, route={"retry": retry("5xx")}))

        def sync_body() -> Iterator[bytes]:
            yield b"abc"

        async def async_body() -> Any:
            yield b"abc"

        with pytest.raises(client.library.TransportError):
            client.request("POST", content=async_body() if client.is_async else sync_body())
        assert len(server.requests) == 1


def test_a_streamed_body_arrives(make: Make) -> None:
    def script(peer: Peer) -> None:
        head = peer.head()
        assert b"Transfer-Encoding: chunked\r\n" in head
        assert b"Content-Length" not in head
        assert peer.until(b"0\r\n\r\n") == b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"
        peer.send(OK)

    def sync_body() -> Iterator[bytes]:
        yield from (b"abc", b"def")

    async def async_body() -> Any:
        for chunk in (b"abc", b"def"):
            yield chunk

    with Server(script) as server:
        client = make(simple_mesh(server.address))
        assert client.request("POST", content=async_body() if client.is_async else sync_body()).text == "ok"


def test_a_form_with_a_file_arrives(make: Make) -> None:
    def script(peer: Peer) -> None:
        head = peer.head().lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        assert b"file body" in peer.exactly(length)
        peer.send(OK)

    with Server(script) as server:
        client = make(simple_mesh(server.address))
        assert client.request("POST", files={"f": b"file body"}).text == "ok"


def test_an_unsendable_request_is_a_local_protocol_error_and_blames_no_endpoint(make: Make) -> None:
    with Server(replies(OK)) as server:
        given = simple_mesh(server.address)
        client = make(given)
        with pytest.raises(client.library.LocalProtocolError) as caught:
            client.get(headers={"X-A": "1\r\nEvil: 1"})
        assert isinstance(caught.value, ProxylessError)
        assert server.accepted == 0
        assert given.learned.cluster("c").requests == 0


# ------------------------------------------------------------------------------------------------------------------ FC-36


@pytest.mark.parametrize("streaming", [False, True], ids=["get", "stream"])
@pytest.mark.parametrize("how", ["reset", "close", "silence"])
def test_a_body_that_breaks_is_raised_by_the_read_and_never_repeated(make: Make, how: str, streaming: bool) -> None:
    handed: list[bytes] = []
    end: dict[str, Callable[[Peer], None]] = {
        "reset": Peer.reset,
        "close": lambda peer: None,
        "silence": Peer.wait_closed,
    }

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        if streaming and how != "silence":
            wait_until(lambda: handed)
        end[how](peer)

    with Server(script) as server:
        route = {"retry": retry("5xx", "reset"), "timeout": 0.3}
        given = simple_mesh(server.address, route=route)
        client = make(given, timeout=None)
        library = client.library
        expected = library.ReadTimeout if how == "silence" else (library.RemoteProtocolError, library.ReadError)
        read = (lambda: client.stream(handed.append)) if streaming else client.get
        with pytest.raises(expected) as caught:
            read()
        assert isinstance(caught.value, UpstreamTimeoutError if how == "silence" else ConnectionTerminatedError)
        assert len(server.requests) == 1
        state = given.learned.cluster("c")
        assert (state.requests, state.connections) == (0, 0)


# ------------------------------------------------------------------------------------------------------------------ FC-39


def test_headers_pass_as_bytes_both_ways(make: Make) -> None:
    import gzip

    text = gzip.compress(b"hello", mtime=0)
    sent = [
        (b"content-disposition", 'attachment; filename="Prüfung.pdf"'.encode("latin-1")),
        (b"x-utf8", "甲".encode()),
        (b"set-cookie", b"a=1; Path=/"),
        (b"Set-Cookie", b"b=2; Expires=Wed, 21 Oct 2026 07:28:00 GMT"),
        (b"content-encoding", b"gzip"),
        (b"content-length", b"%d" % len(text)),
    ]
    answer = b"HTTP/1.1 200 OK\r\n" + b"".join(b"%b: %b\r\n" % pair for pair in sent) + b"\r\n" + text
    with Server(replies(answer)) as server:
        client = make(simple_mesh(server.address))
        response = client.get(headers=[(b"x-a", b"1"), (b"X-A", b"2"), (b"x-name", "für".encode("latin-1"))])
        assert response.headers.raw == sent
        assert response.text == "hello"
        assert response.headers["content-length"] == str(len(text))
        assert b"x-a: 1\r\nX-A: 2\r\nx-name: f\xfcr\r\n" in server.requests[0]


def test_each_value_of_a_repeated_header_is_matched(make: Make) -> None:
    from proxyless.core.matchers import HeaderMatcher, StringMatcher

    with Server(replies(OK)) as server:
        wanted = HeaderMatcher("x-a", StringMatcher("exact", "2"))
        client = make(mesh(snapshot([forward("c", headers=(wanted,))], cluster("c", [server.address]))))
        assert client.get(headers=[("x-a", "1"), ("X-A", "2")]).status_code == 200
        assert client.get(headers=[("x-a", "1")]).status_code == 404


# ------------------------------------------------------------------------------------------------------------ passthrough


def test_what_is_not_the_meshs_goes_out_as_usual(make: Make) -> None:
    with Server(replies(OK)) as server:
        client = make(mesh(snapshot({"other": []})), trust_env=False)
        assert client.get(f"http://127.0.0.1:{server.address.port}/").text == "ok"
        assert b"Host: 127.0.0.1:" in server.requests[0]


def test_a_fallback_takes_what_is_not_the_meshs(make: Make) -> None:
    asked = []

    def handler(request: Any) -> Any:
        asked.append(str(request.url))
        return library.Response(299)

    client = make(mesh(snapshot({"other": []})))
    library = client.library
    client.transport._fallback = library.MockTransport(handler)
    assert client.get("http://elsewhere:8080/x").status_code == 299
    assert asked == ["http://elsewhere:8080/x"]


def test_proxies_of_the_environment_are_used_for_the_outside(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(replies(OK)) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.address.port}")
        monkeypatch.setenv("no_proxy", "direct.example")
        client = make(mesh(snapshot({"other": []})))
        assert client.get("http://outside.example:8080/x").text == "ok"
        assert proxy.requests[0].startswith(b"GET http://outside.example:8080/x HTTP/1.1")
        with pytest.raises(client.library.ConnectError):
            client.get("http://direct.example:8080/x")


def test_the_kill_switch_gives_plain_httpx(make: Make) -> None:
    from proxyless.settings import Disabled

    with Server(replies(OK)) as server:
        given = mesh(snapshot({"127.0.0.1": []}), disabled=Disabled.OUTBOUND)
        client = make(given, trust_env=False)
        assert client.get(f"http://127.0.0.1:{server.address.port}/").text == "ok"


# -------------------------------------------------------------------------------------------------------------- readiness


def test_without_configuration_a_call_waits_as_long_as_it_would_connect_and_says_why(make: Make) -> None:
    client = make(mesh(None), timeout=0.1)
    with pytest.raises(client.library.ConnectTimeout, match="PROXYLESS_XDS"):
        client.get()


def test_a_call_that_waits_goes_on_when_the_configuration_comes(make: Make) -> None:
    import threading

    with Server(replies(OK)) as server:
        given = mesh(None)
        client = make(given)
        ready = snapshot([forward("c")], cluster("c", [server.address]))
        publisher = threading.Timer(0.05, lambda: given._publish(ready))
        publisher.start()
        assert client.get().text == "ok"
        publisher.join()


def test_https_to_the_outside_is_not_sent_in_the_clear(make: Make) -> None:
    records: list[bytes] = []

    def script(peer: Peer) -> None:
        records.append(peer.exactly(1))

    with Server(script) as server:
        client = make(simple_mesh(server.address), trust_env=False)
        with pytest.raises(client.library.ConnectError):
            client.get(f"https://127.0.0.1:{server.address.port}/")
        assert records == [b"\x16"]  # a TLS handshake


# ------------------------------------------------------------------------------------ https:// to a service of the registry


def _registered(name: str, to: str, port: int) -> Listener:
    """What a ServiceEntry with protocol TLS becomes: a TCP proxy chosen by server name."""
    proxy = TcpProxy(clusters=(WeightedCluster(name=to, weight=1),))
    chain = FilterChain(match=FilterChainMatch(server_names=(name,)), filter=proxy)
    return Listener(
        name=f"0.0.0.0_{port}", address=Address("0.0.0.0", port), direction="OUTBOUND", filter_chains=(chain,)
    )


def test_https_to_a_registered_service_goes_to_its_endpoint_with_the_applications_tls(
    make: Make, tmp_path: Path
) -> None:
    server_context, client_context = web_contexts("pay.example", tmp_path)
    with Server(replies(OK), tls=server_context) as server:
        external = cluster("ext", [server.address], service="pay.example")
        given = mesh(snapshot({"other": []}, external, extra=[_registered("pay.example", "ext", 443)]))
        client = make(given, verify=client_context)
        for _ in range(2):
            assert client.get("https://pay.example/v1").text == "ok"
        assert server.accepted == 1
        assert server.requests[0].startswith(b"GET /v1 HTTP/1.1\r\nHost: pay.example\r\n")


def test_https_to_a_registered_service_is_verified(make: Make, tmp_path: Path) -> None:
    server_context, _ = web_contexts("pay.example", tmp_path)
    with Server(replies(OK), tls=server_context) as server:
        external = cluster("ext", [server.address], service="pay.example")
        given = mesh(snapshot({"other": []}, external, extra=[_registered("pay.example", "ext", 443)]))
        client = make(given)
        with pytest.raises(client.library.ConnectError, match="certificate verify failed"):
            client.get("https://pay.example/v1")
        assert server.requests == []


def test_a_response_that_was_read_is_an_ordinary_one(make: Make) -> None:
    with Server(replies(OK)) as server:
        client = make(simple_mesh(server.address))
        response = client.get()
        assert type(response) is client.library.Response
        assert response.is_closed
        assert response.is_stream_consumed
        assert response.num_bytes_downloaded == 2
        assert response.elapsed.total_seconds() > 0
        assert pickle.loads(pickle.dumps(response)).text == "ok"
        read: list[bytes] = []
        assert client.stream(read.append).is_closed
        assert read == [b"ok"]


def test_an_unread_response_can_be_read_later_or_not_at_all(make: Make) -> None:
    with Server(replies(OK)) as server:
        given = simple_mesh(server.address)
        client = make(given)
        for _ in range(3):
            client.stream(lambda chunk: None)
        assert server.accepted == 1
        assert given.learned.cluster("c").requests == 0
