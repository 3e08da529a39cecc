"""Ordinary transport for what is not the mesh's: verification, client certificate and proxies as httpx would have them."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

from proxyless.httpx.library import Library

__all__ = ["Ordinary", "OrdinaryTransports"]


class Ordinary:
    """How to reach the outside.

    Args:
        verify, cert, trust_env, http2: as for `httpx.HTTPTransport`.
        proxy: for every request; None: what the environment says (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY) when
            `trust_env`. A client with a transport of its own does not look there.
    """

    def __init__(self, verify: Any, cert: Any, proxy: Any, trust_env: bool, http2: bool) -> None:
        self.verify, self.cert, self.proxy, self.trust_env, self.http2 = verify, cert, proxy, trust_env, http2
        self._context: ssl.SSLContext | None = None

    def tls(self) -> ssl.SSLContext:
        """For https:// to a service of the mesh's registry: TLS of the application, on a connection of ours."""
        if self._context is None:
            import httpx

            self._context = httpx.create_ssl_context(verify=self.verify, cert=self.cert, trust_env=self.trust_env)
            self._context.set_alpn_protocols(["http/1.1"])
        return self._context

    def proxy_for(self, scheme: str, host: str) -> Any:
        if self.proxy is not None or not self.trust_env:
            return self.proxy
        import urllib.request  # 15 ms of http.client that a mesh-only process does not need

        proxies = urllib.request.getproxies()
        proxy = proxies.get(scheme) or proxies.get("all")
        if not proxy or urllib.request.proxy_bypass(host):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"


class OrdinaryTransports:
    """Made when first needed, one for each library and proxy. For one event loop, or for any thread."""

    def __init__(self, ordinary: Ordinary, name: str) -> None:
        """`name`: class of the library to use."""
        self._ordinary, self._name = ordinary, name
        self._made: dict[tuple[Library, Any], Any] = {}

    def find(self, library: Library, url: Any) -> Any:
        ordinary = self._ordinary
        proxy = ordinary.proxy_for(url.scheme, url.host)
        transport = self._made.get((library, proxy))
        if transport is None:
            make: Callable[..., Any] = getattr(library.module, self._name)
            transport = make(
                verify=ordinary.verify,
                cert=ordinary.cert,
                trust_env=ordinary.trust_env,
                http2=ordinary.http2,
                proxy=proxy,
            )
            transport = self._made.setdefault((library, proxy), transport)
        return transport

    def take(self) -> list[Any]:
        """Everything that was made, to close it."""
        made = list(self._made.values())
        self._made.clear()
        return made
