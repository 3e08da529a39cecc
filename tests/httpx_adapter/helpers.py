"""A mesh without control plane: snapshots built from resources, identities from the development CA."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import uvicorn

from proxyless.core.matchers import PathMatcher
from proxyless.core.request import Address
from proxyless.core.resources import (
    Cluster,
    ClusterType,
    FilterChain,
    HttpConnectionManager,
    LbEndpoint,
    Listener,
    LoadAssignment,
    LocalityEndpoints,
    RetryPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
    WeightedCluster,
)
from proxyless.core.snapshot import Resources, Snapshot, compile_snapshot
from proxyless.identity.source import StaticSource
from proxyless.runtime.mesh import Mesh
from proxyless.settings import Settings

HOST = "orders.store"
URL = f"http://{HOST}/"


def cluster(name: str, addresses: Sequence[Address], **options: Any) -> Cluster:
    endpoints = tuple(LbEndpoint(address=address) for address in addresses)
    assignment = LoadAssignment(name=name, localities=(LocalityEndpoints(endpoints=endpoints),))
    return Cluster(name=name, type=ClusterType.STATIC, assignment=assignment, **options)


def forward(to: str, *, path: str = "/", headers: Any = (), **options: Any) -> Route:
    options.setdefault("timeout", 0.0)
    action = RouteAction(clusters=(WeightedCluster(name=to, weight=100),), total_weight=100, **options)
    return Route(match=RouteMatch(path=PathMatcher("prefix", path), headers=headers), action=action)


def retry(*words: str, attempts: int = 3, **options: Any) -> RetryPolicy:
    return RetryPolicy(
        retry_on=frozenset(words), num_retries=attempts, base_interval=0.001, max_interval=0.01, **options
    )


def snapshot(
    routes: Sequence[Route] | Mapping[str, Sequence[Route]],
    *clusters: Cluster,
    generation: int = 1,
    previous: Snapshot | None = None,
    extra: Sequence[Listener] = (),
) -> Snapshot:
    """One outbound listener on port 80 whose virtual host `HOST` has `routes`."""
    by_host = routes if isinstance(routes, Mapping) else {HOST: routes}
    hosts = tuple(VirtualHost(name=name, domains=(name,), routes=tuple(own)) for name, own in by_host.items())
    listener = Listener(
        name="0.0.0.0_80",
        address=Address("0.0.0.0", 80),
        direction="OUTBOUND",
        filter_chains=(FilterChain(filter=HttpConnectionManager(rds="80")),),
    )
    resources = Resources(
        listeners={each.name: each for each in (listener, *extra)},
        routes={"80": RouteConfiguration(name="80", virtual_hosts=hosts)},
        clusters={each.name: each for each in clusters},
    )
    return compile_snapshot(resources, previous, generation)


def mesh(configuration: Snapshot | None, source: StaticSource | None = None, **settings: Any) -> Mesh:
    made = Mesh(Settings(**settings), identity_source=source)
    made.snapshot = configuration
    return made


def simple_mesh(address: Address, *, route: Mapping[str, Any] | None = None, **options: Any) -> Mesh:
    return mesh(snapshot([forward("c", **(route or {}))], cluster("c", [address], **options)))


# ---------------------------------------------------------------------------------------------------------------- uvicorn


@contextlib.contextmanager
def served(app: Any, context: Any = None, **options: Any) -> Iterator[Address]:
    """An ASGI app on uvicorn in a thread."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off", **options)
    config.load()
    if context is not None:
        config.ssl = context
    server = uvicorn.Server(config)
    ready = threading.Event()
    startup = server.startup

    async def announcing(sockets: Any = None) -> None:
        await startup(sockets)
        ready.set()

    server.startup = announcing  # type: ignore[method-assign]  # the one moment when the port is known
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert ready.wait(5)
    try:
        yield Address("127.0.0.1", server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(5)
