"""Which fields proxyless does not act on. Each one that a file sets is named in a warning: silence would be a defect.

The tables hold, by kind, the path without indexes and map keys, and why where it is not "not yet". A path stands for
everything below it. Whoever makes a field work end to end removes its line here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from .context import Context

__all__ = ["report_unsupported"]

_LATER: Final = ""
_ENVOY: Final = "it needs Envoy, and there is none"
_TCP: Final = "a library sees no raw TCP"
_TOKENS: Final = "tokens are not read: there is never a value"
_SECRETS: Final = "certificates come from the mesh only"

_TRAFFIC_POLICY: Final = {
    "loadBalancer.consistentHash": "endpoints are picked by LEAST_REQUEST",
    "loadBalancer.localityLbSetting": _LATER,
    "loadBalancer.zoneAwareLbSetting": _LATER,
    "loadBalancer.warmup": _LATER,
    "loadBalancer.warmupDurationSecs": _LATER,
    "connectionPool.tcp.tcpKeepalive": _LATER,
    "connectionPool.http.h2UpgradePolicy": "calls are HTTP/1.1",
    "connectionPool.http.useClientProtocol": "calls are HTTP/1.1",
    "connectionPool.http.maxConcurrentStreams": "calls are HTTP/1.1",
    "connectionPool.http.http2KeepAlive": "calls are HTTP/1.1",
    "outlierDetection.outlierDetectionHttpErrorCodes": _LATER,
    "tls.credentialName": _SECRETS,
    "tls.caCrl": _LATER,
    "tls.insecureSkipVerify": "certificates are always verified",
    "tunnel": _ENVOY,
    "proxyProtocol": _ENVOY,
}


def _policies() -> Iterator[tuple[str, str]]:
    for path, reason in _TRAFFIC_POLICY.items():
        for holder in ("spec.trafficPolicy", "spec.subsets.trafficPolicy"):
            yield f"{holder}.{path}", reason
            yield f"{holder}.portLevelSettings.{path}", reason


_TABLES: Final[Mapping[str, Mapping[str, str]]] = {
    "VirtualService": {
        "spec.http.mirror": _LATER,
        "spec.http.mirrors": _LATER,
        "spec.http.mirrorPercent": _LATER,
        "spec.http.mirrorPercentage": _LATER,
        "spec.http.corsPolicy": _LATER,
        "spec.http.match.statPrefix": _ENVOY,
        "spec.tcp": _TCP,
    },
    "DestinationRule": dict(_policies()),
    "WorkloadGroup": {"spec": "workloads register themselves"},
    "Sidecar": {"spec": _LATER},
    "Gateway": {"spec.servers.tls.credentialName": _SECRETS, "spec.servers.tls.credentialNames": _SECRETS},
    "RequestAuthentication": {"spec.jwtRules": "tokens are not read: policies that ask for claims match nobody"},
    "Telemetry": {"spec": _LATER},
    "EnvoyFilter": {"spec": _ENVOY},
    "WasmPlugin": {"spec": _ENVOY},
    "TrafficExtension": {"spec": _ENVOY},
    "ProxyConfig": {"spec": _ENVOY},
    "AuthorizationPolicy": {
        "spec.rules.from.source.requestPrincipals": _TOKENS,
        "spec.rules.from.source.notRequestPrincipals": _TOKENS,
        "spec.targetRef": "it is for gateways and waypoints of Kubernetes",
        "spec.targetRefs": "it is for gateways and waypoints of Kubernetes",
        "spec.provider": "there is no external authorization: what the rules match is denied",
    },
}
_INDEX: Final = re.compile(r"\[[0-9]+\]")


def report_unsupported(context: Context, kind: str) -> None:
    """Names the fields of this document that have no effect; each once, however often it stands there."""
    table = _TABLES.get(kind)
    if not table:
        return
    reported: set[str] = set()
    for path in sorted(context.places, key=lambda path: (path.count("."), path)):
        plain = _INDEX.sub("", path)
        if plain in table and plain not in reported:
            reported.add(plain)
            context.warn(path, "accepted, not acted on by proxyless", table[plain], code="unsupported")
