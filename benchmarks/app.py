"""The application of both ends, without the mesh: 200 bytes of JSON. `mesh_app.py` adds our line."""

from __future__ import annotations

import json

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

BODY = json.dumps({"message": "x" * 180}).encode()


async def echo(request: Request) -> Response:
    return Response(BODY, media_type="application/json")


app = Starlette(routes=[Route("/echo", echo)])
