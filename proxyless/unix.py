"""Servers behind Unix sockets: knowing at once that one has started again.

A back-off protects a server from clients it cannot serve yet. A server that has just bound its socket can; waiting longer
keeps a process on an old configuration, or on an identity whose issuer is gone, for no reason.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

__all__ = ["sit_out"]

LOOK_EVERY = 0.25  # seconds between looks at the socket file

_Stamp = tuple[int, int, int] | None


def sit_out(seconds: float, wait: Callable[[float], object], path: str) -> None:
    """Wait for `seconds`; less when a server binds the socket at `path` anew, or when `wait` returns something true.

    Args:
        wait: waits for the seconds it is given.
        path: of the socket; empty when the server has none.
    """
    if not path:
        wait(seconds)
        return
    end = time.monotonic() + seconds
    before = _stamp(path)
    while (left := end - time.monotonic()) > 0:
        if wait(min(left, LOOK_EVERY)):
            return
        now = _stamp(path)
        if now is not None and now != before:
            return
        before = now


def _stamp(path: str) -> _Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns
