"""Rules that no single field can tell: what istiod checks when a resource is admitted, and what people get wrong.

Each module has the rules of some kinds; a rule takes the context of the document and the decoded spec, and reports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from proxyless.controlplane.manifest.context import Context
from proxyless.controlplane.manifest.model import (
    AuthorizationPolicy,
    DestinationRule,
    Gateway,
    PeerAuthentication,
    RequestAuthentication,
    ServiceEntry,
    Sidecar,
    Telemetry,
    VirtualService,
    WorkloadEntry,
    WorkloadGroup,
)

from .authentication import check_peer_authentication, check_request_authentication
from .authorization import check_authorization_policy
from .destination import check_destination_rule
from .proxies import check_gateway, check_sidecar
from .routing import check_virtual_service
from .services import check_service_entry, check_workload_entry, check_workload_group
from .telemetry import check_telemetry

__all__ = ["check_spec"]

_RULES: Final[Mapping[type[Any], Callable[[Context, Any], None]]] = {
    VirtualService: check_virtual_service,
    DestinationRule: check_destination_rule,
    ServiceEntry: check_service_entry,
    WorkloadEntry: check_workload_entry,
    WorkloadGroup: check_workload_group,
    Gateway: check_gateway,
    Sidecar: check_sidecar,
    AuthorizationPolicy: check_authorization_policy,
    PeerAuthentication: check_peer_authentication,
    RequestAuthentication: check_request_authentication,
    Telemetry: check_telemetry,
}


def check_spec(context: Context, spec: Any) -> None:
    """Reports what is wrong with a decoded spec."""
    rule = _RULES.get(type(spec))
    if rule is not None:
        rule(context, spec)
