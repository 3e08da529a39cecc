"""Settings of one process: explicit argument, else environment, else default. The only reader of `os.environ`.

PROXYLESS_XDS               control plane: ``unix:/run/xds.sock`` or ``host:port`` (TLS with our SVID)
SPIFFE_ENDPOINT_SOCKET      Workload API: ``unix:/run/agent.sock``
PROXYLESS_SERVICE           service to register as; empty: only a client
PROXYLESS_PORT              port that this workload listens on
PROXYLESS_ADDRESS           IP address that callers reach it by (default 127.0.0.1)
PROXYLESS_LABELS            ``app=payments,version=v1``
PROXYLESS_NAMESPACE         namespace (default ``default``)
PROXYLESS_SERVICE_ACCOUNT   service account (default: the one of our SVID)
PROXYLESS_WORKLOAD          workload name (default: the service's name, else the service account, else ``default``)
PROXYLESS_DISABLED          kill switch: ``outbound`` (plain httpx) or ``all`` (inbound passes unchecked too)
PROXYLESS_ADMIN             admin listener: ``host:port``, ``unix:/path`` or ``off``
PROXYLESS_ACCESS_LOG        ``off``, ``stdout``, ``stderr`` or a file
PROXYLESS_WORKERS_DIR       directory shared by the workers of one server; set by the server's launcher
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal

from proxyless.errors import SettingsError

__all__ = ["Disabled", "NodeKind", "Settings", "unknown_variables"]

NodeKind = Literal["sidecar", "router"]


_KNOWN = frozenset(
    f"PROXYLESS_{name}"
    for name in [
        "XDS",
        "SERVICE",
        "PORT",
        "ADDRESS",
        "LABELS",
        "NAMESPACE",
        "SERVICE_ACCOUNT",
        "WORKLOAD",
        "DISABLED",
        "ADMIN",
        "ACCESS_LOG",
        "WORKERS_DIR",
    ]
)
_OTHERS = (
    "PROXYLESS_RUN_",
    "PROXYLESS_SERVICE_HOST",
    "PROXYLESS_SERVICE_PORT",
    "PROXYLESS_PORT_",
    "PROXYLESS_CONFORMANCE",
)
_HOST_AND_PORT = re.compile(r"(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}")
_NUMBER = re.compile(r"[0-9]{1,5}")


class Disabled(StrEnum):
    """The kill switch."""

    NOTHING = ""
    OUTBOUND = "outbound"
    ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything a process is told from outside. Immutable; `Settings.from_environment()` reads the variables above.

    Attributes:
        xds: target of the control plane; empty: none, and the process says so.
        spiffe_socket: Workload API endpoint; empty: no identity.
        service, port, address, labels: what to register; an empty service registers nothing. Port 0: not known yet.
        service_account: empty: the one of our SVID.
        node_kind: ``sidecar`` for workloads, ``router`` for gateways.
        start_timeout: seconds an outbound call without a timeout of its own waits for the first configuration.
    """

    xds: str = ""
    spiffe_socket: str = ""
    service: str = ""
    port: int = 0
    address: str = "127.0.0.1"
    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = "default"
    service_account: str = ""
    workload: str = ""
    node_kind: NodeKind = "sidecar"
    disabled: Disabled = Disabled.NOTHING
    admin: str = ""
    access_log: str = "off"
    workers_dir: str = ""
    start_timeout: float = 5.0

    def __post_init__(self) -> None:
        workload = self.workload or self.service.partition(".")[0] or self.service_account or "default"
        object.__setattr__(self, "workload", workload)

    @property
    def disabled_outbound(self) -> bool:
        return self.disabled is not Disabled.NOTHING

    @property
    def disabled_inbound(self) -> bool:
        return self.disabled is Disabled.ALL

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **explicit: Any) -> Settings:
        """Read the environment; explicit arguments win.

        Raises:
            SettingsError: a variable cannot be used; the text names it and a right value.
        """
        env = os.environ if environ is None else environ
        values: dict[str, Any] = {
            "xds": _address(env, "PROXYLESS_XDS"),
            "spiffe_socket": env.get("SPIFFE_ENDPOINT_SOCKET", ""),
            "service": env.get("PROXYLESS_SERVICE", ""),
            "port": _port(env, "PROXYLESS_PORT"),
            "address": _ip(env, "PROXYLESS_ADDRESS") or "127.0.0.1",
            "labels": _labels(env, "PROXYLESS_LABELS"),
            "namespace": env.get("PROXYLESS_NAMESPACE", "") or "default",
            "service_account": env.get("PROXYLESS_SERVICE_ACCOUNT", ""),
            "workload": env.get("PROXYLESS_WORKLOAD", ""),
            "disabled": _disabled(env, "PROXYLESS_DISABLED"),
            "admin": _admin(env, "PROXYLESS_ADMIN"),
            "access_log": env.get("PROXYLESS_ACCESS_LOG", "") or "off",
            "workers_dir": env.get("PROXYLESS_WORKERS_DIR", ""),
        }
        values.update(explicit)
        return cls(**values)

    def with_port(self, port: int) -> Settings:
        """The same settings once the listening port is known."""
        return replace(self, port=port)


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Names that look like settings and are none. Kubernetes makes ``PROXYLESS_…`` variables for a Service called proxyless."""
    return sorted(
        name
        for name in environ
        if name.startswith("PROXYLESS_") and name not in _KNOWN and not name.startswith(_OTHERS)
    )


def _address(env: Mapping[str, str], name: str) -> str:
    text = env.get(name, "")
    if not text or text.startswith(("unix:/", "unix:./")):
        return text
    if not _HOST_AND_PORT.fullmatch(text) or not 0 < int(text.rpartition(":")[2]) < 65536:
        raise SettingsError(f"{name}={text!r} is no address: write unix:/run/xds.sock or istiod.istio-system:15012")
    return text


def admin_address(text: str) -> str | tuple[str, int]:
    """PROXYLESS_ADMIN as a path of a Unix socket, or host and port.

    Raises:
        SettingsError: it is neither.
    """
    if text.startswith("unix:"):
        return text[5:]
    host, _, port = text.rpartition(":")
    if not host or not _NUMBER.fullmatch(port) or int(port) > 65535:
        raise SettingsError(
            f"PROXYLESS_ADMIN={text!r} is no address: write 127.0.0.1:15021, unix:/run/admin.sock or off"
        )
    return host.strip("[]"), int(port)


def _admin(env: Mapping[str, str], name: str) -> str:
    text = env.get(name, "")
    if text not in ("", "off"):
        admin_address(text)
    return text


def _ip(env: Mapping[str, str], name: str) -> str:
    text = env.get(name, "")
    try:
        return str(ipaddress.ip_address(text)) if text else ""
    except ValueError:
        raise SettingsError(f"{name}={text!r} is no IP address: write 10.0.0.7") from None


def _port(env: Mapping[str, str], name: str) -> int:
    text = env.get(name, "") or "0"
    if not _NUMBER.fullmatch(text) or int(text) > 65535:
        raise SettingsError(f"{name}={text!r} is no port: write a number from 1 to 65535, for example 8000")
    return int(text)


def _labels(env: Mapping[str, str], name: str) -> dict[str, str]:
    labels: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in env.get(name, "").split(","))):
        key, separator, value = part.partition("=")
        if not separator or not key or "=" in value:
            raise SettingsError(f"{name}: {part!r} is no label: write app=payments,version=v1")
        labels[key.strip()] = value.strip()
    return labels


def _disabled(env: Mapping[str, str], name: str) -> Disabled:
    text = env.get(name, "")
    try:
        return Disabled(text)
    except ValueError:
        raise SettingsError(f"{name}={text!r} is unknown: write outbound, all, or leave it unset") from None
