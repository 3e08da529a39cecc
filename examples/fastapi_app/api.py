"""api: what the gateway shows to the outside as api.myapp.com/v1."""

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI, Request

from proxyless.asgi import MeshMiddleware, mesh_peer
from proxyless.httpx import AsyncMeshTransport

INSTANCE = os.environ.get("INSTANCE", "a")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # The external service of the demo has a certificate of its own authority; in real life the default is right.
    verify: ssl.SSLContext | bool = True
    if "EXTERNAL_CA" in os.environ:
        verify = ssl.create_default_context(cafile=os.environ["EXTERNAL_CA"])
    async with httpx.AsyncClient(transport=AsyncMeshTransport(verify=verify, failures="respond"), timeout=10) as client:
        app.state.client = client
        yield


app = FastAPI(title=f"api {INSTANCE}", lifespan=lifespan)
app.add_middleware(MeshMiddleware)


@app.get("/v1/orders")
async def orders(request: Request) -> dict[str, str]:
    return {"instance": INSTANCE, "caller": str(mesh_peer(request).identity)}


@app.get("/v1/pay")
async def pay() -> dict[str, Any]:
    """api may not call payments; the mesh of payments refuses."""
    response = await app.state.client.get("http://payments.myapp.com/charge")
    return {"status": response.status_code, "text": response.text[:100], "mesh": _mesh(response)}


@app.get("/v1/login")
async def login() -> dict[str, Any]:
    """An external service, reached by its ServiceEntry."""
    response = await app.state.client.get("https://auth.external-service.com/token")
    return {"status": response.status_code, "body": response.json(), "mesh": _mesh(response)}


def _mesh(response: httpx.Response) -> dict[str, Any]:
    seen = response.extensions.get("proxyless", {})
    return {key: str(seen[key]) for key in ("peer", "endpoint", "cluster", "flag") if seen.get(key)}
