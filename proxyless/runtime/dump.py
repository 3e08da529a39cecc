"""What the admin listener shows of the configuration: Envoy's config_dump shape, and Envoy's text of clusters. No secrets."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from proxyless import protos

if TYPE_CHECKING:
    from collections.abc import Iterator

    from proxyless.core.learned import ClusterState
    from proxyless.core.snapshot import Endpoint, Upstream
    from proxyless.runtime.inbound import MeshLike
    from proxyless.xds.store import Dumped

__all__ = ["clusters", "config", "redact"]

_SECRETS = frozenset(
    {"private_key", "password", "session_ticket_keys", "generic_secret", "private_key_provider", "inline_bytes"}
)
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"})
REDACTED = "[redacted]"

_KINDS = {  # type URL -> (type of the dump, list of its entries, field of an entry)
    protos.LISTENER: ("ListenersConfigDump", "dynamic_listeners", "listener"),
    protos.ROUTE: ("RoutesConfigDump", "dynamic_route_configs", "route_config"),
    protos.CLUSTER: ("ClustersConfigDump", "dynamic_active_clusters", "cluster"),
    protos.ENDPOINT: ("EndpointsConfigDump", "dynamic_endpoint_configs", "endpoint_config"),
}


def config(mesh: MeshLike) -> dict[str, Any]:
    """Everything accepted and refused, with versions and reasons; our identity without its key; our settings.

    Listener entries nest one deeper (`active_state`), as in envoy.admin.v3.
    """
    client = mesh.xds
    held = [] if client is None else client.dump()
    snapshot = mesh.snapshot
    return {
        "configs": [
            {
                "@type": f"{protos.TYPE_PREFIX}envoy.admin.v3.{kind}",
                entries: [_entry(each, field) for each in held if each.type_url == url],
            }
            for url, (kind, entries, field) in _KINDS.items()
        ],
        "proxyless": {
            "generation": 0 if snapshot is None else snapshot.generation,
            "ready": mesh.ready,
            "reasons": mesh.not_ready_reasons(),
            "missing": []
            if snapshot is None
            else [{"kind": each.kind, "name": each.name} for each in snapshot.missing],
            "unsupported_fields": {} if client is None else client.unsupported(),
            "identity": _identity(mesh),
            "settings": _settings(mesh),
        },
    }


def redact(value: Any) -> Any:
    """The same JSON value without keys, passwords and the values of headers that carry credentials."""
    if isinstance(value, list):
        return [redact(each) for each in value]
    if not isinstance(value, dict):
        return value
    header = str(value.get("key", "")).lower() in _SECRET_HEADERS
    return {
        key: REDACTED if key in _SECRETS or (header and key in ("value", "raw_value")) else redact(each)
        for key, each in value.items()
    }


def _entry(held: Dumped, field: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": held.name}
    if held.raw:
        message = protos.message(protos.type_name(held.type_url)).FromString(held.raw)
        body = {"@type": held.type_url, **redact(protos.to_dict(message))}
        state = {"version_info": held.version, field: body}
        entry |= {"active_state": state} if field == "listener" else state
    if held.error:
        entry["error_state"] = {"details": held.error}
    if held.unsupported:
        entry["unsupported_fields"] = list(held.unsupported)
    return entry


def _identity(mesh: MeshLike) -> dict[str, Any] | None:
    source = mesh.identity_source
    current = None if source is None else source.current
    if source is None or current is None:
        return None
    svid = current.svid
    return {
        "spiffe_id": str(svid.spiffe_id),
        "not_before": _instant(svid.not_before),
        "not_after": _instant(svid.not_after),
        "trust_domains": sorted(current.bundles),
        "generation": current.generation,
    }


def _settings(mesh: MeshLike) -> dict[str, Any]:
    settings = mesh.settings
    return {
        "xds": settings.xds,
        "spiffe_socket": settings.spiffe_socket,
        "service": settings.service,
        "port": settings.port,
        "address": settings.address,
        "labels": dict(settings.labels),
        "namespace": settings.namespace,
        "service_account": settings.service_account,
        "workload": settings.workload,
        "disabled": settings.disabled.value,
        "access_log": settings.access_log,
    }


def _instant(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


# ------------------------------------------------------------------------------------------------------------- /clusters


def clusters(mesh: MeshLike) -> str:
    """One fact for each line, ``cluster::fact::value`` and ``cluster::address::fact::value`` (Envoy admin `/clusters`)."""
    snapshot = mesh.snapshot
    if snapshot is None:
        return ""
    lines: list[str] = []
    for name in sorted(snapshot.upstreams):
        lines += _cluster(name, snapshot.upstreams[name], mesh.learned.cluster(name))
    return "".join(f"{line}\n" for line in lines)


def _cluster(name: str, upstream: Upstream, state: ClusterState) -> Iterator[str]:
    cluster = upstream.cluster
    limits = cluster.breakers
    yield f"{name}::observability_name::{name}"
    yield f"{name}::default_priority::max_connections::{limits.max_connections}"
    yield f"{name}::default_priority::max_pending_requests::{limits.max_pending_requests}"
    yield f"{name}::default_priority::max_requests::{limits.max_requests}"
    yield f"{name}::default_priority::max_retries::{limits.max_retries}"
    yield f"{name}::cx_active::{state.connections}"
    yield f"{name}::rq_active::{state.requests}"
    yield f"{name}::rq_pending_active::{state.pending}"
    for endpoint in upstream.endpoints:
        yield from _endpoint(name, endpoint, state)


def _endpoint(name: str, endpoint: Endpoint, state: ClusterState) -> Iterator[str]:
    at = f"{name}::{endpoint.address}"
    learned = state.endpoints.get(endpoint.address)
    flags = [] if endpoint.health.eligible else [f"failed_eds_health({endpoint.health.value})"]
    if endpoint.address in state.ejected:
        flags.append("failed_outlier_check")
    region, zone, sub_zone = endpoint.locality
    yield f"{at}::rq_active::{0 if learned is None else learned.active}"
    yield f"{at}::hostname::{endpoint.hostname}"
    yield f"{at}::health_flags::{'/'.join(flags) or 'healthy'}"
    yield f"{at}::weight::{endpoint.weight}"
    yield f"{at}::region::{region}"
    yield f"{at}::zone::{zone}"
    yield f"{at}::sub_zone::{sub_zone}"
    yield f"{at}::priority::{endpoint.priority}"
    yield f"{at}::tls::{'mutual' if endpoint.tls is not None else 'none'}"
    yield f"{at}::ejections::{0 if learned is None else learned.ejections}"
