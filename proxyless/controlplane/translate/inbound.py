"""`virtualInbound`: what a workload accepts, by destination port, transport and application protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from proxyless.controlplane.registry import Port
from proxyless.controlplane.translate import names
from proxyless.controlplane.translate.authorization import http_filters, network_filters, policies_for
from proxyless.controlplane.translate.build import Tree, duration, extension
from proxyless.controlplane.translate.http_manager import http_manager, tcp_proxy
from proxyless.controlplane.translate.inbound_ports import InboundPort
from proxyless.controlplane.translate.node import ProxyNode
from proxyless.controlplane.translate.outbound import ANY, HTTP_INSPECTOR, TLS_INSPECTOR
from proxyless.controlplane.translate.peer_authentication import DISABLE, PERMISSIVE, STRICT, mode_of, port_mode
from proxyless.controlplane.translate.request_authentication import jwt_filter, jwt_rules_for
from proxyless.controlplane.translate.retries import inbound_retry
from proxyless.controlplane.translate.tls import inbound_socket
from proxyless.controlplane.translate.world import World

__all__ = ["virtual_inbound"]

PORT = 15006

_MESH_HTTP = ("istio-http/1.0", "istio-http/1.1", "istio-h2")
_MESH_TCP = ("istio-peer-exchange", "istio")
_MESH_ALL = ("istio", "istio-peer-exchange", *_MESH_HTTP)
_PLAIN_HTTP = ("http/1.1", "h2c")
_HTTP_OFFER = ("h2", "http/1.1")
_TCP_OFFER = ("istio-peer-exchange", "h2", "http/1.1")


def virtual_inbound(world: World, node: ProxyNode, ports: tuple[InboundPort, ...]) -> Tree:
    """The inbound listener; a client reads the chains of the port it serves."""
    own = _Own(world, node)
    chains = [
        {
            "name": "virtualInbound-blackhole",
            "filter_chain_match": {"destination_port": {"value": PORT}},
            "filters": [tcp_proxy(names.BLACK_HOLE)],
        },
        *own.catch_all(),
    ]
    plaintext_only: list[int] = []
    declared_http: list[int] = []
    for port in ports:
        mode = port_mode(world, node.namespace, node.label_map, port.target)
        if mode == DISABLE:
            plaintext_only.append(port.target)
        if port.port.is_http or mode == DISABLE:
            declared_http.append(port.target)
        chains += own.http_port(port, mode) if port.port.is_http else own.tcp_port(port, mode)
    return {
        "name": "virtualInbound",
        "address": {"socket_address": {"address": ANY, "port_value": PORT}},
        "traffic_direction": "INBOUND",
        "filter_chains": chains,
        "listener_filters": [
            extension(
                "envoy.filters.listener.original_dst", "envoy.extensions.filters.listener.original_dst.v3.OriginalDst"
            ),
            {**extension(*TLS_INSPECTOR), "filter_disabled": _on_ports([*plaintext_only, PORT])},
            {**extension(*HTTP_INSPECTOR), "filter_disabled": _on_ports([*declared_http, PORT])},
        ],
        "listener_filters_timeout": duration(0),
        "continue_on_listener_filters_timeout": True,
    }


def _on_ports(ports: Sequence[int]) -> Tree:
    rules = [{"destination_port_range": {"start": port, "end": port + 1}} for port in ports]
    return rules[0] if len(rules) == 1 else {"or_match": {"rules": rules}}


class _Own:
    """Filter chains of one workload: its policies are compiled once and used on every port."""

    def __init__(self, world: World, node: ProxyNode) -> None:
        labels = node.label_map
        policies = policies_for(world, node.namespace, labels)
        self._world = world
        self._mode = mode_of(world, node.namespace, labels)
        self._http = [*jwt_filter(jwt_rules_for(world, node.namespace, labels)), *http_filters(world, policies)]
        self._tcp = network_filters(world, policies)

    def catch_all(self) -> Iterator[Tree]:
        """For ports that no service declares: they follow the workload's own mode."""
        name = names.INBOUND_PASSTHROUGH
        if self._mode != DISABLE:
            yield self._tls("virtualInbound-catchall-http", None, _MESH_HTTP, [self._manager(name)], _HTTP_OFFER)
        if self._mode != STRICT:
            match = {"transport_protocol": "raw_buffer", "application_protocols": list(_PLAIN_HTTP)}
            filters = [self._manager(name)]
            yield {"name": "virtualInbound-catchall-http", "filter_chain_match": match, "filters": filters}
        yield from self._streams("virtualInbound", None, self._mode, name)

    def http_port(self, port: InboundPort, mode: str) -> Iterator[Tree]:
        manager = self._manager(names.inbound_cluster(port.target), port.port)
        name = f"{ANY}_{port.target}"
        if mode != DISABLE:
            alpn = _MESH_ALL if mode == PERMISSIVE else ()
            yield self._tls(name, port.target, alpn, [manager], _HTTP_OFFER)
        if mode != STRICT:
            yield {"name": name, "filter_chain_match": _match(port.target, "raw_buffer"), "filters": [manager]}

    def tcp_port(self, port: InboundPort, mode: str) -> Iterator[Tree]:
        yield from self._streams(
            f"{ANY}_{port.target}", port.target, mode, names.inbound_cluster(port.target), _MESH_ALL
        )

    def _streams(
        self, name: str, port: int | None, mode: str, cluster: str, alpn: Sequence[str] = _MESH_TCP
    ) -> Iterator[Tree]:
        """Chains for bytes that are not HTTP. PERMISSIVE lets TLS of the application's own through unopened."""
        filters = [*self._tcp, tcp_proxy(cluster)]
        if mode != DISABLE:
            yield self._tls(name, port, alpn if mode == PERMISSIVE else (), filters, _TCP_OFFER)
        if mode != STRICT:
            yield {"name": name, "filter_chain_match": _match(port, "raw_buffer"), "filters": filters}
        if mode == PERMISSIVE:
            yield {"name": name, "filter_chain_match": _match(port, "tls"), "filters": filters}

    def _tls(self, name: str, port: int | None, alpn: Sequence[str], filters: list[Tree], offer: Sequence[str]) -> Tree:
        match = _match(port, "tls")
        if alpn:
            match["application_protocols"] = list(alpn)
        socket = inbound_socket(self._world, offer)
        return {"name": name, "filter_chain_match": match, "filters": filters, "transport_socket": socket}

    def _manager(self, cluster: str, port: Port | None = None) -> Tree:
        action: Tree = {
            "cluster": cluster,
            "timeout": duration(0),
            "max_stream_duration": {"max_stream_duration": duration(0), "grpc_timeout_header_max": duration(0)},
        }
        more: Tree = {}
        if port is not None and port.is_http2:
            more["http2_protocol_options"] = {}
        else:
            action["retry_policy"] = inbound_retry()
        route: Tree = {"name": "default", "match": {"prefix": "/"}, "route": action}
        number = port.number if port else 0
        routes: Tree = {
            "name": cluster,
            "virtual_hosts": [{"name": f"inbound|http|{number}", "domains": ["*"], "routes": [route]}],
            "validate_clusters": {"value": False},
        }
        return http_manager(
            self._world,
            f"{cluster};",
            {"route_config": routes},
            self._http,
            server_name="istio-envoy",
            use_remote_address={"value": False},
            forward_client_cert_details="APPEND_FORWARD",
            set_current_client_cert_details={"subject": {"value": True}, "dns": True, "uri": True},
            **more,
        )


def _match(port: int | None, transport: str) -> Tree:
    match: Tree = {"transport_protocol": transport}
    if port is not None:
        match["destination_port"] = {"value": port}
    return match
