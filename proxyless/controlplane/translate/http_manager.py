"""The HTTP connection manager: what all HTTP filter chains have in common."""

from __future__ import annotations

from typing import Any

from proxyless.controlplane.translate.build import Tree, duration, extension
from proxyless.controlplane.translate.clusters import ADS_SOURCE
from proxyless.controlplane.translate.world import World

__all__ = ["http_manager", "rds", "tcp_proxy"]

_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_FILTERS = (
    ("envoy.filters.http.fault", "envoy.extensions.filters.http.fault.v3.HTTPFault"),
    ("envoy.filters.http.cors", "envoy.extensions.filters.http.cors.v3.Cors"),
    ("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router"),
)


def http_manager(world: World, stat_prefix: str, routes: Tree, policies: list[Tree], **more: Any) -> Tree:
    """The filter. `routes` holds `rds` or `route_config`; `policies` are the filters that decide before the others."""
    return extension(
        "envoy.filters.network.http_connection_manager",
        _MANAGER,
        {
            "stat_prefix": stat_prefix,
            **routes,
            "http_filters": [*policies, *(extension(*names) for names in _FILTERS)],
            "stream_idle_timeout": duration(0),
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            "proxy_100_continue": True,
            **_paths(world),
            **more,
        },
    )


def rds(name: str) -> Tree:
    return {"rds": {"config_source": ADS_SOURCE, "route_config_name": name}}


def tcp_proxy(cluster: str) -> Tree:
    """Bytes to one cluster, whatever they are."""
    return extension(
        "envoy.filters.network.tcp_proxy",
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        {"stat_prefix": cluster, "cluster": cluster},
    )


def _paths(world: World) -> Tree:
    """`pathNormalization` of the mesh settings (istio-semantics 1.11)."""
    mode = world.mesh.normalization
    if mode == "NONE":
        return {"normalize_path": {"value": False}}
    decode = mode == "DECODE_AND_MERGE_SLASHES"
    return {
        "normalize_path": {"value": True},
        "merge_slashes": decode or mode == "MERGE_SLASHES",
        "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD" if decode else "KEEP_UNCHANGED",
    }
