"""What reaches the socket, and when."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from proxyless.runtime.corked import MAX_JOINED, CorkedTransport


class Recorder:
    """Stands for a transport; what it is told is the behaviour."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def write(self, data: bytes) -> None:
        self.calls.append(bytes(data))

    def write_eof(self) -> None:
        self.calls.append("eof")

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")

    def get_extra_info(self, name: str) -> str | None:
        return None if name == "socket" else name


def _after(*steps: tuple[str, Any]) -> tuple[list[Any], list[Any]]:
    """-> calls before and after the end of the turn."""

    async def run() -> tuple[list[Any], list[Any]]:
        recorder = Recorder()
        corked = CorkedTransport(recorder, asyncio.get_running_loop())  # type: ignore[arg-type]  # all it uses
        for name, argument in steps:
            getattr(corked, name)(*([] if argument is None else [argument]))
        before = list(recorder.calls)
        await asyncio.sleep(0)
        return before, recorder.calls

    return asyncio.run(run())


def test_head_and_body_go_out_together_at_once() -> None:
    before, after = _after(("write", b"head"), ("write", b"body"))
    assert before == after == [b"headbody"]


def test_a_head_alone_goes_out_at_the_end_of_the_turn() -> None:
    assert _after(("write", b"head")) == ([], [b"head"])


def test_a_third_write_waits_for_a_fourth() -> None:
    before, after = _after(("write", b"a"), ("write", b"b"), ("write", b"c"))
    assert (before, after) == ([b"ab"], [b"ab", b"c"])


def test_large_writes_are_not_copied() -> None:
    large = b"x" * (MAX_JOINED + 1)
    assert _after(("write", b"head"), ("write", large))[0] == [b"head", large]
    assert _after(("write", large))[0] == [large]


def test_what_is_held_goes_out_before_the_end() -> None:
    assert _after(("write", b"last"), ("close", None))[0] == [b"last", "close"]
    assert _after(("write", b"last"), ("write_eof", None))[0] == [b"last", "eof"]


def test_an_abort_drops_it() -> None:
    assert _after(("write", b"last"), ("abort", None))[1] == ["abort"]


def test_a_buffer_may_be_used_again_after_its_write() -> None:
    buffer = bytearray(b"head")

    async def run() -> list[Any]:
        recorder = Recorder()
        corked = CorkedTransport(recorder, asyncio.get_running_loop())  # type: ignore[arg-type]  # all it uses
        corked.write(buffer)
        buffer[:] = b"evil"
        corked.writelines([b"bo", b"dy"])
        assert corked.get_extra_info("peername") == "peername"
        return recorder.calls

    assert asyncio.run(run()) == [b"headbody"]


def test_small_packets_do_not_wait_to_be_acknowledged() -> None:
    """Also where the listening socket was made as uvicorn makes it, which asyncio leaves with Nagle's algorithm on."""

    async def run() -> int:
        loop = asyncio.get_running_loop()
        accepted: asyncio.Future[asyncio.BaseTransport] = loop.create_future()

        class Accepting(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                accepted.set_result(transport)

        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            server = await loop.create_server(Accepting, sock=listening)
            _, writer = await asyncio.open_connection(*listening.getsockname())
            corked = CorkedTransport(await accepted, loop)  # type: ignore[arg-type]  # a socket's transport
            option: int = corked.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            corked.close()
            writer.close()
            server.close()
            await server.wait_closed()
        return option

    assert asyncio.run(run())
