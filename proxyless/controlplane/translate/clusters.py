"""Clusters: one for each service port and subset, those of a workload's own ports, and the three fixed ones."""

from __future__ import annotations

from collections.abc import Iterator

from proxyless.controlplane.manifest.model import (
    ConnectionPoolSettings,
    LoadBalancerSettings,
    OutlierDetection,
    RetryBudget,
    Subset,
)
from proxyless.controlplane.registry import Port, Service
from proxyless.controlplane.translate import names, tls
from proxyless.controlplane.translate.build import Tree, duration, packed, struct
from proxyless.controlplane.translate.destination_rules import Policy, Rule, policy_for, rule_for
from proxyless.controlplane.translate.endpoints import assignment
from proxyless.controlplane.translate.inbound_ports import InboundPort
from proxyless.controlplane.translate.node import ProxyNode
from proxyless.controlplane.translate.peer_authentication import DISABLE, inferred_mode
from proxyless.controlplane.translate.world import World

__all__ = ["ADS_SOURCE", "fixed_clusters", "inbound_clusters", "load_assignments", "outbound_clusters"]

UNLIMITED = 2**32 - 1
ADS_SOURCE: Tree = {"ads": {}, "initial_fetch_timeout": {}, "resource_api_version": "V3"}

_PROTOCOL_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_TYPES = {"STATIC": "EDS", "DNS": "STRICT_DNS", "DNS_ROUND_ROBIN": "LOGICAL_DNS"}
_LB = {"RANDOM": "RANDOM", "ROUND_ROBIN": "ROUND_ROBIN"}  # everything else is LEAST_REQUEST
_NO_BREAKERS: Tree = {
    "max_connections": {"value": UNLIMITED},
    "max_pending_requests": {"value": UNLIMITED},
    "max_requests": {"value": UNLIMITED},
    "max_retries": {"value": UNLIMITED},
}


def outbound_clusters(world: World, node: ProxyNode) -> Iterator[Tree]:
    """The clusters of everything that the node may call."""
    for service in world.registry.visible(node.namespace).values():
        rule = rule_for(world, node, service)
        for port in service.ports:
            yield _outbound(world, node, service, port, rule, None)
            for subset in rule.subsets if rule else ():
                yield _outbound(world, node, service, port, rule, subset)


def load_assignments(world: World, node: ProxyNode) -> Iterator[Tree]:
    """The endpoints of those of them that take them from EDS."""
    for service in world.registry.visible(node.namespace).values():
        rule = rule_for(world, node, service)
        for port in service.ports:
            for subset in (None, *(rule.subsets if rule else ())):
                if _type(service, policy_for(world, rule, port.number, subset)) == "EDS":
                    name = names.outbound_cluster(port.number, subset.name if subset else "", service.host)
                    yield assignment(world, name, service, port, subset.labels if subset else {})


def _outbound(
    world: World, node: ProxyNode, service: Service, port: Port, rule: Rule | None, subset: Subset | None
) -> Tree:
    policy = policy_for(world, rule, port.number, subset)
    subset_name = subset.name if subset else ""
    name = names.outbound_cluster(port.number, subset_name, service.host)
    kind = _type(service, policy)
    pool = policy.connection_pool
    cluster: Tree = {
        "name": name,
        "type": kind,
        "connect_timeout": duration((pool and pool.tcp and pool.tcp.connect_timeout) or world.mesh.connect_timeout),
        "circuit_breakers": {"thresholds": [_breakers(pool, policy.retry_budget)]},
        "common_lb_config": {"healthy_panic_threshold": _panic(policy.outlier_detection)},
        "metadata": _metadata(service, rule, subset_name),
    }
    _set_discovery(world, cluster, service, port, subset, kind)
    if kind != "ORIGINAL_DST":
        cluster.update(_load_balancing(policy.load_balancer))
    if policy.outlier_detection is not None:
        cluster["outlier_detection"] = _outlier(policy.outlier_detection)
    if pool and pool.tcp and pool.tcp.tcp_keepalive:
        keepalive = pool.tcp.tcp_keepalive
        cluster["upstream_connection_options"] = {
            "tcp_keepalive": {
                "keepalive_probes": _number(keepalive.probes),
                "keepalive_time": _number(keepalive.time),
                "keepalive_interval": _number(keepalive.interval),
            }
        }
    _set_tls(world, node, cluster, service, port, subset_name, policy, rule)
    return cluster


def _type(service: Service, policy: Policy) -> str:
    if policy.load_balancer and policy.load_balancer.simple == "PASSTHROUGH":
        return "ORIGINAL_DST"
    return _TYPES.get(service.resolution, "ORIGINAL_DST")


def _set_discovery(world: World, cluster: Tree, service: Service, port: Port, subset: Subset | None, kind: str) -> None:
    if kind == "EDS":
        cluster["eds_cluster_config"] = {"eds_config": ADS_SOURCE, "service_name": cluster["name"]}
    elif kind == "ORIGINAL_DST":
        cluster["lb_policy"] = "CLUSTER_PROVIDED"
    else:
        cluster["load_assignment"] = assignment(world, cluster["name"], service, port, subset.labels if subset else {})
        cluster["dns_lookup_family"] = "V4_ONLY"
        cluster["dns_refresh_rate"] = duration(60)
        cluster["respect_dns_ttl"] = True


def _set_tls(
    world: World,
    node: ProxyNode,
    cluster: Tree,
    service: Service,
    port: Port,
    subset: str,
    policy: Policy,
    rule: Rule | None,
) -> None:
    http2 = _is_http2(port, policy.connection_pool)
    follow_sni = follow_san = False
    settings = policy.tls
    if settings is None:
        if _auto_mtls(world, service):
            mutual = tls.istio_mutual(world, service, port, subset, http2=http2)
            if cluster["type"] == "ORIGINAL_DST":
                cluster["transport_socket"] = mutual
            else:
                cluster["transport_socket_matches"] = [
                    {"name": "tlsMode-istio", "match": struct({"tlsMode": "istio"}), "transport_socket": mutual},
                    {"name": "tlsMode-disabled", "match": struct({}), "transport_socket": tls.plaintext()},
                ]
    elif settings.mode == "ISTIO_MUTUAL":
        cluster["transport_socket"] = tls.istio_mutual(world, service, port, subset, settings, http2)
    elif settings.mode != "DISABLE":
        credentials = node.is_gateway or bool(rule and rule.selects_workload)
        socket, follow_sni, follow_san = tls.simple_or_mutual(world, service, port, settings, credentials)
        if socket is not None:
            cluster["transport_socket"] = socket
    options = _protocol_options(port, policy.connection_pool, http2, follow_sni, follow_san)
    if options is not None:
        cluster["typed_extension_protocol_options"] = {_PROTOCOL_OPTIONS: packed(_PROTOCOL_OPTIONS, options)}


def _auto_mtls(world: World, service: Service) -> bool:
    return world.mesh.enable_auto_mtls and not service.external and inferred_mode(world, service.namespace) != DISABLE


def _is_http2(port: Port, pool: ConnectionPoolSettings | None) -> bool:
    http = pool.http if pool else None
    if http and http.use_client_protocol:
        return False
    return port.is_http2 or bool(http and http.h2_upgrade_policy == "UPGRADE" and port.is_http)


def _protocol_options(
    port: Port, pool: ConnectionPoolSettings | None, http2: bool, follow_sni: bool, follow_san: bool
) -> Tree | None:
    """HttpProtocolOptions, or None when Envoy's defaults are meant."""
    common = _common_options(pool)
    http = pool.http if pool else None
    follow = {"auto_sni": follow_sni, "auto_san_validation": follow_san}
    result: Tree = {}
    if http and http.use_client_protocol:
        result["use_downstream_protocol_config"] = {"http_protocol_options": {}, "http2_protocol_options": {}}
    elif http2:
        streams = http.max_concurrent_streams if http else None
        result["explicit_http_config"] = {
            "http2_protocol_options": {"max_concurrent_streams": {"value": streams}} if streams else {}
        }
    elif common or follow_sni:
        result["explicit_http_config"] = {"http_protocol_options": {}}
    else:
        return None
    if common:
        result["common_http_protocol_options"] = common
    if follow_sni:
        result["upstream_http_protocol_options"] = follow
    return result


def _common_options(pool: ConnectionPoolSettings | None) -> Tree:
    tcp, http = (pool.tcp, pool.http) if pool else (None, None)
    common: Tree = {}
    if http and http.max_requests_per_connection:
        common["max_requests_per_connection"] = {"value": http.max_requests_per_connection}
    idle = http.idle_timeout if http and http.idle_timeout is not None else tcp.idle_timeout if tcp else None
    if idle is not None:
        common["idle_timeout"] = duration(idle)
    if tcp and tcp.max_connection_duration is not None:
        common["max_connection_duration"] = duration(tcp.max_connection_duration)
    return common


def _breakers(pool: ConnectionPoolSettings | None, budget: RetryBudget | None) -> Tree:
    tcp, http = (pool.tcp, pool.http) if pool else (None, None)
    limits = dict(_NO_BREAKERS)
    for field, limit in (
        ("max_connections", tcp.max_connections if tcp else None),
        ("max_pending_requests", http.http1_max_pending_requests if http else None),
        ("max_requests", http.http2_max_requests if http else None),
        ("max_retries", http.max_retries if http else None),
    ):
        if limit:
            limits[field] = {"value": limit}
    if budget is not None:
        limits["retry_budget"] = {
            "budget_percent": {"value": 20.0 if budget.percent is None else budget.percent},
            "min_retry_concurrency": _number(
                3 if budget.min_retry_concurrency is None else budget.min_retry_concurrency
            ),
        }
    return limits


def _panic(outlier: OutlierDetection | None) -> Tree:
    return {"value": (outlier.min_health_percent or 0) if outlier else 0}


def _outlier(settings: OutlierDetection) -> Tree:
    """Only what was said, as istiod does: Envoy's defaults hold for the rest."""
    result: Tree = {"enforcing_success_rate": {"value": 0}}
    for field, count in (
        ("consecutive_5xx", settings.consecutive_5xx_errors),
        ("consecutive_gateway_failure", settings.consecutive_gateway_errors),
    ):
        if count is not None:
            result[field] = {"value": count}
            result[f"enforcing_{field}"] = {"value": 100 if count else 0}
    if settings.interval is not None:
        result["interval"] = duration(settings.interval)
    if settings.base_ejection_time is not None:
        result["base_ejection_time"] = duration(settings.base_ejection_time)
    if settings.max_ejection_percent:
        result["max_ejection_percent"] = {"value": settings.max_ejection_percent}
    if settings.split_external_local_origin_errors:
        result["split_external_local_origin_errors"] = True
        result["enforcing_local_origin_success_rate"] = {"value": 0}
        if settings.consecutive_local_origin_failures:
            result["consecutive_local_origin_failure"] = {"value": settings.consecutive_local_origin_failures}
            result["enforcing_consecutive_local_origin_failure"] = {"value": 100}
    return result


def _load_balancing(settings: LoadBalancerSettings | None) -> Tree:
    if settings is None:
        return {"lb_policy": "LEAST_REQUEST"}
    if settings.consistent_hash is not None:
        hashing = settings.consistent_hash
        if hashing.maglev is not None:
            size = hashing.maglev.table_size
            return {"lb_policy": "MAGLEV", **({"maglev_lb_config": {"table_size": {"value": size}}} if size else {})}
        ring = (hashing.ring_hash.minimum_ring_size if hashing.ring_hash else None) or hashing.minimum_ring_size or 1024
        return {"lb_policy": "RING_HASH", "ring_hash_lb_config": {"minimum_ring_size": {"value": ring}}}
    policy = _LB.get(settings.simple or "", "LEAST_REQUEST")
    result: Tree = {"lb_policy": policy}
    slow_start = _slow_start(settings)
    if slow_start and policy != "RANDOM":
        result[f"{policy.lower()}_lb_config"] = {"slow_start_config": slow_start}
    return result


def _slow_start(settings: LoadBalancerSettings) -> Tree:
    warmup = settings.warmup
    if warmup is None:
        seconds = settings.warmup_duration_secs
        return {"slow_start_window": duration(seconds)} if seconds else {}
    result: Tree = {"slow_start_window": duration(warmup.duration)}
    if warmup.minimum_percent is not None:
        result["min_weight_percent"] = {"value": warmup.minimum_percent}
    if warmup.aggression is not None:
        result["aggression"] = {"default_value": warmup.aggression, "runtime_key": "proxyless.warmup.aggression"}
    return result


def _metadata(service: Service, rule: Rule | None, subset: str) -> Tree:
    istio: Tree = {"services": [{"host": service.host, "name": service.host, "namespace": service.namespace}]}
    if rule is not None:
        istio["config"] = names.resource_path("DestinationRule", rule.namespace, rule.name)
    if subset:
        istio["subset"] = subset
    if service.external:
        istio["external"] = True
    return {"filter_metadata": {"istio": struct(istio)}}


def _number(value: float | None) -> Tree | None:
    return None if value is None else {"value": int(value)}


def inbound_clusters(world: World, ports: tuple[InboundPort, ...]) -> Iterator[Tree]:
    """One for each port of the workload itself: to where the connection was headed."""
    for port in ports:
        cluster = _original_dst(world, names.inbound_cluster(port.target))
        cluster["metadata"] = _metadata(port.service, None, "")
        cluster["upstream_bind_config"] = {"source_address": {"address": "127.0.0.6", "port_value": 0}}
        if port.port.is_http2:
            options: Tree = {"explicit_http_config": {"http2_protocol_options": {}}}
            cluster["typed_extension_protocol_options"] = {_PROTOCOL_OPTIONS: packed(_PROTOCOL_OPTIONS, options)}
        yield cluster


def fixed_clusters(world: World, node: ProxyNode) -> Iterator[Tree]:
    """BlackHoleCluster; for a sidecar also the two that forward to where a connection was headed."""
    timeout = duration(world.mesh.connect_timeout)
    yield {"name": names.BLACK_HOLE, "type": "STATIC", "connect_timeout": timeout}
    if node.is_gateway:
        return
    options: Tree = {
        "common_http_protocol_options": {"idle_timeout": duration(300)},
        "use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": {}},
    }
    for name in (names.PASSTHROUGH, names.INBOUND_PASSTHROUGH):
        cluster = _original_dst(world, name)
        cluster["typed_extension_protocol_options"] = {_PROTOCOL_OPTIONS: packed(_PROTOCOL_OPTIONS, options)}
        yield cluster


def _original_dst(world: World, name: str) -> Tree:
    return {
        "name": name,
        "type": "ORIGINAL_DST",
        "connect_timeout": duration(world.mesh.connect_timeout),
        "lb_policy": "CLUSTER_PROVIDED",
        "circuit_breakers": {"thresholds": [_NO_BREAKERS]},
    }
