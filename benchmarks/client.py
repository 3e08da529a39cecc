"""One cell: a client process that runs a closed loop and prints one line of JSON.

python -m benchmarks.client LIBRARY ours|bare URL CONCURRENCY SECONDS SERVER_PID [CERT CA]
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

WARM_UP = 0.5
TICK = os.sysconf("SC_CLK_TCK")


def cpu_of(pid: int) -> float:
    """Seconds of CPU a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def make_client(library: Any, kind: str, arguments: list[str]) -> Any:
    if kind == "ours":
        from proxyless.httpx import AsyncMeshTransport

        return library.AsyncClient(transport=AsyncMeshTransport())
    certificate, authority = arguments
    context = ssl.create_default_context(cafile=authority)
    context.check_hostname = False
    context.load_cert_chain(certificate)
    limits = library.Limits(max_connections=None, max_keepalive_connections=None)
    return library.AsyncClient(verify=context, limits=limits)


async def main(name: str, kind: str, url: str, concurrency: int, seconds: float, server: int, rest: list[str]) -> None:
    library = importlib.import_module(name)
    latencies: list[float] = []
    counting, failed = False, 0
    async with make_client(library, kind, rest) as client:
        stop = time.perf_counter() + WARM_UP + seconds

        async def caller() -> None:
            nonlocal failed
            while (begun := time.perf_counter()) < stop:
                response = await client.get(url)
                if response.status_code != 200:
                    failed += 1
                if counting:
                    latencies.append(time.perf_counter() - begun)

        tasks = [asyncio.create_task(caller()) for _ in range(concurrency)]
        await asyncio.sleep(WARM_UP)
        own, theirs, begun = time.process_time(), cpu_of(server), time.perf_counter()
        counting = True
        await asyncio.gather(*tasks)
        took = time.perf_counter() - begun
        own, theirs = time.process_time() - own, cpu_of(server) - theirs
    latencies.sort()
    count = len(latencies)
    print(
        json.dumps(
            {
                "rps": count / took,
                "p50_ms": latencies[count // 2] * 1000,
                "p99_ms": latencies[int(count * 0.99)] * 1000,
                "cpu_ms": (own + theirs) / count * 1000,
                "client_ms": own / count * 1000,
                "server_ms": theirs / count * 1000,
                "failed": failed,
            }
        )
    )


if __name__ == "__main__":
    _, LIBRARY, KIND, URL, CONCURRENCY, SECONDS, SERVER, *REST = sys.argv
    uvloop.run(main(LIBRARY, KIND, URL, int(CONCURRENCY), float(SECONDS), int(SERVER), REST))
