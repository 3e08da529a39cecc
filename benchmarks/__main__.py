"""`python -m benchmarks [--rounds N] [--seconds S]`: see README.md beside this file."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from benchmarks.certificates import write_certificates
from proxyless.cli.dev.processes import free_port
from proxyless.controlplane.server import ControlPlane

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("httpx2", "httpx")
KINDS: tuple[Literal["ours", "bare"], ...] = ("ours", "bare")
CONCURRENCY = (1, 16)
METRICS = {"rps": "requests/s", "p50_ms": "p50", "p99_ms": "p99", "cpu_ms": "CPU per request"}
# Requests/s against the same client library without a mesh; the bare prototype of the engine reached 2 and 3.9.
FLOORS = {("httpx2", 1, "rps"): 1.3, ("httpx2", 16, "rps"): 2.5}


@dataclass(frozen=True, slots=True)
class Server:
    """A server process and how to call it."""

    url: str
    pid: int
    env: Mapping[str, str]
    arguments: Sequence[str] = ()


class Cell(NamedTuple):
    """What one client process measures."""

    library: str
    kind: Literal["ours", "bare"]
    concurrency: int

    def __str__(self) -> str:
        return f"{self.library} {self.kind} at {self.concurrency}"


Round = Mapping[Cell, Mapping[str, float]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.2, help="of each cell, after half a second of warm-up")
    parser.add_argument("--budget", type=float, default=270, help="seconds after which no further round begins")
    parser.add_argument("--library", action="append", choices=LIBRARIES)
    arguments = parser.parse_args()
    logging.getLogger("proxyless").setLevel(logging.ERROR)  # that this certificate authority is for development only
    libraries = arguments.library or list(LIBRARIES)
    # Ours and bare next to each other: what else the machine does then hits both.
    cells = [Cell(library, kind, c) for library in libraries for c in CONCURRENCY for kind in KINDS]
    began, rounds = time.monotonic(), list[Round]()
    with tempfile.TemporaryDirectory(prefix="proxyless-bench-") as folder, contextlib.ExitStack() as stack:
        servers = {
            "ours": stack.enter_context(mesh_server(Path(folder))),
            "bare": stack.enter_context(bare_server(Path(folder))),
        }
        while len(rounds) < arguments.rounds:
            spent = time.monotonic() - began
            if rounds and spent + spent / len(rounds) > arguments.budget:
                print(f"{len(rounds)} rounds of {arguments.rounds}: the machine is slow today", file=sys.stderr)
                break
            measured = {}
            for cell in cells if len(rounds) % 2 == 0 else reversed(cells):
                measured[cell] = run_cell(*cell, servers[cell.kind], arguments.seconds)
                print(f"round {len(rounds) + 1} {cell}: {measured[cell]['rps']:.0f}/s", file=sys.stderr)
            rounds.append(measured)
    return report(rounds, libraries)


def run_cell(library: str, kind: str, concurrency: int, server: Server, seconds: float) -> dict[str, float]:
    """Run one client process. Ends the benchmark, with what the client said, when that or a call fails."""
    what = f"{library} {kind} at {concurrency}"
    command = [sys.executable, "-m", "benchmarks.client", library, kind, server.url]
    numbers = [str(concurrency), str(seconds), str(server.pid)]
    try:
        done = subprocess.run(
            [*command, *numbers, *server.arguments],
            cwd=ROOT,
            env={**os.environ, **server.env},
            capture_output=True,
            text=True,
            timeout=60 + seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        raise SystemExit(f"{what}: the client does not end\n{(late.stderr or b'')[-2000:]!r}") from None
    if done.returncode:
        raise SystemExit(f"{what}: the client ended with {done.returncode}\n{done.stderr[-2000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if result["failed"]:
        raise SystemExit(f"{what}: {result['failed']:.0f} calls had another status than 200")
    return result


def report(rounds: Sequence[Round], libraries: Sequence[str]) -> int:
    """Print the table, write the file. -> 1 when a floor is not reached."""
    rows, below = [], []
    print(f"\n{'mTLS GET, 200 bytes':<26} {'conc':>4}  {'ours':>9} {'bare':>9}  ratio  floor")
    for library, concurrency, metric in itertools.product(libraries, CONCURRENCY, METRICS):
        ours, bare = ([measured[Cell(library, kind, concurrency)][metric] for measured in rounds] for kind in KINDS)
        ratios = [a / b if metric == "rps" else b / a for a, b in zip(ours, bare, strict=True)]
        ratio, floor = statistics.median(ratios), FLOORS.get((library, concurrency, metric))
        rows.append(
            {
                "case": "mtls-get",
                "against": library,
                "concurrency": concurrency,
                "metric": metric,
                "ratio": round(ratio, 3),
                "floor": floor,
            }
        )
        name = f"{library} {METRICS[metric]}"
        print(
            f"{name:<26} {concurrency:>4}  {statistics.median(ours):>9.2f} {statistics.median(bare):>9.2f}"
            f"  {ratio:>5.2f}  {'' if floor is None else floor}"
        )
        if floor is not None and ratio < floor:
            each = " ".join(f"{one:.2f}" for one in sorted(ratios))
            below.append(f"{name} at {concurrency}: {ratio:.2f} is below {floor}; of the rounds: {each}")
    target = ROOT / "build" / "bench.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(rows, indent=1) + "\n")
    for line in below:
        print(line)
    if below:
        load, cores = os.getloadavg()[0], os.cpu_count()
        print(f"load average {load:.1f} on {cores} cores, two of which the benchmark keeps busy by itself")
    return 1 if below else 0


# ---------------------------------------------------------------------------------------------------------------- servers


@contextlib.contextmanager
def mesh_server(folder: Path, app: str = "benchmarks.mesh_app:app") -> Iterator[Server]:
    """The application under `proxyless run`, with a control plane of its own."""
    folder.mkdir(exist_ok=True)
    run = folder / "mesh"
    with ControlPlane(ROOT / "benchmarks" / "mesh", run):
        port, admin = free_port(), free_port()
        env = _environment(run, "echo") | {
            "PROXYLESS_SERVICE": "echo",
            "PROXYLESS_PORT": str(port),
            "PROXYLESS_ADMIN": f"127.0.0.1:{admin}",
            "PROXYLESS_ACCESS_LOG": str(folder / "server-access.log"),
        }
        command = [
            sys.executable,
            "-m",
            "proxyless",
            "run",
            app,
            "--port",
            str(port),
            "--log-level",
            "warning",
        ]
        with _process(command, env) as pid:
            _wait(f"http://127.0.0.1:{admin}/ready")
            client = _environment(run, "caller") | {"PROXYLESS_ACCESS_LOG": str(folder / "client-access.log")}
            yield Server("http://echo/echo", pid, client)


def _environment(run: Path, account: str) -> dict[str, str]:
    sockets = run / "workloads" / "default" / account
    return {
        "PROXYLESS_XDS": f"unix:{sockets / 'xds.sock'}",
        "SPIFFE_ENDPOINT_SOCKET": f"unix:{sockets / 'workload-api.sock'}",
        "PROXYLESS_SERVICE_ACCOUNT": account,
    }


@contextlib.contextmanager
def bare_server(folder: Path, app: str = "benchmarks.app:app") -> Iterator[Server]:
    """The same application under uvicorn's own TLS, client certificate required."""
    server, client, authority = write_certificates(folder)
    port = free_port()
    command = [
        sys.executable, "-m", "uvicorn", app, "--port", str(port), "--log-level", "warning", "--no-access-log",
        "--ssl-certfile", server, "--ssl-ca-certs", authority, "--ssl-cert-reqs", "2", "--loop", "uvloop", "--http", "httptools",
    ]  # fmt: skip
    with _process(command, {}) as pid:
        _wait_port(port)
        yield Server(f"https://127.0.0.1:{port}/echo", pid, {}, (client, authority))


@contextlib.contextmanager
def _process(command: list[str], env: Mapping[str, str]) -> Iterator[int]:
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **env})
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait(20)


def _wait(url: str) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1) as answer:
            if answer.status == 200:
                return
        time.sleep(0.05)
    raise SystemExit(f"{url} does not become ready")


def _wait_port(port: int) -> None:
    import socket

    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        time.sleep(0.05)
    raise SystemExit(f"port {port} does not accept connections")


if __name__ == "__main__":
    sys.exit(main())
