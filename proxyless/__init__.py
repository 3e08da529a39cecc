"""proxyless: a service mesh that is a Python library.

    proxyless.asgi      MeshMiddleware, mesh_peer         FastAPI, Starlette
    proxyless.wsgi      MeshWSGIMiddleware, mesh_peer     Flask, Django
    proxyless.httpx     AsyncMeshTransport, MeshTransport
    proxyless.grpc      channels and servers of grpc.aio
    proxyless.testing   LocalMesh: a whole mesh for tests
    proxyless.errors    every exception

Importing this starts nothing and loads nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proxyless.runtime.mesh import Mesh
    from proxyless.settings import Settings

__all__ = ["Mesh", "Settings", "__version__"]

__version__ = "0.1.0"

_HOME = {"Mesh": "proxyless.runtime.mesh", "Settings": "proxyless.settings"}


def __getattr__(name: str) -> Any:
    """`Mesh` and `Settings`, imported when they are first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'proxyless' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
