"""DestinationRule and traffic policies."""

from __future__ import annotations

from typing import Final

from proxyless.controlplane.manifest.context import Context
from proxyless.controlplane.manifest.model import (
    ClientTLSSettings,
    ConnectionPoolSettings,
    ConsistentHashLB,
    DestinationRule,
    LoadBalancerSettings,
    LocalityLoadBalancerSetting,
    OutlierDetection,
    PortTrafficPolicy,
    TrafficPolicy,
)

from .checks import check_export_to, check_labels, check_one_of, check_selector, duplicates, is_host

__all__ = ["check_connection_pool", "check_destination_rule", "check_outlier", "check_traffic_policy"]

_LARGEST_MAGLEV_TABLE: Final = 5_000_011
DEFAULT_EJECTION_PERCENT: Final = 10


def check_destination_rule(context: Context, spec: DestinationRule) -> None:
    if spec.host and not is_host(spec.host, wildcard=True):
        context.error("spec.host", f"{spec.host[:80]!r} is no host name", "a star is allowed at the beginning only")
    if spec.traffic_policy is not None:
        check_traffic_policy(context, "spec.trafficPolicy", spec.traffic_policy)
    for index, subset in enumerate(spec.subsets):
        path = f"spec.subsets[{index}]"
        if subset.name and (not is_host(subset.name, wildcard=False) or "." in subset.name):
            context.error(f"{path}.name", f"{subset.name[:80]!r} is no subset name", "letters, digits and '-'")
        check_labels(context, f"{path}.labels", subset.labels)
        if subset.traffic_policy is not None:
            check_traffic_policy(context, f"{path}.trafficPolicy", subset.traffic_policy)
    for index in duplicates(subset.name for subset in spec.subsets):
        context.error(f"spec.subsets[{index}].name", f"subset {spec.subsets[index].name!r} stands twice")
    check_export_to(context, spec.export_to)
    if spec.workload_selector is not None:
        check_selector(context, "spec.workloadSelector", spec.workload_selector.match_labels)
        for index, target in enumerate(spec.export_to):
            if target not in (".", context.subject.namespace):
                reason = "a rule with workloadSelector stays in its namespace"
                context.error(f"spec.exportTo[{index}]", reason, "write '.' or leave exportTo out")


def check_traffic_policy(context: Context, path: str, policy: TrafficPolicy) -> None:
    if policy == TrafficPolicy():
        context.error(path, "an empty traffic policy", "leave it out", code="required")
    _check_policy_parts(context, path, policy)
    for index, level in enumerate(policy.port_level_settings):
        here = f"{path}.portLevelSettings[{index}]"
        if level.port is None:
            context.error(f"{here}.port", "required field is missing", code="required")
        _check_policy_parts(context, here, level)
    ports = [level.port.number for level in policy.port_level_settings if level.port is not None]
    for index in duplicates(ports):
        context.error(f"{path}.portLevelSettings[{index}]", f"port {ports[index]} stands twice")
    if policy.tunnel is not None and policy.tunnel.protocol not in ("", "CONNECT", "POST"):
        context.error(f"{path}.tunnel.protocol", f"{policy.tunnel.protocol[:40]!r} is unknown", "CONNECT or POST")


def _check_policy_parts(context: Context, path: str, policy: TrafficPolicy | PortTrafficPolicy) -> None:
    if policy.load_balancer is not None:
        _check_load_balancer(context, f"{path}.loadBalancer", policy.load_balancer)
    if policy.connection_pool is not None:
        check_connection_pool(context, f"{path}.connectionPool", policy.connection_pool)
    if policy.outlier_detection is not None:
        check_outlier(context, f"{path}.outlierDetection", policy.outlier_detection)
    if policy.tls is not None:
        check_client_tls(context, f"{path}.tls", policy.tls)


def _check_load_balancer(context: Context, path: str, settings: LoadBalancerSettings) -> None:
    check_one_of(
        context,
        path,
        {"simple": settings.simple is not None, "consistentHash": settings.consistent_hash is not None},
    )
    warmups = {
        "warmupDurationSecs": settings.warmup_duration_secs is not None,
        "warmup": settings.warmup is not None,
    }
    check_one_of(context, path, warmups)
    if settings.warmup_duration_secs is not None:
        context.warn(f"{path}.warmupDurationSecs", "deprecated", "use warmup: {duration: ...}", code="deprecated")
    if any(warmups.values()) and settings.simple not in (None, "UNSPECIFIED", "ROUND_ROBIN", "LEAST_REQUEST"):
        context.warn(path, f"warmup has no effect with {settings.simple}", "ROUND_ROBIN or LEAST_REQUEST has it")
    if settings.simple == "LEAST_CONN":
        context.warn(f"{path}.simple", "deprecated", "use LEAST_REQUEST", code="deprecated")
    if settings.consistent_hash is not None:
        _check_hash(context, f"{path}.consistentHash", settings.consistent_hash)
    if settings.locality_lb_setting is not None:
        if settings.zone_aware_lb_setting is not None:
            context.error(f"{path}.zoneAwareLbSetting", "excludes localityLbSetting")
        check_locality(context, f"{path}.localityLbSetting", settings.locality_lb_setting)


def _check_hash(context: Context, path: str, settings: ConsistentHashLB) -> None:
    keys = {
        "httpHeaderName": settings.http_header_name is not None,
        "httpCookie": settings.http_cookie is not None,
        "useSourceIp": settings.use_source_ip is not None,
        "httpQueryParameterName": settings.http_query_parameter_name is not None,
    }
    check_one_of(context, path, keys)
    if not any(keys.values()) or (keys["useSourceIp"] and not settings.use_source_ip):
        context.warn(path, "nothing to hash: endpoints are picked at random", f"one of {', '.join(keys)}")
    check_one_of(context, path, {"ringHash": settings.ring_hash is not None, "maglev": settings.maglev is not None})
    if settings.minimum_ring_size is not None:
        context.warn(f"{path}.minimumRingSize", "deprecated", "use ringHash.minimumRingSize", code="deprecated")
    if settings.maglev is not None:
        size = settings.maglev.table_size or 0
        if not _is_prime(size) or size > _LARGEST_MAGLEV_TABLE:
            hint = f"a prime number up to {_LARGEST_MAGLEV_TABLE}, for example 65537"
            context.error(f"{path}.maglev.tableSize", f"{size} is no prime number", hint)
    if settings.http_cookie is not None:
        names = [attribute.name for attribute in settings.http_cookie.attributes]
        for index in duplicates(names):
            context.error(f"{path}.httpCookie.attributes[{index}].name", f"{names[index]!r} stands twice")


def _is_prime(number: int) -> bool:
    if number < 2 or number > _LARGEST_MAGLEV_TABLE:
        return False
    return all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def check_locality(context: Context, path: str, settings: LocalityLoadBalancerSetting) -> None:
    if settings.distribute and (settings.failover or settings.failover_priority):
        context.error(f"{path}.distribute", "excludes failover and failoverPriority")
    for index, distribute in enumerate(settings.distribute):
        here = f"{path}.distribute[{index}]"
        if not distribute.from_:
            context.error(f"{here}.from", "required field is missing", code="required")
        total = sum(distribute.to.values())
        if total != 100:
            context.error(f"{here}.to", f"the weights add up to {total}, not to 100")
    for index, failover in enumerate(settings.failover):
        here = f"{path}.failover[{index}]"
        if failover.from_ == failover.to:
            context.error(here, "from and to are the same region")
        for name, region in (("from", failover.from_), ("to", failover.to)):
            if "/" in region or "*" in region:
                context.error(f"{here}.{name}", f"{region!r} is no region", "regions only, without zones and stars")


def check_connection_pool(context: Context, path: str, pool: ConnectionPoolSettings) -> None:
    if pool.tcp is None and pool.http is None:
        context.error(path, "needs tcp or http", code="required")
    if pool.tcp is not None:
        _check_not_negative(context, f"{path}.tcp.maxConnections", pool.tcp.max_connections)
    http = pool.http
    if http is None:
        return
    for name, value in (
        ("http1MaxPendingRequests", http.http1_max_pending_requests),
        ("http2MaxRequests", http.http2_max_requests),
        ("maxRequestsPerConnection", http.max_requests_per_connection),
        ("maxRetries", http.max_retries),
        ("maxConcurrentStreams", http.max_concurrent_streams),
    ):
        _check_not_negative(context, f"{path}.http.{name}", value)
    if http.use_client_protocol and http.h2_upgrade_policy == "UPGRADE":
        context.error(f"{path}.http.useClientProtocol", "excludes h2UpgradePolicy: UPGRADE")


def _check_not_negative(context: Context, path: str, value: int | None) -> None:
    if value is not None and value < 0:
        context.error(path, f"{value} is negative", code="range")


def check_outlier(context: Context, path: str, outlier: OutlierDetection) -> None:
    if outlier.consecutive_errors is not None:
        hint = "use consecutive5xxErrors"
        context.warn(f"{path}.consecutiveErrors", "deprecated, and ignored by Istio", hint, code="deprecated")
    if outlier.consecutive_local_origin_failures is not None and not outlier.split_external_local_origin_errors:
        reason = "needs splitExternalLocalOriginErrors: true"
        context.error(f"{path}.consecutiveLocalOriginFailures", reason)
    if never_ejects(outlier):
        context.warn(path, "nothing is ever ejected: every count is off", "set consecutive5xxErrors", code="no-effect")


def never_ejects(outlier: OutlierDetection) -> bool:
    """Every cause of an ejection is turned off (an absent consecutive5xxErrors is Envoy's 5)."""
    return (
        outlier.consecutive_5xx_errors == 0
        and not outlier.consecutive_gateway_errors
        and not (outlier.split_external_local_origin_errors and outlier.consecutive_local_origin_failures)
    )


def hosts_until_ejection(outlier: OutlierDetection) -> int:
    """Fewest endpoints with which one of them may be ejected: (ejected + 1) / hosts <= maxEjectionPercent."""
    percent = outlier.max_ejection_percent or DEFAULT_EJECTION_PERCENT
    return -(-100 // percent)


def check_client_tls(context: Context, path: str, tls: ClientTLSSettings) -> None:
    files = {
        "clientCertificate": tls.client_certificate,
        "privateKey": tls.private_key,
        "caCertificates": tls.ca_certificates,
    }
    if tls.mode == "ISTIO_MUTUAL":
        for name, value in {**files, "credentialName": tls.credential_name, "caCrl": tls.ca_crl}.items():
            if value:
                context.error(f"{path}.{name}", "is not allowed with ISTIO_MUTUAL", "the mesh has its own certificates")
    elif tls.credential_name:
        for name, value in files.items():
            if value:
                context.error(f"{path}.{name}", "excludes credentialName")
    elif tls.mode == "MUTUAL":
        for name in ("clientCertificate", "privateKey"):
            if not files[name]:
                context.error(f"{path}.{name}", "required with MUTUAL, or credentialName", code="required")
    if tls.insecure_skip_verify:
        for name, present in (("caCertificates", tls.ca_certificates), ("subjectAltNames", tls.subject_alt_names)):
            if present:
                context.error(f"{path}.insecureSkipVerify", f"excludes {name}: nothing would be verified with it")
    if tls.mode == "DISABLE" and tls != ClientTLSSettings():
        context.warn(path, "mode DISABLE: the other fields have no effect", "set mode")
