"""The application of both ends: 200 bytes of JSON. `mesh_app` has our line, `bare_app` has not."""

from __future__ import annotations

import json

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxyless.asgi import MeshMiddleware

BODY = json.dumps({"message": "x" * 180}).encode()


async def echo(request: Request) -> Response:
    return Response(BODY, media_type="application/json")


bare_app = Starlette(routes=[Route("/echo", echo)])
mesh_app = Starlette(routes=[Route("/echo", echo)])
mesh_app.add_middleware(MeshMiddleware)
