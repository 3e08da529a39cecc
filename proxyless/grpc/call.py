"""One unary call as generated stubs know it: awaitable, cancellable, with status and metadata."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import grpc

__all__ = ["Result", "UnaryCall"]


class Result:
    """What a call came to. `error` is raised to who awaits the message; code and details then are the error's."""

    __slots__ = ("code", "details", "error", "initial", "message", "trailing")

    def __init__(
        self,
        code: grpc.StatusCode,
        details: str | None,
        initial: Any,
        trailing: Any,
        message: Any = None,
        error: BaseException | None = None,
    ) -> None:
        self.code, self.details, self.initial, self.trailing = code, details, initial, trailing
        self.message, self.error = message, error

    @classmethod
    def of_error(cls, error: BaseException) -> Result:
        if isinstance(error, grpc.aio.AioRpcError):
            return cls(error.code(), error.details(), error.initial_metadata(), error.trailing_metadata(), None, error)
        empty = grpc.aio.Metadata()
        if isinstance(error, asyncio.CancelledError):
            return cls(grpc.StatusCode.CANCELLED, "Locally cancelled by application!", empty, empty, None, error)
        return cls(grpc.StatusCode.INTERNAL, str(error), empty, empty, None, error)


class UnaryCall(grpc.aio.UnaryUnaryCall):  # type: ignore[misc]  # grpcio ships no types
    """A task that runs `work`. Its exceptions are kept for who asks, so a call that nobody awaits says nothing."""

    def __init__(self, work: Coroutine[Any, Any, Result], timeout: float | None) -> None:
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self.task = asyncio.get_running_loop().create_task(_kept(work))

    def __await__(self) -> Generator[Any, None, Any]:
        result = yield from self.task
        if result.error is not None:
            raise result.error
        return result.message

    def cancelled(self) -> bool:
        return self.task.cancelled()

    def done(self) -> bool:
        return self.task.done()

    def cancel(self) -> bool:
        return self.task.cancel()

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.task.add_done_callback(lambda _: callback(self))

    async def initial_metadata(self) -> Any:
        return (await self._result()).initial

    async def trailing_metadata(self) -> Any:
        return (await self._result()).trailing

    async def code(self) -> grpc.StatusCode:
        return (await self._result()).code

    async def details(self) -> str | None:
        return (await self._result()).details

    async def wait_for_connection(self) -> None:
        result = await self._result()
        if result.error is not None:
            raise result.error

    async def _result(self) -> Result:
        """Asking for the status of a call and giving up does not cancel the call."""
        await asyncio.wait((self.task,))
        return Result.of_error(asyncio.CancelledError()) if self.task.cancelled() else self.task.result()


async def _kept(work: Coroutine[Any, Any, Result]) -> Result:
    try:
        return await work
    except Exception as error:  # whatever it is, it is for who awaits the call
        return Result.of_error(error)
