"""A unary call from one member of the mesh to another."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from proxyless.grpc import mesh_channel, mesh_peer

from .helpers import (
    ENTRY,
    ONLY_BILLING,
    PAY,
    STRICT,
    Counter,
    control_plane,
    counted,
    endpoints,
    handlers,
    identity,
    member,
    requests,
    serving,
)


def test_an_allowed_call_is_answered_and_both_ends_know_each_other() -> None:
    seen: list[Any] = []

    async def answer(request: bytes, context: Any) -> bytes:
        seen.append((str(mesh_peer(context).identity), dict(context.invocation_metadata())))
        context.set_trailing_metadata((("x-trailer", "t"), ("x-raw-bin", b"\x00\xff")))
        await context.send_initial_metadata((("x-initial", "i"),))
        return b"paid " + request

    async def run(payments: Any, billing: Any) -> None:
        async with serving(payments, handlers(Pay=Counter(answer).pay)):
            await endpoints(billing)
            async with mesh_channel("payments:50051", billing) as channel:
                call = channel.unary_unary(PAY)(b"5", timeout=10, metadata=(("x-user", "ann"), ("x-key-bin", b"\x01")))
                assert await call == b"paid 5"
                assert dict(await call.initial_metadata())["x-initial"] == "i"
                trailing = dict(await call.trailing_metadata())
                assert (trailing["x-trailer"], trailing["x-raw-bin"]) == ("t", b"\x00\xff")
                assert await call.code() is grpc.StatusCode.OK
                await counted("source", before[0] + 1, destination_principal=identity("payments"), **labels)
                await counted("destination", before[1] + 1, source_principal=identity("billing"), **labels)

    labels = {"request_protocol": "grpc", "response_code": "200", "grpc_response_status": "0"}
    before = requests("source", **labels), requests("destination", **labels)
    with (
        control_plane(ENTRY, STRICT, ONLY_BILLING) as plane,
        member(plane, "payments", service="payments") as payments,
        member(plane, "billing") as billing,
    ):
        asyncio.run(run(payments, billing))
    [(peer, metadata)] = seen
    assert peer == identity("billing")
    assert metadata["x-user"] == "ann"
    assert metadata["x-key-bin"] == b"\x01"
