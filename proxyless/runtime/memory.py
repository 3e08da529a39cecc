"""Memory that a process would keep for nothing once it has started.

- glibc gives almost every thread an arena of its own and never hands freed pages of an arena back by itself. Our threads
  (gRPC's among them) hold the GIL when they allocate, so two arenas serve them all, and what the start-up freed is given back.
- The two large libraries that we load run most of their machine code once: when they are loaded, when the first channel is made,
  when the first SVID is read. Those pages stay resident although nothing calls them again. They are clean copies of a file, so
  they can be dropped at any time: what is needed after all comes back from the page cache, 64 KiB for a fault.

Measured on one application process (`python -m benchmarks.memory`): -1.2, -0.6 and -11.5 MiB. Elsewhere than on Linux with glibc
nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["few_arenas", "give_back", "give_back_start"]

M_ARENA_MAX = -8  # malloc.h
ARENAS = 2
SETTLED = 2.0  # seconds
MADV_DONTNEED = 4  # sys/mman.h
# Modules whose machine code is dropped: of grpcio (7.8 MiB of it resident) and of cryptography (5.4).
LARGE = ("grpc._cython.cygrpc", "cryptography.hazmat.bindings._rust")


def few_arenas() -> None:
    """For a process that a launcher of ours owns, before its threads start. `MALLOC_ARENA_MAX` of the environment wins."""
    if "MALLOC_ARENA_MAX" not in os.environ:
        _call("mallopt", ctypes.c_int(M_ARENA_MAX), ctypes.c_int(ARENAS))


def give_back_start() -> Callable[[], None]:
    """The start-up is over: return what it used, now, and again when its last parts are done (the workload is registered, the
    first connections are there). -> what calls the second time off and ends its thread."""
    give_back()
    timer = threading.Timer(SETTLED, give_back)
    timer.name, timer.daemon = "proxyless-memory", True
    timer.start()

    def stop() -> None:
        timer.cancel()
        timer.join()

    return stop


def give_back() -> None:
    """Return memory to the system. Some milliseconds; for moments that come once."""
    _call("malloc_trim", ctypes.c_size_t(0))
    if sys.platform == "linux":
        for start, end in _code():
            _call("madvise", ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(MADV_DONTNEED))


def _code() -> Iterator[tuple[int, int]]:
    """Where the machine code of the large modules is. Only what is mapped from the file, can be executed and cannot be
    written: a page of such a mapping has never been changed, so dropping it loses nothing."""
    loaded = (getattr(sys.modules.get(name), "__file__", None) for name in LARGE)
    files = {os.path.realpath(file) for file in loaded if file}
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        where, permissions, _, _, _, *path = line.split(maxsplit=5)
        if permissions == "r-xp" and path and path[0] in files:
            start, _, end = where.partition("-")
            yield int(start, 16), int(end, 16)


def _call(name: str, *arguments: object) -> None:
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return
    function(*arguments)
