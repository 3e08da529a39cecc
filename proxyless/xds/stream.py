"""One bidirectional gRPC stream, kept open by one daemon thread: connect, back off, feed a sans-IO conversation.

Both ADS and workload registration are such a stream. The thread blocks in gRPC; requests leave through a bounded queue that
gRPC's own sender thread drains, which also serves as the clock for `Conversation.tick`.

Back-off follows gRFC A57: a stream that had an answer is re-opened at once, one that had none counts as a connectivity error
and waits. Each stream gets a fresh channel, so it uses the credentials of that moment.

Nothing starts in a constructor. A process that was forked from one with a running stream has none: `start` begins anew.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from proxyless.errors import ControlPlaneUnavailableError, ProxylessError
from proxyless.unix import sit_out

__all__ = ["ChannelSecurity", "Conversation", "Credentials", "StreamDriver", "StreamStatus", "open_channel"]

log = logging.getLogger("proxyless.xds")

# A57: 1 s, x1.6, +-20 %. The cap is Envoy's (30 s, not gRPC's 120 s): a mesh should join again soon after an outage.
FIRST_WAIT = 1.0
WAIT_FACTOR = 1.6
WAIT_JITTER = 0.2
LONGEST_WAIT = 30.0
# A stream that ended sooner is not opened again at once twice in a row: a server that answers and hangs up would be a loop.
SHORT_STREAM = 1.0

# Istio's largest pushes are some ten MB; gRPC's default of 4 MiB is too small for them.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
# Requests that the server has not read. Far more than any server leaves unread for a moment.
MAX_UNSENT = 256

_CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel dials now, whatever an earlier one has learned
    ("grpc.enable_http_proxy", 0),  # the control plane is never behind the proxy for the outside
    ("grpc.keepalive_time_ms", 300_000),  # as gRPC's own xDS client; servers refuse more frequent pings
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.enable_retries", 0),
)


class ChannelSecurity(NamedTuple):
    """How to secure one channel: `grpc.ChannelCredentials`, and channel options such as the expected server name."""

    credentials: Any
    options: Sequence[tuple[str, Any]] = ()


# Called for each new channel. Raises a ProxylessError (for example NoIdentityError) while there is nothing to connect with.
Credentials = Callable[[], ChannelSecurity]


def open_channel(target: str, credentials: Credentials | None) -> Any:
    """A `grpc.Channel` to ``unix:/path`` or ``host:port``; plain text without `credentials`, and always on a Unix socket."""
    import grpc

    if credentials is None or target.startswith("unix:"):
        return grpc.insecure_channel(target, options=_CHANNEL_OPTIONS)
    security = credentials()
    return grpc.secure_channel(target, security.credentials, options=(*_CHANNEL_OPTIONS, *security.options))


class Conversation(Protocol):
    """What is said on the stream. Calls never overlap; messages are serialised protobuf."""

    def opened(self) -> Iterable[bytes]:
        """A new stream: the first messages to send."""

    def received(self, raw: bytes) -> Iterable[bytes]:
        """A message arrived; returns what to send. Raising `ProxylessError` ends the stream and backs off."""

    def closed(self) -> None:
        """The stream is over, for whatever reason."""

    def next_tick(self) -> float | None:
        """Monotonic instant at which `tick` wants to be called; None: not needed."""

    def tick(self) -> Iterable[bytes]:
        """The instant has come; returns what to send."""


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """State of the connection, for people.

    Attributes:
        connected: the server has answered on the stream that is open now.
        since: POSIX time of the last change of `connected`.
        error: why the last stream ended; empty when none has failed.
        failures: attempts in a row without an answer.
    """

    target: str
    connected: bool
    since: float
    error: str = ""
    failures: int = 0

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.since))
        if self.connected:
            return f"connected to {self.target} since {since}"
        return f"not connected to {self.target} since {since}" + (f": {self.error}" if self.error else "")


class StreamDriver:
    """Keeps one stream of `method` to `target` open until closed.

    Args:
        what: name for logs and the thread, for example ``xds``.
        conversation: decides what is said.
        rng: uniform in [0, 1), for jitter.
    """

    def __init__(
        self,
        what: str,
        target: str,
        method: str,
        conversation: Conversation,
        *,
        credentials: Credentials | None = None,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._what, self._target, self._method = what, target, method
        self._conversation, self._credentials, self._rng = conversation, credentials, rng
        self.status = StreamStatus(target, False, time.time())
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._closing = threading.Event()
        self._hurry = threading.Event()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._outbox: _Outbox | None = None
        self._call: Any = None
        self._was_short = False

    def start(self) -> None:
        """Start the thread; no effect while it runs. After a fork the child starts from nothing."""
        if self._pid != os.getpid():
            self._reset()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=f"proxyless-{self._what}", daemon=True)
            self._thread.start()

    def close(self, timeout: float = 2.0) -> None:
        """End the stream and the thread; returns when it is gone or after `timeout` seconds. Never raises."""
        self._closing.set()
        self._hurry.set()
        if self._pid != os.getpid():
            return
        thread = self._thread
        self._hang_up()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def wake(self) -> None:
        """`Conversation.next_tick` has changed. Any thread; no effect without a stream."""
        outbox = self._outbox
        if outbox is not None and self._pid == os.getpid():
            outbox.wake()

    def reconnect(self) -> None:
        """End the stream that is open now, or the wait for the next attempt; a new stream follows at once. Any thread."""
        if self._pid == os.getpid():
            self._was_short = False  # asked for
            self._hurry.set()
            self._hang_up()

    def _hang_up(self) -> None:
        outbox, call = self._outbox, self._call
        if outbox is not None:
            outbox.close()
        if call is not None:
            call.cancel()

    # ------------------------------------------------------------------------------------------------------ the thread

    def _run(self) -> None:
        import tenacity

        while not self._closing.is_set():
            retrying = tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(ControlPlaneUnavailableError),
                wait=self._wait,
                sleep=self._pause,
                stop=tenacity.stop_when_event_set(self._closing),
                before_sleep=self._failed,
            )
            try:
                retrying(self._one_stream)
            except tenacity.RetryError:
                return  # closing
            except Exception:
                log.exception("%s: the thread goes on after an unexpected error", self._what)
                self._closing.wait(LONGEST_WAIT)

    def _wait(self, state: Any) -> float:
        """Seconds before the next attempt (A57)."""
        base = min(FIRST_WAIT * WAIT_FACTOR ** min(state.attempt_number - 1, 64), LONGEST_WAIT)
        return float(base * (1 + WAIT_JITTER * (2 * self._rng() - 1)))

    def _pause(self, seconds: float) -> None:
        kind, _, path = self._target.partition(":")
        sit_out(seconds, self._hurry.wait, path if kind == "unix" else "")

    def _failed(self, state: Any) -> None:
        error = str(state.outcome.exception())
        self._set_status(False, error, state.attempt_number)
        log.warning("%s: %s: %s; next attempt in %.1f s", self._what, self._target, error, state.next_action.sleep)

    def _set_status(self, connected: bool, error: str, failures: int = 0) -> None:
        since = self.status.since if self.status.connected == connected else time.time()
        self.status = StreamStatus(self._target, connected, since, error, failures)

    def _one_stream(self) -> None:
        """Open a stream and follow it to its end.

        Raises:
            ControlPlaneUnavailableError: it ended without an answer, too soon again, or because of what was said on it.
        """
        self._hurry.clear()
        if self._closing.is_set():
            return
        opened_at = time.monotonic()
        outbox = _Outbox(self._due, self._tick)
        try:
            answered, error = self._follow(outbox)
        finally:
            outbox.close()
            self._outbox = self._call = None
            with self._lock:
                self._conversation.closed()
        if self._closing.is_set():
            self._set_status(False, "closed")
            return
        short = time.monotonic() - opened_at < SHORT_STREAM
        hurried, self._was_short = short and self._was_short, short
        if not answered or hurried:
            raise ControlPlaneUnavailableError(error)
        self._set_status(False, error)
        log.warning("%s: %s: %s; connecting again", self._what, self._target, error)

    def _follow(self, outbox: _Outbox) -> tuple[bool, str]:
        """(the server answered at least once, why the stream ended)."""
        import grpc

        answered = False
        channel = self._channel()
        try:
            self._outbox = outbox
            with self._lock:
                for message in self._conversation.opened():
                    outbox.put(message)
            stream = channel.stream_stream(self._method, request_serializer=None, response_deserializer=None)
            self._call = call = stream(iter(outbox))
            if self._closing.is_set() or self._hurry.is_set():  # said before there was a call to cancel
                call.cancel()
            for raw in call:
                if not answered:
                    answered = True
                    self._set_status(True, "")
                    log.info("%s: connected to %s", self._what, self._target)
                self._take_in(raw, outbox)
            return answered, "the server closed the stream"
        except grpc.RpcError as error:
            return answered, outbox.overflow or _describe(error)
        finally:
            channel.close()

    def _channel(self) -> Any:
        try:
            return open_channel(self._target, self._credentials)
        except ProxylessError as error:
            raise ControlPlaneUnavailableError(str(error)) from error

    def _take_in(self, raw: bytes, outbox: _Outbox) -> None:
        try:
            with self._lock:
                answers = list(self._conversation.received(raw))
        except ControlPlaneUnavailableError:
            raise
        except Exception as error:
            if not isinstance(error, ProxylessError):
                log.exception("%s: a message from %s could not be handled", self._what, self._target)
            raise ControlPlaneUnavailableError(str(error)) from error
        for message in answers:
            outbox.put(message)
        if outbox.overflow:
            raise ControlPlaneUnavailableError(outbox.overflow)
        outbox.wake()

    def _due(self) -> float | None:
        with self._lock:
            return self._conversation.next_tick()

    def _tick(self) -> list[bytes]:
        try:
            with self._lock:
                return list(self._conversation.tick())
        except Exception:
            log.exception("%s: a timer failed", self._what)
            return []


class _Outbox:
    """What waits to be sent, as the iterator that gRPC's sender thread drains. While it waits, it keeps the time."""

    def __init__(self, due: Callable[[], float | None], tick: Callable[[], Iterable[bytes]]) -> None:
        self._due, self._tick = due, tick
        self._messages: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._woken = self._closed = False
        self.overflow = ""

    def put(self, message: bytes) -> None:
        with self._changed:
            if len(self._messages) >= MAX_UNSENT:
                self.overflow = f"the server leaves {MAX_UNSENT} requests unread"
                self._closed = True
            self._messages.append(message)
            self._changed.notify()

    def wake(self) -> None:
        """The next tick may be nearer now."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def __iter__(self) -> Iterator[bytes]:
        while not self._closed:
            due = self._due()
            message = self._next(None if due is None else due - time.monotonic())
            if message is not None:
                yield message
            elif due is not None and time.monotonic() >= due:
                yield from self._tick()

    def _next(self, timeout: float | None) -> bytes | None:
        """The next message; None after `timeout` seconds, a wake-up or the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._messages or self._woken or self._closed, timeout)
            self._woken = False
            return self._messages.popleft() if self._messages and not self._closed else None


def _describe(error: Any) -> str:
    """``UNAVAILABLE: connection refused``, in at most 500 characters."""
    details = str(error.details() or "").rpartition("last error: ")[2]
    return f"{error.code().name}: {details}"[:500]
