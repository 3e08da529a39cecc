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
from json.encoder import encode_basestring_ascii as quote
from typing import Literal

__all__ = ["AccessLog", "line", "open_access_log"]

log = logging.getLogger("proxyless.access_log")

MAX_PENDING = 10_000  # lines; some 8 MB
FLUSH_EVERY = 0.1  # seconds


class _Clock:
    """ISO 8601 with milliseconds in UTC; the part down to the second is made once a second."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = (0, "")

    def text(self, wall: float) -> str:
        second, known = self._last
        whole = int(wall)
        if whole != second:
            known = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
            self._last = (whole, known)
        return f"{known}.{int((wall - whole) * 1000):03d}Z"


_CLOCK = _Clock()


def line(
    direction: Literal["inbound", "outbound"],
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
    route: str = "",
    upstream_host: str = "",
    upstream_cluster: str = "",
    upstream_local: str = "",
    upstream_seconds: float | None = None,
    upstream_failure: str = "",
    downstream_local: str = "",
    downstream_remote: str = "",
    sni: str = "",
    termination: str = "",
    forwarded_for: str = "",
    user_agent: str = "",
    request_id: str = "",
    peer: str = "",
    policy: str = "",
    attempts: int = 0,
) -> str:
    """One event as one line without its newline.

    Args:
        start: wall clock, seconds.
        seconds: whole duration.
        status: 0 when there was no response.
        received, sent: bytes of bodies, as Envoy counts: `received` is the request's.
        attempts: of an outbound call; 0 is left out.
    """
    service_time = "null" if upstream_seconds is None else f'"{int(upstream_seconds * 1000)}"'
    tries = f',"attempts":{attempts}' if attempts else ""
    return (
        f'{{"start_time":"{_CLOCK.text(start)}","direction":"{direction}","method":{quote(method) if method else "null"},"path":{quote(path) if path else "null"},'
        f'"protocol":{quote(protocol) if protocol else "null"},"response_code":{status},"response_flags":{quote(flags)},'
        f'"response_code_details":{quote(details) if details else "null"},"connection_termination_details":{quote(termination) if termination else "null"},'
        f'"upstream_transport_failure_reason":{quote(upstream_failure) if upstream_failure else "null"},"bytes_received":{received},"bytes_sent":{sent},'
        f'"duration":{int(seconds * 1000)},"upstream_service_time":{service_time},"x_forwarded_for":{quote(forwarded_for) if forwarded_for else "null"},'
        f'"user_agent":{quote(user_agent) if user_agent else "null"},"request_id":{quote(request_id) if request_id else "null"},"authority":{quote(authority) if authority else "null"},'
        f'"upstream_host":{quote(upstream_host) if upstream_host else "null"},"upstream_cluster":{quote(upstream_cluster) if upstream_cluster else "null"},'
        f'"upstream_local_address":{quote(upstream_local) if upstream_local else "null"},"downstream_local_address":{quote(downstream_local) if downstream_local else "null"},'
        f'"downstream_remote_address":{quote(downstream_remote) if downstream_remote else "null"},"requested_server_name":{quote(sni) if sni else "null"},'
        f'"route_name":{quote(route) if route else "null"},"peer":{quote(peer) if peer else "null"},"policy":{quote(policy) if policy else "null"}{tries}}}'
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
        told = 0
        while not self._closing:
            self._wake.wait()
            self._wake.clear()
            with self._writing:
                self._drain()
            if self.dropped > told:
                log.warning("access log %s is too slow or broken: %d lines lost so far", self._target, self.dropped)
                told = self.dropped
            time.sleep(FLUSH_EVERY)  # lines of the next moments are written together

    def _drain(self) -> None:
        """Under `_writing`."""
        pending = self._pending
        while pending:
            batch = [pending.popleft() for _ in range(min(len(pending), 1000))]
            try:
                self._put(("\n".join(batch) + "\n").encode("ascii"))
            except OSError as error:
                self.dropped += len(batch)
                log.debug("access log %s cannot be written: %s", self._target, error)

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
            self._fd = os.open(self._target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            self._inode = os.fstat(self._fd).st_ino
        return self._fd


def open_access_log(target: str) -> AccessLog | None:
    """From the setting: ``off`` or empty gives None, so that a request pays one comparison."""
    return None if target in ("", "off") else AccessLog(target)
