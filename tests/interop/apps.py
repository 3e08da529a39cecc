"""The applications that Envoy calls: the two public lines, and an answer that says what arrived. Served in processes of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from flask import Flask, request

from proxyless import wsgi
from proxyless.asgi import MeshMiddleware, mesh_peer
from proxyless.wsgi import MeshWSGIMiddleware

PIECES = 50

fastapi_app = FastAPI()
fastapi_app.add_middleware(MeshMiddleware)

flask_app = Flask(__name__)
flask_app.wsgi_app = MeshWSGIMiddleware(flask_app.wsgi_app)  # type: ignore[method-assign]  # as Flask's own docs have it


def pieces() -> Iterator[bytes]:
    for number in range(PIECES):
        yield b"%04d\n" % number


def seen(peer: Any, path: str, headers: dict[str, str], body: bytes) -> dict[str, Any]:
    return {
        "peer": str(peer.identity or ""),
        "path": path,
        "headers": headers,
        "size": len(body),
        "digest": hashlib.sha256(body).hexdigest(),
    }


@fastapi_app.get("/pieces")
async def fastapi_pieces() -> StreamingResponse:
    async def body() -> Any:
        for piece in pieces():
            yield piece

    return StreamingResponse(body())


@fastapi_app.websocket("/socket")
async def fastapi_socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(f"{mesh_peer(websocket).identity}: {await websocket.receive_text()}")
    await websocket.close()


@fastapi_app.api_route("/{path:path}", methods=["GET", "POST"])
async def fastapi_echo(path: str, request: Request) -> dict[str, Any]:
    return seen(mesh_peer(request), f"/{path}", dict(request.headers), await request.body())


@flask_app.get("/pieces")
def flask_pieces() -> Any:
    return flask_app.response_class(pieces())


@flask_app.route("/<path:path>", methods=["GET", "POST"])
def flask_echo(path: str) -> dict[str, Any]:
    headers = {name.lower(): value for name, value in request.headers.items()}
    return seen(wsgi.mesh_peer(request), f"/{path}", headers, request.get_data())
