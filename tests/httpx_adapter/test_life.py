"""Loops, threads, rotation and telemetry: what outlives one call."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import httpx2
import pytest
import uvloop
from prometheus_client import CollectorRegistry

from proxyless.errors import ConfigError, ConnectFailureError
from proxyless.httpx import AsyncMeshTransport, MeshTransport
from proxyless.runtime.mesh import Mesh
from proxyless.telemetry.recorder import Telemetry
from tests.engine.helpers import OK, Peer, Server, replies, wait_until
from tests.engine.identities import Identities, mutual, spiffe
from tests.httpx_adapter.helpers import URL, cluster, forward, mesh, retry, served, simple_mesh, snapshot

LOOPS: dict[str, Callable[[Any], Any]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    return LOOPS[request.param]


@pytest.fixture(scope="module")
def identities() -> Identities:
    return Identities()


# ------------------------------------------------------------------------------------------------------------------ FC-38


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "mutual TLS"])
def test_one_client_in_several_loops_one_after_the_other(
    run: Callable[[Any], Any], identities: Identities, tls: bool
) -> None:
    context = identities.server("server") if tls else None
    with Server(replies(OK), tls=context) as server:
        options = {"tls": mutual("server")} if tls else {}
        configuration = snapshot([forward("c")], cluster("c", [server.address], **options))
        given = mesh(configuration, identities.source("client"))
        client = httpx.AsyncClient(transport=AsyncMeshTransport(given))

        async def go() -> list[int]:
            return [(await client.get(URL)).status_code for _ in range(2)]

        for turn in range(1, 4):
            assert run(go()) == [200, 200]
            assert server.accepted == turn
            wait_until(lambda: all(peer.closed_by_client or peer.sock.fileno() < 0 for peer in server.peers))
            assert given.learned.cluster("c").connections == 0
        gc.collect()  # nothing is left that complains about its loop


def test_a_new_client_in_each_loop(run: Callable[[Any], Any]) -> None:
    with Server(replies(OK)) as server:
        given = simple_mesh(server.address)

        async def go() -> int:
            client = httpx.AsyncClient(transport=AsyncMeshTransport(given))
            return (await client.get(URL)).status_code

        assert [run(go()) for _ in range(3)] == [200, 200, 200]
        gc.collect()


def test_two_loops_at_the_same_time(run: Callable[[Any], Any]) -> None:
    together = threading.Barrier(2)
    results: list[int] = []

    with Server(replies(OK)) as server:
        client = httpx.AsyncClient(transport=AsyncMeshTransport(simple_mesh(server.address)))

        async def go() -> None:
            together.wait(5)
            results.extend([(await client.get(URL)).status_code for _ in range(50)])

        threads = [threading.Thread(target=run, args=(go(),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert results == [200] * 100
        assert server.accepted == 2


def test_aclose_ends_all_connections(run: Callable[[Any], Any]) -> None:
    with Server(replies(OK)) as server:
        given = simple_mesh(server.address)

        async def go() -> None:
            async with httpx.AsyncClient(transport=AsyncMeshTransport(given)) as client:
                await client.get(URL)
                assert given.learned.cluster("c").connections == 1
            assert given.learned.cluster("c").connections == 0

        run(go())
        assert server.peers[0].closed_by_client or not wait_until(lambda: server.peers[0].closed_by_client)


def test_outside_of_asyncio_one_sentence_says_what_to_do() -> None:
    transport = AsyncMeshTransport(mesh(None))
    with pytest.raises(ConfigError, match="under trio use"):
        transport.handle_async_request(httpx.Request("GET", URL)).send(None)


def test_threads_share_a_client() -> None:
    with Server(replies(OK)) as server, httpx.Client(transport=MeshTransport(simple_mesh(server.address))) as client:
        results: list[int] = []
        threads = [
            threading.Thread(target=lambda: results.extend(client.get(URL).status_code for _ in range(20)))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert results == [200] * 120
        assert server.accepted <= 6


# ------------------------------------------------------------------------------------------------- uvicorn, identity, load


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-length", b"%d" % len(body))]})
    for at in range(0, len(body), 100_000):
        await send({"type": "http.response.body", "body": body[at : at + 100_000], "more_body": True})
    await send({"type": "http.response.body"})


@pytest.mark.parametrize("library", [httpx, httpx2], ids=["httpx", "httpx2"])
@pytest.mark.parametrize("colour", ["async", "sync"])
def test_uvicorn_with_mutual_tls(run: Callable[[Any], Any], identities: Identities, library: Any, colour: str) -> None:
    body = bytes(range(256)) * 4096
    with served(_echo, identities.server("server")) as address:
        configuration = snapshot([forward("c")], cluster("c", [address], tls=mutual("server")))
        given = mesh(configuration, identities.source("client"))

        async def go() -> list[Any]:
            async with library.AsyncClient(transport=AsyncMeshTransport(given)) as client:
                return [await client.post(URL, content=body) for _ in range(3)]

        if colour == "async":
            responses = run(go())
        else:
            with library.Client(transport=MeshTransport(given)) as client:
                responses = [client.post(URL, content=body) for _ in range(3)]
        assert [response.content == body for response in responses] == [True] * 3
        assert responses[0].headers["x-length"] == str(len(body))


@pytest.mark.parametrize("colour", ["async", "sync"])
def test_the_wrong_identity_is_a_connect_error_and_no_request_is_seen(
    run: Callable[[Any], Any], identities: Identities, colour: str
) -> None:
    with Server(replies(OK), tls=identities.server("thief")) as server:
        configuration = snapshot([forward("c")], cluster("c", [server.address], tls=mutual("server")))
        given = mesh(configuration, identities.source("client"))

        async def go() -> None:
            async with httpx.AsyncClient(transport=AsyncMeshTransport(given)) as client:
                await client.get(URL)

        def blocking(_: Any) -> None:
            with httpx.Client(transport=MeshTransport(given)) as client:
                client.get(URL)

        work = run if colour == "async" else blocking
        coroutine: Any = go() if colour == "async" else None
        with pytest.raises(httpx.ConnectError, match="not one of those expected") as caught:
            work(coroutine)
        assert isinstance(caught.value, ConnectFailureError)
        assert server.requests == []


def test_certificates_rotate_under_load_without_an_error(run: Callable[[Any], Any], identities: Identities) -> None:
    source = identities.source("client")
    with served(_echo, identities.server("server"), timeout_keep_alive=30) as address:
        configuration = snapshot([forward("c")], cluster("c", [address], tls=mutual("server")))
        given = mesh(configuration, source)
        done = asyncio.Event()

        async def worker(client: httpx.AsyncClient) -> int:
            count = 0
            while not done.is_set():
                assert (await client.post(URL, content=b"x" * 1000)).status_code == 200
                count += 1
            return count

        async def go() -> list[int]:
            async with httpx.AsyncClient(transport=AsyncMeshTransport(given)) as client:
                workers = [asyncio.create_task(worker(client)) for _ in range(4)]
                state = given.learned.cluster("c")
                for _ in range(5):
                    identities.rotate(source, "client")
                    await client.post(URL)
                done.set()
                counts = await asyncio.gather(*workers)
                assert state.connections <= 5
                return counts

        assert sum(run(go())) > 0


# -------------------------------------------------------------------------------------------------------------- telemetry


class Lines:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def probe(self) -> None:
        pass

    def write(self, text: str) -> None:
        self.lines.append(json.loads(text))

    def close(self) -> None:
        pass


def _observed(given: Mesh) -> tuple[CollectorRegistry, Lines]:
    registry, lines = CollectorRegistry(), Lines()
    given._telemetry = Telemetry(workload="client", namespace="default", registry=registry)
    given._telemetry.access_log = lines  # type: ignore[assignment]  # a sink that keeps its lines
    return registry, lines


def _requests(registry: CollectorRegistry) -> list[tuple[str, str, float]]:
    return [
        (sample.labels["response_code"], sample.labels["response_flags"], sample.value)
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "istio_requests_total"
    ]


def test_a_call_is_counted_and_logged_once(run: Callable[[Any], Any], identities: Identities) -> None:
    with Server(replies(OK), tls=identities.server("server")) as server:
        configuration = snapshot([forward("c")], cluster("c", [server.address], tls=mutual("server")))
        given = mesh(configuration, identities.source("client"))
        registry, lines = _observed(given)

        async def go() -> None:
            async with httpx.AsyncClient(transport=AsyncMeshTransport(given)) as client:
                await client.post(URL, content=b"hello")
                async with client.stream("GET", URL) as response:
                    assert [chunk async for chunk in response.aiter_raw()] == [b"ok"]

        run(go())
        assert _requests(registry) == [("200", "-", 2.0)]
        first = lines.lines[0]
        assert (first["method"], first["path"], first["authority"]) == ("POST", "/", "orders.store")
        assert (first["bytes_received"], first["bytes_sent"], first["attempts"]) == (5, 2, 1)
        assert (first["peer"], first["upstream_cluster"]) == (spiffe("server"), "c")
        assert len(lines.lines) == 2


@pytest.mark.parametrize("how", ["reset", "silence"])
def test_a_broken_body_is_counted_once_with_the_status_it_began_with(run: Callable[[Any], Any], how: str) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        peer.reset() if how == "reset" else peer.wait_closed()

    with Server(script) as server:
        given = simple_mesh(server.address, route={"retry": retry("5xx", "reset"), "timeout": 0.2})
        registry, lines = _observed(given)

        async def go() -> None:
            async with httpx.AsyncClient(transport=AsyncMeshTransport(given), timeout=None) as client:
                await client.get(URL)

        with pytest.raises(httpx.TransportError):
            run(go())
        (counted,) = _requests(registry)
        assert counted[0] == "200"
        assert counted[1] in ("UC", "UPE", "UT")
        assert counted[2] == 1.0
        assert len(lines.lines) == 1
        assert lines.lines[0]["upstream_transport_failure_reason"]


def test_a_caller_that_goes_away_is_counted_as_such(run: Callable[[Any], Any]) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.wait_closed()

    with Server(script) as server:
        given = simple_mesh(server.address)
        registry, _ = _observed(given)

        async def go() -> None:
            async with httpx.AsyncClient(transport=AsyncMeshTransport(given)) as client:
                call = asyncio.create_task(client.get(URL))
                while not server.requests:
                    await asyncio.sleep(0.002)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)

        run(go())
        assert [(code, flags) for code, flags, _ in _requests(registry)] == [("0", "DC")]
        state = given.learned.cluster("c")
        assert (state.requests, state.connections, state.pending) == (0, 0, 0)


def test_what_passes_through_is_counted_as_such(run: Callable[[Any], Any]) -> None:
    with Server(replies(OK)) as server:
        given = mesh(snapshot({"other": []}))
        registry, lines = _observed(given)

        async def go() -> None:
            transport = AsyncMeshTransport(given, trust_env=False)
            async with httpx.AsyncClient(transport=transport) as client:
                await client.get(f"http://127.0.0.1:{server.address.port}/")

        run(go())
        assert _requests(registry) == [("200", "-", 1.0)]
        assert lines.lines[0]["upstream_cluster"] == "PassthroughCluster"


# ------------------------------------------------------------------------------------------------------- the user's stack


def test_redirects_auth_cookies_and_hooks_of_the_client_work(run: Callable[[Any], Any]) -> None:
    def script(peer: Peer) -> None:
        while True:
            head = peer.head()
            if b"GET /from" in head:
                peer.send(b"HTTP/1.1 302 Found\r\nLocation: /to\r\nSet-Cookie: a=1\r\nContent-Length: 0\r\n\r\n")
            else:
                assert b"Cookie: a=1\r\n" in head
                assert b"Authorization: Basic " in head
                peer.send(OK)

    seen: list[int] = []

    async def hook(response: httpx.Response) -> None:
        seen.append(response.status_code)

    with Server(script) as server:

        async def go() -> httpx.Response:
            async with httpx.AsyncClient(
                transport=AsyncMeshTransport(simple_mesh(server.address)),
                event_hooks={"response": [hook]},
                auth=("user", "word"),
                follow_redirects=True,
            ) as client:
                return await client.get(f"{URL}from")

        response = run(go())
        assert response.text == "ok"
        assert seen == [302, 200]
        assert response.elapsed.total_seconds() >= 0
        assert server.accepted == 1


def test_mounts_choose_the_transport(run: Callable[[Any], Any]) -> None:
    with Server(replies(OK)) as server:
        meshed = AsyncMeshTransport(simple_mesh(server.address))
        other = httpx.MockTransport(lambda request: httpx.Response(299))

        async def go() -> list[int]:
            async with httpx.AsyncClient(transport=other, mounts={"http://orders.store": meshed}) as client:
                return [(await client.get(URL)).status_code, (await client.get("http://else/")).status_code]

        assert run(go()) == [200, 299]


def test_a_transport_that_is_dropped_without_aclose_ends_its_connections(run: Callable[[Any], Any]) -> None:
    with Server(replies(OK)) as server:
        given = simple_mesh(server.address)

        async def go() -> None:
            transport = AsyncMeshTransport(given)
            client = httpx.AsyncClient(transport=transport)
            await client.get(URL)
            del client, transport
            gc.collect()
            while given.learned.cluster("c").connections:
                await asyncio.sleep(0.002)

        run(go())


# ------------------------------------------------------------------------------------------------------- bodies left early

ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1000


def test_a_body_that_is_left_early_gives_its_connection_back() -> None:
    with Server(replies(ENDLESS)) as server:
        given = mesh(snapshot([forward("c")], cluster("c", [server.address])))
        with httpx.Client(transport=MeshTransport(given)) as client:
            for _ in range(3):
                with client.stream("GET", URL) as response:
                    for _ in response.iter_bytes():
                        break
                assert given.learned.cluster("c").connections == 0
            with contextlib.suppress(ZeroDivisionError), client.stream("GET", URL) as response:
                for _ in response.iter_raw():
                    raise ZeroDivisionError
            assert given.learned.cluster("c").connections == 0


def test_a_body_that_is_left_early_gives_its_connection_back_in_a_loop(run: Callable[[Any], Any]) -> None:
    with Server(replies(ENDLESS)) as server:
        given = mesh(snapshot([forward("c")], cluster("c", [server.address])))

        async def go() -> None:
            async with httpx.AsyncClient(transport=AsyncMeshTransport(given)) as client:
                for _ in range(3):
                    async with (
                        client.stream("GET", URL) as response,
                        contextlib.aclosing(response.aiter_bytes()) as chunks,
                    ):
                        async for _ in chunks:
                            break
                    assert given.learned.cluster("c").connections == 0

        run(go())


def test_a_client_that_closes_in_one_loop_ends_nothing_in_another() -> None:
    with Server(replies(ENDLESS)) as server:
        given = mesh(snapshot([forward("c")], cluster("c", [server.address])))
        transport = AsyncMeshTransport(given)
        reading, closed = threading.Event(), threading.Event()
        ended: list[BaseException] = []

        async def read() -> None:
            response = await transport.handle_async_request(httpx.Request("GET", URL))
            chunks = aiter(response.stream)
            await anext(chunks)
            reading.set()
            await asyncio.to_thread(closed.wait, 10)
            try:
                await asyncio.wait_for(anext(chunks), 0.1)
            except BaseException as error:
                ended.append(error)

        thread = threading.Thread(target=asyncio.run, args=(read(),))
        thread.start()
        assert reading.wait(10)
        asyncio.run(transport.aclose())
        closed.set()
        thread.join(10)
        assert [type(error) for error in ended] == [TimeoutError], "still waiting for more, not cut off"
