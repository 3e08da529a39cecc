"""The mesh's policy before every method of a server, and its metrics and log line after it.

A call is judged with the same gate as HTTP, before its message is parsed. All kinds of methods are guarded, and unknown ones too: who is
denied does not learn which methods exist. What grpcio does not tell a server is the authority that the caller named; a policy that asks
for it cannot be evaluated, and so it denies.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from proxyless.core.replies import http_to_grpc_status
from proxyless.core.request import Request
from proxyless.errors import ProxylessError
from proxyless.grpc.front import Accepted, accepted
from proxyless.grpc.wire import GRPC_REQUEST, status_code, to_wire
from proxyless.runtime.inbound import refusal

if TYPE_CHECKING:
    from proxyless.runtime.exchange import InboundExchange
    from proxyless.runtime.inbound import InboundGate

__all__ = ["Guard"]


class HostUnknownError(ProxylessError):
    """A policy asks for the host of a gRPC call. Its name is what the log of the denial shows."""


class _Call(Request):
    """The authority is not known: whoever asks for it must not decide by a wrong answer."""

    __slots__ = ()

    def values(self, name: str) -> Sequence[str]:
        if name in (":authority", "host"):
            log.warning("a policy asks for the host of %a, which grpc.aio does not tell a server: it denies", self.path)
            raise HostUnknownError(name)
        return super().values(name)


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpcio ships no types
    """The outermost interceptor of a server."""

    def __init__(self, gate: InboundGate) -> None:
        self._gate = gate

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        return _guarded(self._gate, handler_call_details.method, _UNKNOWN if handler is None else handler)


async def _unimplemented(_: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


log = logging.getLogger("proxyless.grpc")

_UNPARSABLE = object()
_BAD_MESSAGE = grpc.StatusCode.INTERNAL, "Exception deserializing request!"  # as grpcio says it
_UNKNOWN = grpc.stream_stream_rpc_method_handler(_unimplemented)


def _guarded(gate: InboundGate, method: str, handler: Any) -> Any:
    """The same handler behind the gate. Messages of a unary request are parsed after the verdict."""
    streams_out = handler.response_streaming
    if handler.request_streaming:
        behaviour = handler.stream_stream if streams_out else handler.stream_unary
        parse = None
    else:
        behaviour = handler.unary_stream if streams_out else handler.unary_unary
        parse = handler.request_deserializer
    is_async = inspect.iscoroutinefunction(behaviour) or inspect.isasyncgenfunction(behaviour)
    if streams_out:
        serialize, wrapper = None, _async_stream if is_async else _sync_stream
    else:
        serialize, wrapper = handler.response_serializer, _async_unary if is_async else _sync_unary
    guarded = wrapper(_Method(gate, method, behaviour, parse, serialize))
    make = _MAKERS[bool(handler.request_streaming), bool(streams_out)]
    return make(
        guarded,
        handler.request_deserializer if handler.request_streaming else None,
        handler.response_serializer if streams_out else None,
    )


_MAKERS: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class _Method:
    """One method of a server as the wrappers use it. `parse`, `serialize`: None where grpcio does it, or nobody."""

    __slots__ = ("behaviour", "gate", "name", "parse", "serialize")

    def __init__(self, gate: InboundGate, name: str, behaviour: Any, parse: Any, serialize: Any) -> None:
        self.gate, self.name, self.behaviour, self.parse, self.serialize = gate, name, behaviour, parse, serialize

    def begin(self, context: Any) -> _Judged:
        """Judge a call. Never raises."""
        found = accepted(context.peer())
        if found is None:
            log.info("call of %a refused: it did not come through the port, or its connection has ended", self.name)
            return _Judged(None, None)
        path, _, query = self.name.partition("?")
        connection = found.connection
        request = _Call(
            "POST",
            path,
            [*GRPC_REQUEST, *to_wire(context.invocation_metadata())],
            authority="",
            scheme="https" if connection.peer.tls else "http",
            query=query,
            destination=connection.info.destination,
            sni=connection.peer.sni,
        )
        exchange = self.gate.begin(connection, request, "2")
        if exchange.admission.allowed:
            if exchange.admission.request.path != path:
                # grpcio has chosen the method by the path as sent, so no other one can be meant.
                exchange.refuse(refusal(request, 400, "path_normalization_failed"))
            elif found.expired:
                exchange.refuse(refusal(request, 503, "connection_expired"))
        return _Judged(found, exchange)

    def parsed(self, judged: _Judged, request: Any) -> Any:
        """The message, or `_UNPARSABLE`."""
        if isinstance(request, bytes):
            judged.received(len(request))
        if self.parse is None:
            return request
        try:
            return self.parse(request)
        except Exception:
            log.exception("%s: a message cannot be parsed", self.name)
            return _UNPARSABLE

    def serialized(self, judged: _Judged, response: Any) -> Any:
        message = response if self.serialize is None else self.serialize(response)
        if isinstance(message, bytes):
            judged.sent(len(message))
        return message


class _Judged:
    """A call that was judged: exactly one of `refusal`, and `end` after the method, follows."""

    __slots__ = ("_accepted", "_exchange")

    def __init__(self, found: Accepted | None, exchange: InboundExchange | None) -> None:
        self._accepted, self._exchange = found, exchange
        if found is not None:
            found.enter()

    def refusal(self) -> tuple[grpc.StatusCode, str] | None:
        """Status and message for a call that must not reach the method. It is over then."""
        exchange = self._exchange
        if exchange is None:  # somebody of our own user who did not come through the port
            return grpc.StatusCode.PERMISSION_DENIED, "RBAC: access denied"
        admission = exchange.admission
        if admission.allowed:
            return None
        code = status_code(http_to_grpc_status(admission.status))
        self._finish(exchange, code)
        return code, admission.body.decode("utf-8", "replace")

    def received(self, size: int) -> None:
        if self._exchange is not None:
            self._exchange.received += size

    def sent(self, size: int) -> None:
        if self._exchange is not None:
            self._exchange.sent += size

    def end(self, code: Any, error: BaseException | None) -> None:
        """The method returned or raised. `code`: what it has set, None for OK."""
        exchange = self._exchange
        if exchange is None:
            return
        number = _code(code)
        if number is grpc.StatusCode.OK and error is not None:
            exchange.failed(error)
            left = isinstance(error, (asyncio.CancelledError, GeneratorExit))
            number = grpc.StatusCode.CANCELLED if left else grpc.StatusCode.UNKNOWN
        self._finish(exchange, number)

    def _finish(self, exchange: InboundExchange, code: grpc.StatusCode) -> None:
        """A gRPC answer is HTTP 200 whatever came of the call."""
        exchange.started(200, [(b"grpc-status", b"%d" % code.value[0])])
        exchange.finish()
        exchange.end()
        if self._accepted is not None:
            self._accepted.leave()


def _code(code: Any) -> grpc.StatusCode:
    if isinstance(code, grpc.StatusCode):
        return code
    return status_code(code) if isinstance(code, int) else grpc.StatusCode.OK


# ---------------------------------------------------------------------------------------------------------- the four ways


def _async_unary(method: _Method) -> Any:
    async def guarded(request: Any, context: Any) -> Any:
        judged = method.begin(context)
        refused = judged.refusal()
        if refused is not None:
            await context.abort(*refused)
        error: BaseException | None = None
        try:
            return await _answer(method, judged, request, context)
        except BaseException as raised:
            error = raised
            raise
        finally:
            judged.end(context.code(), error)

    return guarded


async def _answer(method: _Method, judged: _Judged, request: Any, context: Any) -> Any:
    message = method.parsed(judged, request)
    if message is _UNPARSABLE:
        await context.abort(*_BAD_MESSAGE)
    return method.serialized(judged, await method.behaviour(message, context))


def _async_stream(method: _Method) -> Any:
    async def guarded(request: Any, context: Any) -> None:
        judged = method.begin(context)
        refused = judged.refusal()
        if refused is not None:
            await context.abort(*refused)
        error: BaseException | None = None
        try:
            message = method.parsed(judged, request)
            if message is _UNPARSABLE:
                await context.abort(*_BAD_MESSAGE)
            result = method.behaviour(message, context)
            if inspect.isasyncgen(result):
                async for each in result:
                    await context.write(each)
            else:  # it writes by itself
                await result
        except BaseException as raised:
            error = raised
            raise
        finally:
            judged.end(context.code(), error)

    return guarded


class _Watched:
    """The context of a method in a thread, which cannot be asked for the status that was set."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self.status: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def set_code(self, code: Any) -> None:
        self.status = code
        self._context.set_code(code)

    def abort(self, code: Any, details: str = "", trailing_metadata: Any = ()) -> None:
        self.status = code
        self._context.abort(code, details, trailing_metadata)


def _sync_unary(method: _Method) -> Any:
    def guarded(request: Any, context: Any) -> Any:
        judged = method.begin(context)
        refused = judged.refusal()
        if refused is not None:
            context.abort(*refused)
        watched = _Watched(context)
        error: BaseException | None = None
        try:
            message = method.parsed(judged, request)
            if message is _UNPARSABLE:
                watched.abort(*_BAD_MESSAGE)
            return method.serialized(judged, method.behaviour(message, watched))
        except BaseException as raised:
            error = raised
            raise
        finally:
            judged.end(watched.status, error)

    return guarded


def _sync_stream(method: _Method) -> Any:
    def guarded(request: Any, context: Any) -> Iterator[Any]:
        judged = method.begin(context)
        refused = judged.refusal()
        if refused is not None:
            context.abort(*refused)
        watched = _Watched(context)
        error: BaseException | None = None
        try:
            message = method.parsed(judged, request)
            if message is _UNPARSABLE:
                watched.abort(*_BAD_MESSAGE)
            yield from method.behaviour(message, watched)
        except BaseException as raised:
            error = raised
            raise
        finally:
            judged.end(watched.status, error)

    return guarded
