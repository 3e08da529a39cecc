"""The way out: on SIGTERM first tell the mesh that this workload goes, then, a moment later, let the server stop.

Callers learn it from the control plane before connections are refused. The server's own handler runs unchanged, in the main
thread; a second SIGTERM does not wait.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxyless.runtime.inbound import MeshLike

__all__ = ["DRAIN_SECONDS", "drain_on_sigterm"]

log = logging.getLogger("proxyless")

LOOK_EVERY = 0.05  # seconds
DRAIN_SECONDS = 1.0  # between "this endpoint drains" and the end of the listening socket


def drain_on_sigterm(
    mesh: MeshLike,
    seconds: float = DRAIN_SECONDS,
    stay: Callable[[], bool] = lambda: False,
    patience: float = 0.0,
) -> None:
    """Put the drain before whatever handles SIGTERM now. No effect outside of the main thread.

    Args:
        stay: true as long as the drain should not begin yet, at most for `patience` seconds; see `runtime.reloads`.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _Drain(mesh, seconds, stay, patience, signal.getsignal(signal.SIGTERM)))


class _Drain:
    def __init__(self, mesh: MeshLike, seconds: float, stay: Callable[[], bool], patience: float, then: object) -> None:
        self._mesh, self._seconds, self._then = mesh, seconds, then
        self._stay, self._patience = stay, patience
        self._pid = os.getpid()
        self._draining = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._draining or self._pid != os.getpid():
            self._proceed(number, frame)
            return
        self._draining = True
        threading.Thread(target=self._drain, name="proxyless-drain", daemon=True).start()

    def _drain(self) -> None:
        end = time.monotonic() + self._patience
        while time.monotonic() < end and self._stay():
            time.sleep(LOOK_EVERY)
        until = time.monotonic() + self._seconds
        try:
            self._mesh.drain()
        except Exception:  # whatever fails here, the server must still stop
            log.exception("draining failed")
        time.sleep(max(0.0, until - time.monotonic()))
        os.kill(os.getpid(), signal.SIGTERM)  # the server's handler belongs to the main thread

    def _proceed(self, number: int, frame: FrameType | None) -> None:
        if callable(self._then):
            self._then(number, frame)
        elif self._then is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
