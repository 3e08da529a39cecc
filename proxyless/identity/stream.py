"""One FetchX509SVID stream: its own channel, its own reader thread, its events in a bounded queue (Workload API 5.2.1).

By what was recorded of a SPIRE agent: no deadline on the stream, no keepalive pings (they are punished), the request ended at
once, and a new connection for each stream, because the agent knows its caller by the process that connected.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field
from typing import Any

from proxyless.identity.endpoint import Endpoint
from proxyless.protos import FETCH_X509_SVID_METHOD

__all__ = ["METADATA", "Ended", "Received", "SvidStream"]

METADATA = (("workload.spiffe.io", "true"),)
MAX_RESPONSE_BYTES = 64 * 1024 * 1024

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.default_authority", "localhost"),
    # Without this gRPC remembers failures of an address across channels and adds a back-off of its own to ours.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)


@dataclass(frozen=True, slots=True)
class Received:
    """One response, serialised. It holds the private key, so `repr` does not show it (rule M-44)."""

    stream: SvidStream
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ended:
    """The stream is over. `code` is the name of a gRPC status, ``OK`` included."""

    stream: SvidStream
    code: str
    details: str


class SvidStream:
    """Opened when made; `close` ends it. Events go to `inbox`, in order, `Ended` last."""

    def __init__(self, endpoint: Endpoint, inbox: queue.Queue[Any]) -> None:
        import grpc

        self._inbox = inbox
        self._closed = threading.Event()
        self._channel = grpc.insecure_channel(endpoint.grpc_target, options=_OPTIONS)
        fetch = self._channel.unary_stream(FETCH_X509_SVID_METHOD, request_serializer=None, response_deserializer=None)
        self._call: Any = fetch(b"", metadata=METADATA)
        threading.Thread(target=self._read, name="proxyless-identity-stream", daemon=True).start()

    def close(self) -> None:
        """No event follows that a reader has not put yet."""
        self._closed.set()
        self._call.cancel()
        self._channel.close()

    def _read(self) -> None:
        import grpc

        try:
            for data in self._call:
                self._put(Received(self, data))
            self._put(Ended(self, "OK", "the stream ended"))
        except grpc.RpcError as error:
            self._put(Ended(self, error.code().name, str(error.details() or "")))
        except Exception as error:  # without an `Ended` the stream would count as open, and no other one be opened
            self._put(Ended(self, "UNKNOWN", f"{type(error).__name__}: {error}"))

    def _put(self, event: Received | Ended) -> None:
        while not self._closed.is_set():
            try:
                self._inbox.put(event, timeout=1.0)
                return
            except queue.Full:
                continue
