"""Applications for the field cases, served in processes of their own."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

from fastapi import FastAPI

from proxyless.asgi import MeshMiddleware
from proxyless.wsgi import MeshWSGIMiddleware, mesh_peer

app = FastAPI()
app.add_middleware(MeshMiddleware)


@app.get("/")
def root() -> dict[str, str]:
    return {}


@contextlib.asynccontextmanager
async def _broken(_: FastAPI) -> AsyncIterator[None]:
    raise RuntimeError("the database is down")
    yield


broken = FastAPI(lifespan=_broken)
broken.add_middleware(MeshMiddleware)


async def _bare(scope: Any, receive: Any, send: Any) -> None:
    """Knows HTTP and nothing else."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


bare = MeshMiddleware(_bare)


def _echo(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    seen = {name: value for name, value in environ.items() if name.startswith("HTTP_") or name == "PATH_INFO"}
    body = json.dumps({**seen, "peer": str(mesh_peer(environ).identity or "")}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


wsgi = MeshWSGIMiddleware(_echo)
