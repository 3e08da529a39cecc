"""Builders of small xDS messages, decoders that know just enough, and a gRPC server that a test scripts line by line."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from proxyless import protos
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
    RouteConfiguration,
    VirtualHost,
)
from proxyless.errors import InvalidResourceError
from proxyless.xds.store import Decoder

BAD = "bad"  # this marker makes the decoders below refuse a resource
UNKNOWN = "unknown"  # this one makes them report a field


def cluster(name: str, mark: str = "", eds: bool = True) -> Any:
    """A cluster; `mark` tells versions of it apart."""
    message = protos.message("envoy.config.cluster.v3.Cluster")(name=name, alt_stat_name=mark)
    if eds:
        message.type = 3
        message.eds_cluster_config.eds_config.ads.SetInParent()
    return message


def assignment(name: str, *ports: int) -> Any:
    """Endpoints 127.0.0.1:port; port 0 makes it invalid."""
    message = protos.message("envoy.config.endpoint.v3.ClusterLoadAssignment")(cluster_name=name)
    group = message.endpoints.add()
    for port in ports:
        address = group.lb_endpoints.add().endpoint.address.socket_address
        address.address, address.port_value = "127.0.0.1", port
    return message


def listener(name: str, *rds: str, mark: str = "", inbound: bool = False) -> Any:
    message = protos.message("envoy.config.listener.v3.Listener")(name=name, stat_prefix=mark)
    message.traffic_direction = 1 if inbound else 2
    manager = protos.message("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager")
    for route_name in rds:
        hcm = manager()
        hcm.rds.route_config_name = route_name
        hcm.rds.config_source.ads.SetInParent()
        message.filter_chains.add().filters.add(name="hcm").typed_config.CopyFrom(protos.pack(hcm))
    return message


def route(name: str, mark: str = "") -> Any:
    message = protos.message("envoy.config.route.v3.RouteConfiguration")(name=name)
    message.virtual_hosts.add(name=mark or "any", domains=["*"])
    return message


def wrapped(name: str, inner: Any | None) -> Any:
    """The message in a `Resource`, in an `Any`; None: a heartbeat."""
    resource = protos.message("envoy.service.discovery.v3.Resource")(name=name)
    if inner is not None:
        resource.resource.CopyFrom(protos.pack(inner))
    return protos.pack(resource)


def response(type_url: str, version: str, *resources: Any, nonce: str = "") -> Any:
    """A DiscoveryResponse. Resources that are an `Any` already go in as they are."""
    any_type = protos.message("google.protobuf.Any")
    return protos.message("envoy.service.discovery.v3.DiscoveryResponse")(
        type_url=type_url,
        version_info=version,
        nonce=nonce or f"nonce-{version}",
        resources=[item if isinstance(item, any_type) else protos.pack(item) for item in resources],
    )


# ------------------------------------------------------------------------------------------------------------- decoders


def _refuse(type_url: str, name: str, condition: bool, field: str) -> None:
    if condition:
        raise InvalidResourceError(type_url, name, field, "is bad")


def decode_cluster(raw: bytes) -> tuple[Cluster, tuple[str, ...]]:
    message = protos.message("envoy.config.cluster.v3.Cluster").FromString(raw)
    _refuse(protos.CLUSTER, message.name, message.alt_stat_name == BAD, "alt_stat_name")
    kind = ClusterType.EDS if message.type == 3 else ClusterType.STATIC
    value = Cluster(name=message.name, type=kind, eds_name=message.name, subset=message.alt_stat_name)
    return value, ("alt_stat_name",) if message.alt_stat_name == UNKNOWN else ()


def decode_assignment(raw: bytes) -> tuple[LoadAssignment, tuple[str, ...]]:
    message = protos.message("envoy.config.endpoint.v3.ClusterLoadAssignment").FromString(raw)
    addresses = [item.endpoint.address.socket_address for group in message.endpoints for item in group.lb_endpoints]
    _refuse(protos.ENDPOINT, message.cluster_name, any(not item.port_value for item in addresses), "port_value")
    endpoints = tuple(LbEndpoint(address=Address(item.address, item.port_value)) for item in addresses)
    return LoadAssignment(name=message.cluster_name, localities=(LocalityEndpoints(endpoints=endpoints),)), ()


def decode_listener(raw: bytes) -> tuple[Listener, tuple[str, ...]]:
    message = protos.message("envoy.config.listener.v3.Listener").FromString(raw)
    _refuse(protos.LISTENER, message.name, message.stat_prefix == BAD, "stat_prefix")
    chains = []
    for chain in message.filter_chains:
        for item in chain.filters:
            hcm = protos.any_to_message(item.typed_config)
            assert hcm is not None
            chains.append(FilterChain(filter=HttpConnectionManager(rds=hcm.rds.route_config_name)))
    direction = "INBOUND" if message.traffic_direction == 1 else "OUTBOUND"
    return Listener(name=message.name, direction=direction, filter_chains=tuple(chains)), ()


def decode_route(raw: bytes) -> tuple[RouteConfiguration, tuple[str, ...]]:
    message = protos.message("envoy.config.route.v3.RouteConfiguration").FromString(raw)
    _refuse(protos.ROUTE, message.name, message.virtual_hosts[0].name == BAD, "virtual_hosts[0].name")
    hosts = tuple(VirtualHost(name=host.name, domains=tuple(host.domains), routes=()) for host in message.virtual_hosts)
    return RouteConfiguration(name=message.name, virtual_hosts=hosts), ()


DECODERS: Mapping[str, Decoder] = {
    protos.CLUSTER: decode_cluster,
    protos.ENDPOINT: decode_assignment,
    protos.LISTENER: decode_listener,
    protos.ROUTE: decode_route,
}


# --------------------------------------------------------------------------------------------------------------- server


def eventually(condition: Callable[[], Any], timeout: float = 5.0) -> Any:
    """Wait until the condition is true and return its value; fails the test after `timeout` seconds."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.002)


class Stream:
    """The server's side of one stream. `requests` are parsed messages; sending None ends the stream with OK."""

    def __init__(self, request_type: str, context: grpc.ServicerContext) -> None:
        self._request_type = request_type
        self._context = context
        self._out: queue.Queue[Any] = queue.Queue()
        self._in: queue.Queue[Any] = queue.Queue()
        self.ended = threading.Event()
        context.add_callback(self._end)

    def _end(self) -> None:
        self.ended.set()
        self._in.put(None)
        self._out.put(None)

    def read(self, requests: Iterator[bytes]) -> None:
        with contextlib.suppress(Exception):  # the client hung up
            for raw in requests:
                self._in.put(protos.message(self._request_type).FromString(raw))
        self._in.put(None)

    def write(self) -> Iterator[bytes]:
        while True:
            item = self._out.get()
            if item is None:
                return
            if isinstance(item, grpc.StatusCode):
                self._context.abort(item, "scripted")
            yield item if isinstance(item, bytes) else item.SerializeToString()

    def request(self, timeout: float = 5.0) -> Any:
        """The next request; None when the client has hung up."""
        return self._in.get(timeout=timeout)

    def requests_by_type(self, count: int) -> dict[str, Any]:
        got = [self.request() for _ in range(count)]
        return {item.type_url: item for item in got}

    def send(self, *messages: Any) -> None:
        for message in messages:
            self._out.put(message)

    def quiet(self) -> bool:
        return self._in.empty()


class ScriptedServer:
    """A real gRPC server with one bidirectional method; `stream()` waits for the next client.

    Args:
        address: ``unix:/path`` or ``127.0.0.1:0``.
        credentials: `grpc.ServerCredentials` for TLS.
    """

    def __init__(self, address: str, method: str, request_type: str, credentials: Any = None) -> None:
        self._method, self._request_type = method, request_type
        self._streams: queue.Queue[Stream] = queue.Queue()
        self._server = grpc.server(ThreadPoolExecutor(max_workers=8), options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((_Handlers(method, self._serve),))
        if credentials is None:
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, credentials)
        self.target = address if address.startswith("unix:") else f"127.0.0.1:{port}"
        self._server.start()

    def _serve(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        stream = Stream(self._request_type, context)
        threading.Thread(target=stream.read, args=(requests,), daemon=True).start()
        self._streams.put(stream)
        return stream.write()

    def stream(self, timeout: float = 5.0) -> Stream:
        return self._streams.get(timeout=timeout)

    def stop(self) -> None:
        self._server.stop(None).wait(5)

    def __enter__(self) -> ScriptedServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


class _Handlers(grpc.GenericRpcHandler):  # type: ignore[misc] # grpc ships no types
    def __init__(self, method: str, serve: Callable[..., Iterator[bytes]]) -> None:
        self._method, self._serve = method, serve

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return grpc.stream_stream_rpc_method_handler(self._serve) if details.method == self._method else None


def ads_server(address: str, credentials: Any = None) -> ScriptedServer:
    return ScriptedServer(address, protos.STREAM_ADS_METHOD, "envoy.service.discovery.v3.DiscoveryRequest", credentials)


def registration_server(address: str) -> ScriptedServer:
    return ScriptedServer(address, protos.REGISTER_METHOD, "proxyless.registration.v1.Workload")
