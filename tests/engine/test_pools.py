"""How many connections there are, who waits for one, and when one ends. Every engine."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

from proxyless.core.snapshot import Upstream
from proxyless.engine import UNLIMITED, AsyncEngine, Timeouts
from proxyless.errors import EngineError
from tests.engine.helpers import (
    FLAVOURS,
    LOOPS,
    OK,
    AsyncFace,
    Face,
    Peer,
    Server,
    Target,
    engine,
    limits,
    replies,
    upstream,
    wait_until,
)


@pytest.fixture(params=FLAVOURS)
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Gate:
    """A server whose answers to /slow wait until the test opens the gate."""

    def __init__(self) -> None:
        self.event = threading.Event()
        self.waiting = 0

    def __call__(self, peer: Peer) -> None:
        while True:
            if b"/slow" in peer.head():
                self.waiting += 1
                assert self.event.wait(10)
            peer.send(OK)


class Together:
    """Calls that run at the same time: tasks, or threads."""

    def __init__(self, client: Face) -> None:
        self.client = client
        self.results: list[Any] = []
        self.running: list[Any] = []

    def start(self, attempt: Any, timeouts: Timeouts = UNLIMITED) -> Any:
        if isinstance(self.client, AsyncFace):
            self.running.append(self.client.runner.get_loop().create_task(self._task(attempt, timeouts)))
        else:
            thread = threading.Thread(target=self._thread, args=(attempt, timeouts))
            thread.start()
            self.running.append(thread)
        return self.running[-1]

    async def _task(self, attempt: Any, timeouts: Timeouts) -> None:
        assert isinstance(self.client, AsyncFace)
        try:
            exchange = await self.client.engine.exchange(attempt, b"", timeouts)
            self.results.append(exchange.body if exchange.body is not None else b"".join([c async for c in exchange]))
        except EngineError as error:
            self.results.append(error.kind)

    def _thread(self, attempt: Any, timeouts: Timeouts) -> None:
        try:
            self.results.append(self.client.request(attempt, timeouts=timeouts).body)
        except EngineError as error:
            self.results.append(error.kind)

    def join(self) -> list[Any]:
        if isinstance(self.client, AsyncFace):
            self.client.settle(lambda: all(task.done() for task in self.running))
        else:
            for thread in self.running:
                thread.join(10)
        return self.results


def test_concurrent_calls_get_connections_of_their_own(flavour: str) -> None:
    gate = Gate()
    with Server(gate) as server, engine(flavour) as client:
        target = Target(server.address)
        calls = Together(client)
        for _ in range(3):
            calls.start(target.attempt(target=b"/slow"))
        client.settle(lambda: gate.waiting == 3)
        assert target.state.connections == 3
        gate.event.set()
        assert calls.join() == [b"ok"] * 3
        assert (server.accepted, target.state.connections, target.state.pending) == (3, 3, 0)


def test_over_the_connection_limit_calls_wait_their_turn(flavour: str) -> None:
    gate = Gate()
    with Server(gate) as server, engine(flavour) as client:
        target = Target(server.address, breakers=limits(max_connections=1))
        calls = Together(client)
        calls.start(target.attempt(target=b"/slow"))
        client.settle(lambda: gate.waiting == 1)
        for _ in range(3):
            calls.start(target.attempt())
        client.settle(lambda: target.state.pending == 3)
        gate.event.set()
        assert calls.join() == [b"ok"] * 4
        assert (server.accepted, target.state.connections, target.state.pending) == (1, 1, 0)


def test_over_the_pending_limit_a_call_is_refused(flavour: str) -> None:
    gate = Gate()
    with Server(gate) as server, engine(flavour) as client:
        target = Target(server.address, breakers=limits(max_connections=1, max_pending_requests=1))
        calls = Together(client)
        calls.start(target.attempt(target=b"/slow"))
        client.settle(lambda: gate.waiting == 1)
        calls.start(target.attempt())
        client.settle(lambda: target.state.pending == 1)
        with pytest.raises(EngineError) as caught:
            client.request(target.attempt())
        assert (caught.value.kind, caught.value.request_sent) == ("pool_overflow", False)
        gate.event.set()
        assert calls.join() == [b"ok"] * 2
        assert target.state.pending == 0


@pytest.mark.parametrize(
    ("timeouts", "within", "kind"),
    [(Timeouts(pool=0.05), None, "pool_timeout"), (Timeouts(), 0.05, "deadline")],
    ids=["pool timeout", "deadline"],
)
def test_waiting_for_a_connection_has_an_end(flavour: str, timeouts: Timeouts, within: float | None, kind: str) -> None:
    gate = Gate()
    with Server(gate) as server, engine(flavour) as client:
        target = Target(server.address, breakers=limits(max_connections=1))
        calls = Together(client)
        calls.start(target.attempt(target=b"/slow"))
        client.settle(lambda: gate.waiting == 1)
        with pytest.raises(EngineError) as caught:
            client.request(target.attempt(within=within), timeouts=timeouts)
        assert caught.value.kind == kind
        assert target.state.pending == 0
        gate.event.set()
        assert calls.join() == [b"ok"]
        assert client.request(target.attempt()).reused


def test_whoever_waits_gets_the_place_of_a_connection_that_dies(flavour: str) -> None:
    gate = Gate()

    def script(peer: Peer) -> None:
        if peer.number == 1:
            peer.head()
            gate.waiting += 1
            assert gate.event.wait(10)
        else:
            replies(OK)(peer)

    with Server(script) as server, engine(flavour) as client:
        target = Target(server.address, breakers=limits(max_connections=1))
        calls = Together(client)
        calls.start(target.attempt())
        client.settle(lambda: gate.waiting == 1)
        calls.start(target.attempt())
        client.settle(lambda: target.state.pending == 1)
        gate.event.set()
        assert sorted(map(str, calls.join())) == ["b'ok'", "closed"]
        assert (target.state.connections, target.state.pending) == (1, 0)


def test_limits_are_those_of_the_cluster_but_each_endpoint_may_have_one(flavour: str) -> None:
    with Server(replies(OK)) as first, Server(replies(OK)) as second, engine(flavour) as client:
        one = Target(first.address, breakers=limits(max_connections=1))
        other = Target(second.address, breakers=limits(max_connections=1))
        other.state = one.state
        client.request(one.attempt())
        client.request(other.attempt())
        assert one.state.connections == 2


def test_a_connection_ends_after_its_number_of_requests(flavour: str) -> None:
    with Server(replies(OK)) as server, engine(flavour) as client:
        target = Target(server.address, max_requests_per_connection=2)
        for _ in range(4):
            client.request(target.attempt())
        assert [len(peer.heads) for peer in server.peers] == [2, 2]


def test_a_connection_ends_at_its_age(flavour: str) -> None:
    now = [100.0]
    with Server(replies(OK)) as server, engine(flavour, clock=lambda: now[0]) as client:
        target = Target(server.address, max_connection_duration=10.0)
        client.request(target.attempt())
        now[0] += 9
        assert client.request(target.attempt()).reused
        now[0] += 2
        assert not client.request(target.attempt()).reused
        assert target.state.connections == 1


def test_an_idle_connection_is_swept(flavour: str) -> None:
    now = [100.0]
    with Server(replies(OK)) as server, engine(flavour, clock=lambda: now[0], sweep_interval=0.01) as client:
        target, other = Target(server.address, idle_timeout=10.0), Target(server.address, idle_timeout=10.0)
        other.upstream = upstream(server.address, name="other")
        client.request(target.attempt())
        now[0] += 11
        if flavour == "sync":  # no thread of its own: the next call, to anyone, sweeps
            client.request(other.attempt())
        client.settle(lambda: target.state.connections == 0)
        client.settle(lambda: server.peers[0].closed_by_client)


def test_connections_to_an_endpoint_that_is_gone_are_closed(flavour: str) -> None:
    current: list[Any] = [None]
    with (
        Server(replies(OK)) as server,
        Server(replies(OK)) as other,
        engine(flavour, snapshot=lambda: current[0], sweep_interval=0.01) as client,
    ):
        target, second = Target(server.address), Target(other.address)
        second.upstream = upstream(other.address, name="other")
        client.request(target.attempt())
        client.request(second.attempt())
        current[0] = _snapshot(upstream(other.address), second.upstream)
        if flavour == "sync":
            wait_until(lambda: client.request(second.attempt()) and target.state.connections == 0)
        client.settle(lambda: target.state.connections == 0)
        assert client.request(second.attempt()).reused


def test_connections_survive_a_snapshot_that_does_not_concern_them(flavour: str) -> None:
    current: list[Any] = [None]
    with (
        Server(replies(OK)) as server,
        engine(flavour, snapshot=lambda: current[0], sweep_interval=0.0) as client,
    ):
        target = Target(server.address)
        client.request(target.attempt())
        before, target.upstream = target.upstream, upstream(server.address, connect_timeout=1.0)
        assert before.endpoints[0] is not target.upstream.endpoints[0]
        current[0] = _snapshot(target.upstream)
        if flavour != "sync":
            client.settle(lambda: client.engine._seen_snapshot is current[0])
        assert client.request(target.attempt()).reused


def _snapshot(*upstreams: Upstream) -> Any:
    class Given:
        def __init__(self) -> None:
            self.upstreams = {each.cluster.name: each for each in upstreams}

    return Given()


def test_a_fresh_attempt_leaves_the_free_connections_alone(flavour: str) -> None:
    with Server(replies(OK)) as server, engine(flavour) as client:
        target = Target(server.address)
        client.request(target.attempt())
        assert not client.request(target.attempt(fresh=True)).reused
        assert target.state.connections == 1


def test_many_threads_share_one_engine() -> None:
    def script(peer: Peer) -> None:
        while True:
            tag = peer.head().split(b" ", 2)[1][1:]
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(tag) + tag)

    wrong: list[bytes] = []
    with Server(script) as server, engine("sync") as client:
        target = Target(server.address, breakers=limits(max_connections=3))

        def work(number: int) -> None:
            for turn in range(30):
                tag = b"%d-%d" % (number, turn)
                if client.request(target.attempt(target=b"/" + tag)).body != tag:
                    wrong.append(tag)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert wrong == []
        assert server.accepted <= 3
        assert (target.state.connections, target.state.pending) == (server.accepted, 0)


def test_a_child_process_uses_no_connection_of_its_parent() -> None:
    import os

    with Server(replies(OK)) as server, engine("sync") as client:
        target = Target(server.address)
        client.request(target.attempt())
        child = os.fork()
        if child == 0:
            reused = True
            try:
                reused = client.request(target.attempt()).reused
            finally:
                os._exit(1 if reused else 0)
        assert os.waitpid(child, 0)[1] == 0
        assert client.request(target.attempt()).reused
        assert server.accepted == 2


# --------------------------------------------------------------------------------------------------- only in event loops


@pytest.fixture(params=LOOPS)
def loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return LOOPS[request.param]


def test_a_late_close_does_not_hit_the_next_user_of_the_connection(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    gate = Gate()

    def script(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        peer.send(b"ok")
        gate(peer)

    async def run(target: Target) -> None:
        engine = AsyncEngine(None)
        first = await engine.exchange(target.attempt())
        if first.body is None:
            assert b"".join([chunk async for chunk in first]) == b"ok"
        second = asyncio.create_task(engine.exchange(target.attempt(target=b"/slow")))
        while not gate.waiting:
            await asyncio.sleep(0.002)
        first.close()
        first.limit(0.0)
        gate.event.set()
        exchange = await second
        assert exchange.reused
        assert exchange.body == b"ok"
        await engine.aclose()

    with Server(script) as server, asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run(Target(server.address)))
        assert server.accepted == 1


def test_a_cancelled_call_ends_its_connection(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.wait_closed() if peer.number == 1 else peer.send(OK)

    async def run(target: Target, server: Server) -> None:
        engine = AsyncEngine(None)
        call = asyncio.create_task(engine.exchange(target.attempt()))
        while not server.requests:
            await asyncio.sleep(0.002)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert target.state.connections == 0
        exchange = await engine.exchange(target.attempt())
        assert (exchange.reused, exchange.status) == (False, 200)
        await engine.aclose()

    with Server(script) as server, asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run(Target(server.address), server))
        wait_until(lambda: server.peers[0].closed_by_client)


@pytest.mark.parametrize("moment", ["while waiting", "at the moment of the grant", "while connecting"])
def test_a_call_cancelled_before_it_has_a_connection_leaks_nothing(
    loop: Callable[[], asyncio.AbstractEventLoop], moment: str
) -> None:
    gate = Gate()

    async def run(target: Target) -> None:
        engine = AsyncEngine(None)
        if moment == "while connecting":
            call = asyncio.create_task(engine.exchange(target.attempt()))
            while not target.state.connections:
                await asyncio.sleep(0)
        else:
            first = asyncio.create_task(engine.exchange(target.attempt(target=b"/slow")))
            while not gate.waiting:
                await asyncio.sleep(0.002)
            call = asyncio.create_task(engine.exchange(target.attempt()))
            while not target.state.pending:
                await asyncio.sleep(0)
            if moment == "at the moment of the grant":
                pool = next(iter(engine._registry))
                waiter = pool._waiters[0]
                gate.event.set()
                while not waiter.future.done():  # type: ignore[attr-defined]  # the test must hit that moment
                    await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert target.state.pending == 0
        gate.event.set()
        if moment != "while connecting":
            await first
        assert (await engine.exchange(target.attempt())).status == 200
        assert target.state.connections == 1
        await engine.aclose()
        assert target.state.connections == 0

    with Server(gate) as server, asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run(Target(server.address, breakers=limits(max_connections=1))))


def test_an_answer_may_begin_before_the_request_ends(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    def script(peer: Peer) -> None:
        peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        peer.until(b"0\r\n\r\n")
        peer.send(b"3\r\ndef\r\n0\r\n\r\n")
        replies(OK)(peer)

    async def run(target: Target) -> None:
        engine = AsyncEngine(None)
        seen = asyncio.Event()

        async def body() -> Any:
            yield b"first"
            await seen.wait()
            yield b"second"

        exchange = await engine.exchange(target.attempt("POST"), body())
        assert exchange.status == 200
        seen.set()
        assert b"".join([chunk async for chunk in exchange]) == b"abcdef"
        assert (await engine.exchange(target.attempt())).reused
        await engine.aclose()

    with Server(script) as server, asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run(Target(server.address)))


def test_back_pressure_holds_an_upload(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    done = threading.Event()
    taken = 0

    async def run(target: Target) -> None:
        nonlocal taken
        engine = AsyncEngine(None)

        async def body() -> Any:
            nonlocal taken
            while True:
                taken += 65536
                yield b"z" * 65536

        with pytest.raises(EngineError) as caught:
            await engine.exchange(target.attempt("POST"), body(), Timeouts(write=0.2))
        assert caught.value.kind == "write_timeout"
        await engine.aclose()

    with Server(lambda peer: wait_until(done.is_set)) as server, asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run(Target(server.address)))
        done.set()
    assert taken < 16 * 2**20


def test_random_cancels_and_late_closes_never_mix_answers(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    import random

    chance = random.Random(7)

    def script(peer: Peer) -> None:
        while True:
            tag = peer.head().split(b" ", 2)[1][1:]
            peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(3):
                peer.send(b"%x\r\n%b\r\n" % (len(tag), tag))
            peer.send(b"0\r\n\r\n")

    async def call(engine: AsyncEngine, target: Target, tag: bytes) -> None:
        exchange = await engine.exchange(target.attempt(target=b"/" + tag))
        body = exchange.body
        if body is None:
            body = b""
            async for chunk in exchange:
                body += chunk
                if chance.random() < 0.2:
                    exchange.close()
                    return
        await asyncio.sleep(0)
        exchange.close()
        assert body == tag * 3

    async def worker(engine: AsyncEngine, target: Target, number: int) -> None:
        for turn in range(15):
            task = asyncio.create_task(call(engine, target, b"w%dt%d;" % (number, turn)))
            if chance.random() < 0.25:
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
                task.cancel()
            result = (await asyncio.gather(task, return_exceptions=True))[0]
            assert result is None or isinstance(result, asyncio.CancelledError), result

    async def run(target: Target) -> None:
        engine = AsyncEngine(None)
        await asyncio.gather(*[worker(engine, target, number) for number in range(12)])
        assert target.state.pending == 0
        assert target.state.connections <= 4
        await engine.aclose()
        assert target.state.connections == 0

    with Server(script) as server, asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run(Target(server.address, breakers=limits(max_connections=4))))


def test_the_end_of_a_loop_closes_its_connections(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def run(target: Target) -> None:
        await AsyncEngine(None).exchange(target.attempt())

    with Server(replies(OK)) as server:
        target = Target(server.address)
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(run(target))
        assert target.state.connections == 0
        wait_until(lambda: server.peers[0].closed_by_client)


@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")  # asyncio's own word about such a loop
def test_a_loop_closed_without_shutdown_is_left_without_noise() -> None:
    made = asyncio.new_event_loop()  # uvloop refuses to be closed so

    async def run(target: Target) -> AsyncEngine:
        engine = AsyncEngine(None)
        await engine.exchange(target.attempt())
        return engine

    with Server(replies(OK)) as server:
        target = Target(server.address)
        engine = made.run_until_complete(run(target))
        sockets = [connection._transport._sock for connection in engine._connections]  # type: ignore[attr-defined]  # the loop's own, which it leaves open
        made.close()
        engine.abandon()
        assert target.state.connections == 0
        wait_until(lambda: server.peers[0].closed_by_client)
        del engine
        gc.collect()
        assert all(each.fileno() < 0 for each in sockets)
