"""The same service in the mesh: the two lines."""

from __future__ import annotations

import httpx

from benchmarks.service import app
from proxyless.asgi import MeshMiddleware
from proxyless.httpx import AsyncMeshTransport

__all__ = ["app", "client"]

app.add_middleware(MeshMiddleware)
client = httpx.AsyncClient(transport=AsyncMeshTransport())
