"""payments: only billing may call it. Runs twice, as v1 and as v2."""

import os

from fastapi import FastAPI, Request

from proxyless.asgi import MeshMiddleware, mesh_peer

VERSION = os.environ.get("VERSION", "v1")

app = FastAPI(title=f"payments {VERSION}")
app.add_middleware(MeshMiddleware)


@app.get("/charge")
async def charge(request: Request) -> dict[str, str]:
    return {"version": VERSION, "caller": str(mesh_peer(request).identity)}
