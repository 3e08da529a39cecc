"""What `channel.unary_unary(...)` and its three sisters return to a generated stub."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import grpc

from proxyless.errors import UnsupportedError
from proxyless.grpc.call import UnaryCall
from proxyless.grpc.wire import Metadata, check_metadata

__all__ = ["Begin", "Invocation", "Streaming", "UnaryUnary"]

Serializer = Callable[[Any], bytes] | None
Deserializer = Callable[[bytes], Any] | None


class Invocation:
    """One use of a method. `began`: monotonic."""

    __slots__ = ("_callable", "_request", "began", "compression", "metadata", "timeout")

    def __init__(
        self,
        of: UnaryUnary,
        request: Any,
        timeout: float | None,
        metadata: Metadata | None,
        compression: grpc.Compression | None,
    ) -> None:
        self._callable, self._request = of, request
        self.timeout, self.metadata, self.compression = timeout, metadata, compression
        self.began = time.monotonic()

    @property
    def method(self) -> str:
        return self._callable.method

    def late(self) -> bool:
        """The caller's own time is over."""
        return self.timeout is not None and time.monotonic() >= self.began + self.timeout

    def serialized(self) -> bytes:
        serialize = self._callable.serialize
        return self._request if serialize is None else serialize(self._request)

    def deserialized(self, message: bytes) -> Any:
        deserialize = self._callable.deserialize
        return message if deserialize is None else deserialize(message)


class Begin(Protocol):
    def __call__(self, invocation: Invocation) -> UnaryCall: ...


class UnaryUnary(grpc.aio.UnaryUnaryMultiCallable):  # type: ignore[misc]  # grpcio ships no types
    """A unary method."""

    def __init__(self, begin: Begin, method: str, serialize: Serializer, deserialize: Deserializer) -> None:
        self._begin, self.method = begin, method
        self.serialize, self.deserialize = serialize, deserialize

    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> UnaryCall:
        """Begin the call; await what is returned.

        Raises:
            UnsupportedError: call credentials or `wait_for_ready` were asked for.
            ValueError: `metadata` is not legal.
        """
        if credentials is not None:
            raise UnsupportedError(f"{self.method}: call credentials do not exist in a mesh channel yet: send metadata")
        if wait_for_ready:
            raise UnsupportedError(f"{self.method}: wait_for_ready does not exist in a mesh channel yet: use retries")
        check_metadata(metadata)
        return self._begin(Invocation(self, request, timeout, metadata, compression))


class Streaming:
    """A method of another kind: stubs may have it, nobody may call it."""

    def __init__(self, method: str, kind: str) -> None:
        self._method, self._kind = method, kind

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise UnsupportedError(
            f"{self._method}: {self._kind} calls do not exist in a mesh channel yet, only unary ones"
        )
