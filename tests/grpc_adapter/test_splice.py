"""Bytes between two connections."""

from __future__ import annotations

import asyncio
import socket

from proxyless.grpc.splice import End, join

from .helpers import eventually


async def ends() -> tuple[End, End, socket.socket, socket.socket]:
    """Two joined ends, and the far sides of both."""
    loop = asyncio.get_running_loop()
    made: list[End] = []
    far: list[socket.socket] = []
    for _ in range(2):
        near, other = socket.socketpair()
        other.setblocking(False)
        end = End()
        await loop.connect_accepted_socket(lambda end=end: end, near)
        made.append(end)
        far.append(other)
    return made[0], made[1], far[0], far[1]


def test_a_reader_that_stands_still_holds_the_writer_and_loses_nothing() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        one, other, left, right = await ends()
        join(one, other)
        data = bytes(range(256)) * 40_000
        sending = asyncio.create_task(loop.sock_sendall(left, data))
        await eventually(lambda: not one.transport.is_reading(), what="the pause")
        assert other.transport.get_write_buffer_size() < 1_000_000
        assert not sending.done()
        received = bytearray()
        while len(received) < len(data):
            received += await loop.sock_recv(right, 1 << 16)
        assert received == data
        await sending
        for far in (left, right):
            far.close()
        await eventually(lambda: one.lost and other.lost, what="the end")

    asyncio.run(run())


def test_what_arrives_before_the_other_side_is_there_is_kept() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        one, other, left, right = await ends()
        await loop.sock_sendall(left, b"early")
        join(one, other)
        assert await loop.sock_recv(right, 100) == b"early"
        left.close()
        assert await loop.sock_recv(right, 100) == b""
        right.close()
        await eventually(lambda: one.lost and other.lost, what="the end")

    asyncio.run(run())


def test_when_one_side_has_gone_before_the_join_the_other_closes() -> None:
    async def run() -> None:
        one, other, left, right = await ends()
        told: list[str] = []
        one.abort()
        await eventually(lambda: one.lost, what="the end of one")
        one.when_lost(lambda: told.append("lost"))
        join(one, other)
        await eventually(lambda: other.lost, what="the end of the other")
        assert told == ["lost"]
        left.close()
        right.close()

    asyncio.run(run())
