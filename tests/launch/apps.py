"""Applications that `proxyless run` loads in the tests; see `tests.wsgi.apps` for their mesh."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request

from proxyless.asgi import MeshMiddleware, mesh_peer
from proxyless.runtime.inbound import serve_with
from tests.wsgi.apps import MESH

app = FastAPI()
app.add_middleware(MeshMiddleware, mesh=MESH)


@app.get("/")
def who(request: Request) -> dict[str, Any]:
    client = "" if request.client is None else request.client.host
    return {
        "peer": str(mesh_peer(request).identity or ""),
        "pid": os.getpid(),
        "client": client,
        "url": str(request.url),
    }


def make_slow_starter() -> FastAPI:
    """An application that has started when the file TEST_STARTED is there."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        while not os.path.exists(os.environ["TEST_STARTED"]):
            await asyncio.sleep(0.01)
        yield

    slow = FastAPI(lifespan=lifespan)
    slow.add_middleware(MeshMiddleware, mesh=MESH)

    @slow.get("/")
    def root() -> dict[str, int]:
        return {"pid": os.getpid()}

    return slow


def make_failing_starter() -> FastAPI:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("cannot start")
        yield

    return FastAPI(lifespan=lifespan)


def make_without_middleware() -> FastAPI:
    """An application whose author forgot the middleware, made by a factory."""
    serve_with(MESH)
    bare = FastAPI()

    @bare.get("/")
    def root() -> dict[str, int]:
        return {"pid": os.getpid()}

    return bare


def broken() -> FastAPI:
    raise RuntimeError("cannot be made")
