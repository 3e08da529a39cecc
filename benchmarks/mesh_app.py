"""The same application in the mesh."""

from __future__ import annotations

from benchmarks.app import app
from proxyless.asgi import MeshMiddleware

__all__ = ["app"]

app.add_middleware(MeshMiddleware)
