"""Addresses of a Workload API: the value of ``SPIFFE_ENDPOINT_SOCKET`` (SPIFFE Workload Endpoint 4)."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

from proxyless.errors import SettingsError

__all__ = ["Endpoint", "parse_endpoint"]

_EXAMPLES = "write unix:///run/spire/agent.sock or tcp://127.0.0.1:8081"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to connect: a Unix socket's absolute path, or ``ip:port``."""

    kind: str  # unix or tcp
    target: str

    @property
    def grpc_target(self) -> str:
        """In the syntax of gRPC names."""
        return (
            f"unix:{quote(self.target)}"
            if self.kind == "unix"
            else f"ipv{6 if '[' in self.target else 4}:{self.target}"
        )

    def __str__(self) -> str:
        return f"{self.kind}:{self.target}" if self.kind == "unix" else f"{self.kind}://{self.target}"


def parse_endpoint(text: str) -> Endpoint:
    """Read an address.

    Raises:
        SettingsError: it is not one; names of hosts are refused, as is everything the specification does not allow.
    """
    scheme, colon, rest = text.partition(":")
    if not text or not colon or scheme not in ("unix", "tcp"):
        raise _wrong(text, "it must begin with unix: or tcp:")
    if "#" in rest:
        raise _wrong(text, "a fragment is not allowed")
    if "?" in rest:
        raise _wrong(text, "a query is not allowed")
    if not rest.startswith("/"):
        raise _wrong(text, "the path must be absolute" if scheme == "unix" else "it must be tcp://ip:port")
    authority, path = "", rest
    if rest.startswith("//"):
        authority, slash, path = rest[2:].partition("/")
        path = slash + path
    if "@" in authority:
        raise _wrong(text, "user information is not allowed")
    return _unix(text, authority, path) if scheme == "unix" else _tcp(text, authority, path)


def _unix(text: str, authority: str, path: str) -> Endpoint:
    if authority:
        raise _wrong(text, "a host is not allowed: after unix: come one or three slashes")
    try:
        plain = unquote_to_bytes(path).decode("utf-8")
    except UnicodeDecodeError:
        raise _wrong(text, "the path is not UTF-8") from None
    if not plain.strip("/"):
        raise _wrong(text, "the path is missing")
    if "\0" in plain:
        raise _wrong(text, "the path has a NUL character")
    return Endpoint("unix", plain)


def _tcp(text: str, authority: str, path: str) -> Endpoint:
    if not authority:
        raise _wrong(text, "the IP address is missing")
    if path:
        raise _wrong(text, "a path is not allowed after the port")
    host, colon, port = authority.rpartition(":")
    if not colon or (host.startswith("[") and not host.endswith("]")):
        raise _wrong(text, "the port is missing")
    try:
        address = ipaddress.ip_address(host[1:-1] if host.startswith("[") else host)
    except ValueError:
        raise _wrong(text, f"{host!a} is no IP address, and names are not resolved here") from None
    if (address.version == 6) != host.startswith("["):
        raise _wrong(text, "brackets belong around an IPv6 address, and only there")
    if not (port.isascii() and port.isdigit() and len(port) <= 5) or not 1 <= int(port) <= 65535:
        raise _wrong(text, "the port must be 1 to 65535")
    return Endpoint("tcp", f"{host}:{int(port)}")


def _wrong(text: str, reason: str) -> SettingsError:
    return SettingsError(f"SPIFFE_ENDPOINT_SOCKET {text!a}: {reason} ({_EXAMPLES})")
