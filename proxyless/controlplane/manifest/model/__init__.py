"""Typed specs of the Istio kinds. Rules of the shapes: ``common``."""

from __future__ import annotations

from typing import Any, Final

from .common import (
    LabelSelector as LabelSelector,
)
from .common import (
    PolicyTargetReference as PolicyTargetReference,
)
from .common import (
    PortSelector as PortSelector,
)
from .common import (
    Resource as Resource,
)
from .common import (
    WorkloadSelector as WorkloadSelector,
)
from .common import (
    json_name as json_name,
)
from .destination import *  # noqa: F403 - a package of names; each module has its __all__
from .destination import DestinationRule
from .envoy import *  # noqa: F403 - as above
from .envoy import EnvoyOnly
from .proxies import *  # noqa: F403 - as above
from .proxies import Gateway, Sidecar
from .routing import *  # noqa: F403 - as above
from .routing import VirtualService
from .security import *  # noqa: F403 - as above
from .security import AuthorizationPolicy, PeerAuthentication, RequestAuthentication
from .services import *  # noqa: F403 - as above
from .services import ServiceEntry, WorkloadEntry, WorkloadGroup
from .telemetry import *  # noqa: F403 - as above
from .telemetry import Telemetry

AnyResource = Resource[Any]

SPECS: Final[dict[tuple[str, str], type[Any]]] = {
    ("networking.istio.io", "VirtualService"): VirtualService,
    ("networking.istio.io", "DestinationRule"): DestinationRule,
    ("networking.istio.io", "ServiceEntry"): ServiceEntry,
    ("networking.istio.io", "WorkloadEntry"): WorkloadEntry,
    ("networking.istio.io", "WorkloadGroup"): WorkloadGroup,
    ("networking.istio.io", "Gateway"): Gateway,
    ("networking.istio.io", "Sidecar"): Sidecar,
    ("networking.istio.io", "EnvoyFilter"): EnvoyOnly,
    ("networking.istio.io", "ProxyConfig"): EnvoyOnly,
    ("security.istio.io", "AuthorizationPolicy"): AuthorizationPolicy,
    ("security.istio.io", "PeerAuthentication"): PeerAuthentication,
    ("security.istio.io", "RequestAuthentication"): RequestAuthentication,
    ("telemetry.istio.io", "Telemetry"): Telemetry,
    ("extensions.istio.io", "WasmPlugin"): EnvoyOnly,
    ("extensions.istio.io", "TrafficExtension"): EnvoyOnly,
}
"""Spec type by API group and kind."""
