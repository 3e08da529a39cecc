"""`proxyless gateway`: a reverse proxy at the edge of the mesh, on the same data plane as the workloads.

Which ports it opens, for which hosts and to where, is what its listeners say (Istio Gateway and VirtualService).
"""

from __future__ import annotations

from proxyless.gateway.app import GatewayApp
from proxyless.gateway.ports import Gateway

__all__ = ["Gateway", "GatewayApp"]
