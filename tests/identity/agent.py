"""A scripted Workload API: plays what was recorded of a SPIRE agent, good and bad."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from proxyless import protos
from proxyless.identity.svid import X509Svid


@dataclass(frozen=True)
class End:
    """Ends the stream with a status; `code` OK ends it without an error."""

    code: str
    details: str = ""


@dataclass
class Agent:
    """Serves one socket. Each call gets the events of `push` in order; `answers` are given to new calls first."""

    path: Path
    answers: list[bytes | End] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._streams: list[queue.Queue[bytes | End]] = []
        self._lock = threading.Lock()
        self._server: grpc.Server | None = None

    @property
    def address(self) -> str:
        return f"unix:{self.path}"

    def start(self) -> Agent:
        self._server = grpc.server(futures.ThreadPoolExecutor(8))
        handler = grpc.unary_stream_rpc_method_handler(self._fetch)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", {"FetchX509SVID": handler}),)
        )
        self._server.add_insecure_port(self.address)
        self._server.start()
        return self

    def stop(self) -> None:
        self.push(End("UNAVAILABLE", "agent stopped"))
        assert self._server is not None
        self._server.stop(grace=1).wait(5)

    def push(self, *events: bytes | End) -> None:
        """To the streams that are open."""
        with self._lock:
            for stream in self._streams:
                for event in events:
                    stream.put(event)

    def then(self, *events: bytes | End) -> None:
        """Push, and answer later calls with the last event."""
        self.answers = [events[-1]]
        self.push(*events)

    def _fetch(self, request: bytes, context: Any) -> Iterator[bytes]:
        stream: queue.Queue[bytes | End] = queue.Queue()
        with self._lock:
            self.calls.append(
                {"request": request, "metadata": context.invocation_metadata(), "left": context.time_remaining()}
            )
            for event in self.answers:
                stream.put(event)
            self._streams.append(stream)
        context.add_callback(lambda: stream.put(End("OK")))
        while True:
            event = stream.get()
            if isinstance(event, End):
                with self._lock:
                    self._streams.remove(stream)
                if event.code != "OK":
                    context.abort(grpc.StatusCode[event.code], event.details)
                return
            yield event


def response(
    *svids: X509Svid,
    anchors: bytes,
    federated: dict[str, bytes] | None = None,
    crl: tuple[bytes, ...] = (),
    **changes: Any,
) -> bytes:
    """A serialised X509SVIDResponse; `changes` overwrite fields of the first SVID."""
    message = protos.message("X509SVIDResponse")(crl=crl, federated_bundles=federated or {})
    for svid in svids:
        message.svids.add(
            spiffe_id=str(svid.spiffe_id),
            x509_svid=b"".join(svid.chain),
            x509_svid_key=svid.private_key,
            bundle=anchors,
            hint=svid.hint,
        )
    for name, value in changes.items():
        setattr(message.svids[0], name, value)
    data: bytes = message.SerializeToString()
    return data
