"""`python -m benchmarks.decisions`: what the decisions of one request cost, without a network, in microseconds.

The configuration is that of `benchmarks/mesh`, translated by the control plane and received over xDS. Beside each number stands
its ratio to a peer of the same run: what httpx2 takes to build one request.
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from random import Random

import httpx2
import yaml

from benchmarks.__main__ import ROOT
from proxyless.core.actions import Attempt, Deliver
from proxyless.core.call import OutboundCall
from proxyless.core.inbound import ConnectionInfo, admit, select_chain
from proxyless.core.learned import Learned
from proxyless.core.request import Address, Outcome, OutcomeKind, Peer, Request
from proxyless.core.resources import Health
from proxyless.core.snapshot import Snapshot
from proxyless.engine.h1 import request_head
from proxyless.spiffe import SpiffeId
from proxyless.testing import LocalMesh

ROUNDS, CALLS = 7, 4_000
HEADERS = [
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"user-agent", b"benchmark/1"),
    (b"x-request-id", b"1"),
]
OK = Outcome(kind=OutcomeKind.RESPONSE, status=200, headers=[(b"content-length", b"2")], bytes_seen=True)


def outbound(snapshot: Snapshot) -> Callable[[], None]:
    """Listener, route, cluster, endpoint, limits, and what the answer means to retries and outlier detection."""
    learned, rng = Learned(), Random(1)
    destination = Address("echo", 80)

    def decide() -> None:
        request = Request("GET", "/echo", HEADERS, authority="echo", destination=destination)
        call = OutboundCall(snapshot, request, learned, now=1.0, rng=rng)
        attempt = call.next(1.0)
        assert isinstance(attempt, Attempt), call.record.details
        attempt.begin(1.0)
        assert isinstance(call.on_outcome(OK, 1.0), Deliver)
        call.on_body_end(None, 1.0)

    return decide


def inbound(snapshot: Snapshot, port: int) -> Callable[[], None]:
    """Path, route and RBAC of a request on a connection whose filter chain is known."""
    local = Address("127.0.0.1", port)
    listener = next(each for each in snapshot.listeners.values() if each.direction == "INBOUND")
    chain = select_chain(listener, ConnectionInfo(destination=local, transport="tls", alpn=("istio",)))
    assert chain is not None
    caller = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/caller")
    peer = Peer(identity=caller, uri_sans=(str(caller),), tls=True, address=Address("127.0.0.1", 1), local=local)

    def decide() -> None:
        request = Request("GET", "/echo", HEADERS, authority="echo", destination=local)
        assert admit(chain, request, peer).allowed

    return decide


def head() -> None:
    """The bytes of a request."""
    request_head("GET", b"/echo", "echo", HEADERS, 0)


def peer() -> None:
    httpx2.Request("GET", "http://echo/echo", headers={"x-request-id": "1"})


def cost(work: Callable[[], None]) -> float:
    """Microseconds for one call."""
    started = time.perf_counter()
    for _ in range(CALLS):
        work()
    return (time.perf_counter() - started) / CALLS * 1e6


def main() -> int:
    manifests = (ROOT / "benchmarks" / "mesh" / "policy.yaml").read_text()
    settings = yaml.safe_load((ROOT / "benchmarks" / "mesh" / "mesh.yaml").read_text())
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,  # who accepts connections may be called
        LocalMesh(manifests, workloads={}, settings=settings) as local,
    ):
        port = listener.getsockname()[1]
        served = local.mesh("echo", service="echo", port=port)
        caller = local.mesh("caller")
        _wait_until(lambda: caller.snapshot is not None and _has_endpoint(caller.snapshot))
        assert served.snapshot is not None
        assert caller.snapshot is not None
        cases = {
            "outbound": outbound(caller.snapshot),
            "inbound": inbound(served.snapshot, port),
            "head": head,
            "httpx2.Request": peer,
        }
    rounds = [{name: cost(work) for name, work in cases.items()} for _ in range(ROUNDS + 1)][1:]
    print(f"{'':<16}{'µs':>8}{'of httpx2.Request':>20}")
    for name in cases:
        micros = statistics.median(each[name] for each in rounds)
        ratio = statistics.median(each[name] / each["httpx2.Request"] for each in rounds)
        print(f"{name:<16}{micros:>8.2f}{ratio:>20.2f}")
    return 0


def _has_endpoint(snapshot: Snapshot) -> bool:
    upstream = snapshot.upstreams.get("outbound|80||echo.default.svc.cluster.local")
    return upstream is not None and any(each.health is not Health.UNHEALTHY for each in upstream.endpoints)


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("the echo service has no endpoint")
        time.sleep(0.01)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
