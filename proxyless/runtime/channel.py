"""Mutual TLS to a control plane on TCP, with our SVID.

gRPC's TLS checks a DNS name, not a SPIFFE ID. A host name that is no IP is checked as it stands (istiod's certificate has
``istiod.<namespace>.svc``); for an IP the control plane must hold a certificate for ``control-plane.<trust domain>``, a name
that the embedded authority gives to nobody else.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from proxyless.errors import NoIdentityError
from proxyless.identity.source import IdentitySource
from proxyless.settings import Settings
from proxyless.xds.stream import ChannelSecurity

__all__ = ["channel_security"]


def channel_security(source: IdentitySource, settings: Settings) -> ChannelSecurity:
    """Credentials of this moment; a rotated SVID is used by the next connection.

    Raises:
        NoIdentityError: there is no valid SVID yet.
    """
    import grpc

    identity = source.current
    if identity is None:
        raise NoIdentityError(f"no SVID to connect with: {source.status}")
    svid = identity.svid
    own = identity.bundles[svid.spiffe_id.trust_domain]
    credentials = grpc.ssl_channel_credentials(own.pem(), svid.key_pem(), svid.chain_pem())
    return ChannelSecurity(credentials, _server_name(settings.xds, svid.spiffe_id.trust_domain))


def _server_name(target: str, trust_domain: str) -> tuple[tuple[str, Any], ...]:
    host = target.rpartition(":")[0].strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return ()
    return (("grpc.ssl_target_name_override", f"control-plane.{trust_domain}"),)
