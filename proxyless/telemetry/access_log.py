"""One line of JSON for each request, with Envoy's keys, inbound and outbound.

Lines are appended to a queue and written by one thread, so that a full pipe never blocks a request. What does not fit is
dropped and counted. Everything that came from outside is escaped: one event is one line (rule M-90).

Keys: Istio's JSON encoding of the default access log; beside them ours: `direction`, `peer` (verified SPIFFE ID of the other
end), `policy` (the rule that refused), `attempts`. What is not known is null; `response_flags` is ``-`` when there is none.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable
from json.encoder import encode_basestring_ascii as quote
from typing import Literal, NamedTuple

__all__ = ["AccessLog", "LoggedHeaders", "fixed", "line", "open_access_log"]

log = logging.getLogger("proxyless.access_log")

MAX_PENDING = 10_000  # lines; some 8 MB
FLUSH_EVERY = 0.1  # seconds
COMPLAIN_EVERY = 10.0  # seconds between complaints about lines that are lost


class LoggedHeaders(NamedTuple):
    """The request headers of a line, empty where there is none; a repeated one is joined by commas."""

    forwarded_for: str = ""
    user_agent: str = ""
    request_id: str = ""

    @classmethod
    def find(cls, raw: Iterable[tuple[bytes, bytes]]) -> LoggedHeaders:
        """From raw headers, in one pass that looks closer at no other."""
        found = ["", "", ""]
        for name, value in raw:
            at = _LENGTHS.get(len(name))
            if at is not None and name.lower() == _NAMES[at]:
                text = value.decode("latin-1").strip(" \t")
                found[at] = f"{found[at]}, {text}" if found[at] else text
        return cls(*found)


_NAMES = (b"x-forwarded-for", b"user-agent", b"x-request-id")
_LENGTHS = {len(name): at for at, name in enumerate(_NAMES)}
NO_HEADERS = LoggedHeaders()


class _Clock:
    """ISO 8601 with milliseconds in UTC; made once for each millisecond, the part down to the second once for each second."""

    __slots__ = ("_last", "_second")

    def __init__(self) -> None:
        self._last = self._second = (-1, "")  # pairs, so that another thread never sees one half

    def text(self, wall: float) -> str:
        tick = int(wall * 1000)
        last, text = self._last
        if tick != last:
            whole, thousandths = divmod(tick, 1000)
            second, known = self._second
            if whole != second:
                known = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
                self._second = (whole, known)
            text = f"{known}.{thousandths:03d}Z"
            self._last = (tick, text)
        return text


_CLOCK = _Clock()


def _json(text: str) -> str:
    return quote(text) if text else "null"


def fixed(
    direction: Literal["inbound", "outbound"],
    *,
    route: str = "",
    upstream_host: str = "",
    upstream_cluster: str = "",
    downstream_local: str = "",
    downstream_remote: str = "",
    sni: str = "",
    peer: str = "",
) -> str:
    """The part of a line that many requests share: those of a connection, or those to one endpoint by one route.

    Half of a line is in it. Made with it, a line costs 2 us instead of 4.
    """
    return (
        f'"direction":"{direction}","connection_termination_details":null,"route_name":{_json(route)},'
        f'"upstream_host":{_json(upstream_host)},"upstream_cluster":{_json(upstream_cluster)},"upstream_local_address":null,'
        f'"downstream_local_address":{_json(downstream_local)},"downstream_remote_address":{_json(downstream_remote)},'
        f'"requested_server_name":{_json(sni)},"peer":{_json(peer)}'
    )


def line(
    shared: str,
    start: float,
    seconds: float,
    *,
    method: str,
    path: str,
    protocol: str = "HTTP/1.1",
    authority: str = "",
    status: int = 0,
    flags: str = "-",
    details: str = "",
    received: int = 0,
    sent: int = 0,
    upstream_seconds: float | None = None,
    upstream_failure: str = "",
    headers: LoggedHeaders = NO_HEADERS,
    policy: str = "",
    attempts: int = 0,
) -> str:
    """One event as one line without its newline.

    Args:
        shared: made by `fixed`.
        start: wall clock, seconds.
        seconds: whole duration.
        status: 0 when there was no response.
        received, sent: bytes of bodies, as Envoy counts: `received` is the request's.
        attempts: of an outbound call; 0 is left out.
    """
    service_time = "null" if upstream_seconds is None else f'"{int(upstream_seconds * 1000)}"'
    forwarded_for, user_agent, request_id = headers
    tries = f',"attempts":{attempts}' if attempts else ""
    return (
        f'{{"start_time":"{_CLOCK.text(start)}","method":{quote(method) if method else "null"},'
        f'"path":{quote(path) if path else "null"},"protocol":{quote(protocol)},'
        f'"authority":{quote(authority) if authority else "null"},"response_code":{status},"response_flags":{quote(flags)},'
        f'"response_code_details":{quote(details) if details else "null"},'
        f'"upstream_transport_failure_reason":{quote(upstream_failure) if upstream_failure else "null"},'
        f'"bytes_received":{received},"bytes_sent":{sent},"duration":{int(seconds * 1000)},'
        f'"upstream_service_time":{service_time},"x_forwarded_for":{quote(forwarded_for) if forwarded_for else "null"},'
        f'"user_agent":{quote(user_agent) if user_agent else "null"},"request_id":{quote(request_id) if request_id else "null"},'
        f'{shared},"policy":{quote(policy) if policy else "null"}{tries}}}'
    )


class AccessLog:
    """Sink of access log lines. Any thread; after a fork the child starts with an empty queue and its own thread.

    Args:
        target: ``stdout``, ``stderr`` or the path of a file, which is opened for appending and opened anew when it was
            moved away (logrotate).
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._pending: deque[str] = deque()
        self._wake = threading.Event()
        self._writing = threading.Lock()
        self._pid = 0
        self._fd = -1
        self._inode = 0
        self._closing = False
        self._error = ""
        self.dropped = 0

    def write(self, text: str) -> None:
        """Queue one line; never blocks and never raises."""
        if self._pid != os.getpid():
            self._start()
        pending = self._pending
        if len(pending) >= MAX_PENDING:
            self.dropped += 1
            return
        pending.append(text)
        if not self._wake.is_set():
            self._wake.set()

    def probe(self) -> None:
        """Say now if lines cannot be written, not with the first request."""
        try:
            with self._writing:
                self._descriptor()
        except OSError as error:
            log.error("access log %s cannot be written: %s", self._target, error.strerror)

    def flush(self, timeout: float = 2.0) -> None:
        """Write everything queued so far from this thread; gives up when the sink blocks another one for `timeout` seconds."""
        if self._writing.acquire(timeout=timeout):
            try:
                self._drain()
            finally:
                self._writing.release()

    def close(self) -> None:
        """Write what is queued and end the thread. A later `write` starts again."""
        if self._pid == os.getpid():
            self.flush()
            self._closing = True
            self._wake.set()
            self._pid = 0

    def _start(self) -> None:
        if self._pid:  # a fork: the parent writes what it had queued, and its thread may have held the lock
            self._pending.clear()
            self._wake, self._writing = threading.Event(), threading.Lock()
        else:
            atexit.register(self.close)
        self._pid, self._closing = os.getpid(), False
        threading.Thread(target=self._run, name="proxyless-access-log", daemon=True).start()

    def _run(self) -> None:
        told, complain_at = 0, 0.0
        while not self._closing:
            self._wake.wait()
            self._wake.clear()
            with self._writing:
                self._drain()
            if self.dropped > told and time.monotonic() >= complain_at:
                why = self._error or "it is too slow"
                log.warning("access log %s: %s; %d lines lost so far", self._target, why, self.dropped)
                told, complain_at = self.dropped, time.monotonic() + COMPLAIN_EVERY
            time.sleep(FLUSH_EVERY)  # lines of the next moments are written together

    def _drain(self) -> None:
        """Under `_writing`."""
        pending = self._pending
        while pending:
            batch = [pending.popleft() for _ in range(min(len(pending), 1000))]
            try:
                self._put(("\n".join(batch) + "\n").encode("ascii"))
                self._error = ""
            except (OSError, ValueError) as error:  # the latter: a standard stream that was closed
                self.dropped += len(batch)
                self._error = getattr(error, "strerror", "") or str(error)

    def _put(self, data: bytes) -> None:
        fd = self._descriptor()
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def _descriptor(self) -> int:
        if self._target in ("stdout", "stderr"):
            return (sys.__stdout__ if self._target == "stdout" else sys.__stderr__).fileno()  # type: ignore[union-attr]  # None only under pythonw
        try:
            inode = os.stat(self._target).st_ino
        except FileNotFoundError:
            inode = 0
        if self._fd < 0 or inode != self._inode:
            if self._fd >= 0:
                os.close(self._fd)
            # A pipe that nobody reads is an error at once and not a wait without end.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            self._fd = os.open(self._target, flags, 0o640)
            os.set_blocking(self._fd, True)
            self._inode = os.fstat(self._fd).st_ino
        return self._fd


def open_access_log(target: str) -> AccessLog | None:
    """From the setting: ``off`` or empty gives None, so that a request pays one comparison."""
    return None if target in ("", "off") else AccessLog(target)
