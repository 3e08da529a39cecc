"""An application that `proxyless run` loads in the tests, as a newcomer would write it."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from fastapi import FastAPI, Request

from proxyless.asgi import MeshMiddleware, mesh_peer

app = FastAPI()
app.add_middleware(MeshMiddleware)


@app.get("/")
async def root(request: Request, seconds: float = 0.0) -> dict[str, Any]:
    await asyncio.sleep(seconds)
    return {"pid": os.getpid(), "peer": str(mesh_peer(request).identity or "")}
