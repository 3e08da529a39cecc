"""Registration of this workload with the embedded control plane: one stream for each worker process.

While the stream is open and the last message said READY, the workload is an endpoint of its service. `DRAINING` takes it out
of the rotation, closing the stream removes it. The server answers every message; a refusal names its reason, and the
workload asks again with back-off, since an operator may allow it meanwhile.
"""

from __future__ import annotations

import logging
import os
import random
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from proxyless import protos
from proxyless.errors import ControlPlaneUnavailableError
from proxyless.xds.stream import Credentials, StreamDriver, StreamStatus

__all__ = ["Readiness", "RegistrationStatus", "Workload", "WorkloadRegistration"]

log = logging.getLogger("proxyless.registration")

MAX_IDENTITY = 2048  # SPIFFE-ID section 2.3


class Readiness(IntEnum):
    """proxyless.registration.v1.Readiness."""

    NOT_READY = 1
    READY = 2
    DRAINING = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is registered.

    Attributes:
        service: host of the service as callers know it; short names are allowed.
        port: port that this process listens on.
        address: address that callers use.
    """

    service: str
    port: int
    address: str = "127.0.0.1"
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RegistrationStatus:
    """State of the registration. `refusal` is the server's reason, empty when it did not refuse; `acknowledged`: it knows the
    readiness; `identity`: whom it takes us for, empty when it has not said."""

    stream: StreamStatus
    service: str
    registered: bool
    readiness: Readiness
    acknowledged: bool
    refusal: str
    identity: str

    def __str__(self) -> str:
        if self.refusal:
            return f"registration as {self.service} refused: {self.refusal}"
        if self.registered:
            return f"registered as {self.service}: {self.readiness.name}"
        return f"not registered as {self.service}: {self.stream}"


class WorkloadRegistration:
    """Keeps a workload registered, from `start` to `close`.

    Args:
        target: ``unix:/path`` or ``host:port`` of the control plane.
        workload: what to register.
        readiness: state to begin with.
        credentials: secures TCP connections.
    """

    def __init__(
        self,
        target: str,
        workload: Workload,
        *,
        readiness: Readiness = Readiness.NOT_READY,
        credentials: Credentials | None = None,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._target, self._credentials, self._rng = target, credentials, rng
        self._workload, self._first_readiness = workload, readiness
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._conversation = _Conversation(self._workload, self._first_readiness)
        self._driver = StreamDriver(
            "registration",
            self._target,
            protos.REGISTER_METHOD,
            self._conversation,
            credentials=self._credentials,
            rng=self._rng,
        )

    def start(self) -> None:
        """Start the thread; no effect while it runs. A forked child registers for itself."""
        if self._pid != os.getpid():
            self._reset()
        self._driver.start()

    def set_readiness(self, readiness: Readiness) -> None:
        """Tell the control plane, now or as soon as there is a stream. Any thread; does not block."""
        self._conversation.change(readiness)
        self._driver.wake()

    def reconnect(self) -> None:
        """Open a new stream now instead of waiting for the next attempt. Any thread."""
        self._driver.reconnect()

    def drain(self, timeout: float) -> bool:
        """Say DRAINING and wait until the server has taken note, at most `timeout` seconds; True when it has.

        From then on no new configuration names this endpoint. Returns at once when there is no registration to end.
        """
        talk = self._conversation
        self.set_readiness(Readiness.DRAINING)
        return talk.registered and talk.acknowledged.wait(timeout)

    def close(self, timeout: float = 2.0) -> None:
        """End the stream: with the last one for its address the endpoint is gone."""
        self._driver.close(timeout)

    @property
    def status(self) -> RegistrationStatus:
        """Any thread."""
        talk = self._conversation
        return RegistrationStatus(
            self._driver.status,
            self._workload.service,
            talk.registered,
            talk.readiness,
            talk.acknowledged.is_set(),
            talk.refusal,
            talk.identity,
        )


class _Conversation:
    """What was said and answered on the current stream.

    `_sent` is the state of the last message, None without a stream; `_unanswered` counts messages, which the server answers
    in order; `acknowledged` is set while the server knows the current state, and when there is no stream to wait for.
    """

    def __init__(self, workload: Workload, readiness: Readiness) -> None:
        self._workload = workload
        self._lock = threading.Lock()
        self._sent: Readiness | None = None
        self._unanswered = 0
        self.readiness = readiness
        self.registered = False
        self.refusal = self.identity = ""
        self.acknowledged = threading.Event()

    def change(self, readiness: Readiness) -> None:
        """Remember the state; `tick` sends it."""
        with self._lock:
            if readiness != self.readiness:
                self.readiness = readiness
                self.acknowledged.clear()

    def opened(self) -> Iterable[bytes]:
        with self._lock:
            self._unanswered = 0
            return [self._message()]

    def received(self, raw: bytes) -> Iterable[bytes]:
        answer = _parse_answer(raw)
        self.identity = answer.identity[:MAX_IDENTITY]
        if not answer.accepted:
            reason = answer.reason[:500] or "no reason given"
            if reason != self.refusal:
                log.error("registration as %s was refused: %s", self._workload.service, reason)
            self.registered, self.refusal = False, reason
            raise ControlPlaneUnavailableError(f"registration as {self._workload.service} refused: {reason}")
        if not self.registered:
            log.info("registered as %s", self._workload.service)
        self.registered, self.refusal = True, ""
        with self._lock:
            self._unanswered = max(0, self._unanswered - 1)
            if not self._unanswered and self._sent == self.readiness:
                self.acknowledged.set()
        return ()

    def closed(self) -> None:
        with self._lock:
            self._sent, self.registered = None, False
            self.acknowledged.set()

    def next_tick(self) -> float | None:
        return 0.0 if self._sent not in (None, self.readiness) else None

    def tick(self) -> Iterable[bytes]:
        with self._lock:
            return [self._message()]

    def _message(self) -> bytes:
        """The whole state; later messages replace earlier ones. Under `_lock`."""
        self._sent = self.readiness
        self._unanswered += 1
        self.acknowledged.clear()
        workload = self._workload
        message = protos.message("proxyless.registration.v1.Workload")(
            service=workload.service,
            port=workload.port,
            address=workload.address,
            labels=dict(workload.labels),
            readiness=int(self.readiness),
        )
        return bytes(message.SerializeToString())


def _parse_answer(raw: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return protos.message("proxyless.registration.v1.Registered").FromString(raw)
    except DecodeError as error:
        raise ControlPlaneUnavailableError(f"sent no Registered message: {error}") from None
