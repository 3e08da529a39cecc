"""Errors that are ours and grpcio's at once, and which status a failure has.

    except grpc.aio.AioRpcError          code that knew nothing of a mesh goes on working
    except ConnectFailureError as e:     e.flag, e.cluster, e.endpoint, e.attempts; `e.response_details` are Envoy's details

Status codes are Envoy's, with two exceptions. The caller's own deadline, and `max_stream_duration`, are DEADLINE_EXCEEDED; a route's or
an attempt's timeout is UNAVAILABLE. A missing route is UNAVAILABLE as in gRFC A28, not UNIMPLEMENTED, which would blame the server.
"""

from __future__ import annotations

from typing import Any

import grpc

from proxyless.core.actions import CallRecord, Fail, Reply
from proxyless.core.replies import http_to_grpc_status
from proxyless.errors import LocalReplyError, RequestError
from proxyless.grpc.wire import status_code, status_of_reply

MAX_DURATION = "max_duration_timeout"  # response code details, as core.failures has them

__all__ = ["error_of_fail", "error_of_reply", "rpc_error"]


class _MeshRpcError(grpc.aio.AioRpcError):  # type: ignore[misc]  # grpcio ships no types
    """Mixed with a class of `proxyless.errors`, whose attributes it takes over; `details()` is grpcio's."""

    def __init__(self, code: grpc.StatusCode, error: RequestError) -> None:
        grpc.RpcError.__init__(self, str(error))
        self.__dict__.update({name: value for name, value in vars(error).items() if name != "details"})
        self.response_details = error.details
        self._error, self._mesh_code = error, code

    def code(self) -> grpc.StatusCode:
        return self._mesh_code

    def details(self) -> str:
        return str(self._error)

    def initial_metadata(self) -> Any:
        return grpc.aio.Metadata()

    def trailing_metadata(self) -> Any:
        return grpc.aio.Metadata()

    def debug_error_string(self) -> str:
        error = self._error
        return (
            f"{error.flag} {error.details} cluster={error.cluster} endpoint={error.endpoint} attempts={error.attempts}"
        )

    def __str__(self) -> str:
        return f"{self._mesh_code.name}: {self._error}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def __reduce__(self) -> Any:
        return rpc_error, (self._mesh_code, self._error)


_classes: dict[type[RequestError], type[_MeshRpcError]] = {}


def rpc_error(code: grpc.StatusCode, error: RequestError) -> _MeshRpcError:
    """`error` as an error of grpcio too."""
    ours = type(error)
    both = _classes.get(ours)
    if both is None:
        attributes = {"__module__": ours.__module__, "__doc__": ours.__doc__}
        both = _classes[ours] = type(ours.__name__, (_MeshRpcError, ours), attributes)
    return both(code, error)


def error_of_fail(fail: Fail, record: CallRecord, late: bool) -> _MeshRpcError:
    """`late`: the caller's own time is over."""
    if late or fail.details == MAX_DURATION:
        code = grpc.StatusCode.DEADLINE_EXCEEDED
    else:
        code = status_code(http_to_grpc_status(fail.status))
    return rpc_error(code, fail.to_error(record))


def error_of_reply(reply: Reply, record: CallRecord) -> _MeshRpcError:
    """The mesh answered itself."""
    code, message = status_of_reply(reply.headers)
    if reply.flag.startswith("NR"):
        code = grpc.StatusCode.UNAVAILABLE
    if not message:
        message = f"the mesh answered: {reply.details}"
    error = LocalReplyError(
        message,
        flag=reply.flag,
        details=reply.details,
        status=record.status,
        cluster=record.cluster,
        endpoint=str(record.endpoint.address) if record.endpoint is not None else "",
        attempts=record.attempts,
    )
    return rpc_error(code, error)
