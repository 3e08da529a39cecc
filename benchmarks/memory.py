"""`python -m benchmarks.memory`: what the mesh adds to one application process, in MiB of resident memory.

The same application, bare and in the mesh, after 1,000 mutual TLS requests with the configuration stream open; and what its
larger parts take when they are imported alone, one after the other, on top of the application's own libraries.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.__main__ import ROOT, Server, bare_server, mesh_server, run_cell

LIMIT = 35.0
PARTS = (
    "ssl",
    "cryptography.x509",
    "cryptography.hazmat.primitives.serialization",
    "grpc",
    "google.protobuf.message",
    "prometheus_client",
    "tenacity",
)


def resident(pid: int) -> float:
    """MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def after_requests(server: Server, kind: str) -> float:
    """Resident memory of the server once it has answered more than 1,000 requests."""
    for _ in range(2):
        run_cell("httpx2", kind, 4, server, 1.0)
    time.sleep(0.2)
    return resident(server.pid)


def parts() -> list[tuple[str, float]]:
    code = (
        "import importlib, os, sys\n"
        "def rss(): return int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 2**20\n"
        "import uvicorn, uvloop, httptools, starlette.applications, httpx\n"
        "for name in sys.argv[1:]:\n"
        "    before = rss(); importlib.import_module(name); print(name, rss() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *PARTS], capture_output=True, text=True, check=True)
    return [(name, float(value)) for name, value in (line.split() for line in done.stdout.splitlines())]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="proxyless-memory-") as folder:
        ours = _one(mesh_server(Path(folder, "a"), "benchmarks.mesh_service:app"), "ours")
        kept = _one(mesh_server(Path(folder, "b"), "benchmarks.mesh_service_kept:app"), "ours")
        bare = _one(bare_server(Path(folder), "benchmarks.service:app"), "bare")
    added = ours - bare
    print(f"application in the mesh {ours:.1f} MiB, bare with mutual TLS {bare:.1f} MiB")
    print(
        f"the mesh adds {added:.1f} MiB (limit {LIMIT:.0f}); {kept - bare:.1f} without giving back what the start-up ran"
    )
    print("of that, when they are imported:")
    for name, size in parts():
        print(f"  {name:<48} {size:>5.1f}")
    return 0 if added <= LIMIT else 1


def _one(running: contextlib.AbstractContextManager[Server], kind: str) -> float:
    with running as server:
        return after_requests(server, kind)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
