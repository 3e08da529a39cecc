"""The same service in the mesh, in a process that keeps the machine code that its start-up ran: for the measurement of memory."""

from __future__ import annotations

from benchmarks.mesh_service import app
from proxyless.runtime import memory

__all__ = ["app"]

memory.LARGE = ()
