"""Applications that gunicorn loads in the tests, and the mesh they run in: made from files and variables of the test.

TEST_MATERIAL names a JSON file: `mode`, `account`, `svid` (chain and key in hex), `anchors`, `deny`. It is read again when it
changes, so that a test can rotate and configure a running server.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from proxyless.core.snapshot import Resources, compile_snapshot
from proxyless.identity.bundle import TrustBundle
from proxyless.identity.source import StaticSource
from proxyless.identity.svid import X509Svid
from proxyless.runtime.mesh import Mesh
from proxyless.settings import Settings
from proxyless.wsgi import MeshWSGIMiddleware, mesh_peer
from tests.asgi.helpers import deny, listener, paths, policy

SERVICE = "payments.default.svc.cluster.local"


class FileMesh(Mesh):
    """A real mesh whose identity and configuration come from the file; followed by a thread from `start` on."""

    def __init__(self) -> None:
        super().__init__(Settings.from_environment(service=SERVICE), identity_source=StaticSource())
        self._seen = ""

    def start(self) -> None:
        if not self._started:
            super().start()
            self.follow()
            threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        while self._started and not pause.wait(0.05):
            self.follow()

    def follow(self) -> None:
        text = Path(os.environ["TEST_MATERIAL"]).read_text()
        if text == self._seen:
            return
        self._seen = text
        material = json.loads(text)
        source: Any = self.identity_source
        chain, key = (bytes.fromhex(material["svid"][part]) for part in ("chain", "key"))
        source.replace(
            X509Svid.parse(chain, key),
            [TrustBundle("cluster.local", [bytes.fromhex(each) for each in material["anchors"]])],
        )
        rbac = [deny(policy("deny", paths(*material["deny"])))] if material["deny"] else []
        generation = 1 if self.snapshot is None else self.snapshot.generation + 1
        resources = Resources(listeners={"virtualInbound": listener(material["mode"], *rbac)})
        self._publish(compile_snapshot(resources, None, generation))


MESH = FileMesh()


def plain(environ: Any, start_response: Any) -> list[bytes]:
    body = json.dumps(
        {
            "peer": str(mesh_peer(environ).identity or ""),
            "path": environ["PATH_INFO"],
            "scheme": environ["wsgi.url_scheme"],
            "pid": os.getpid(),
            "size": len(environ["wsgi.input"].read()),
            "headers": sorted(key for key in environ if key.startswith("HTTP_")),
        }
    ).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


application = MeshWSGIMiddleware(plain, mesh=MESH)


def flask_app() -> Any:
    from flask import Flask, request

    app = Flask(__name__)

    @app.get("/who")
    def who() -> dict[str, str]:
        return {"peer": str(mesh_peer(request).identity or ""), "scheme": request.scheme}

    app.wsgi_app = MeshWSGIMiddleware(app.wsgi_app, mesh=MESH)  # type: ignore[method-assign]
    return app


def django_app() -> Any:
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import JsonResponse
    from django.urls import path

    def who(request: Any) -> JsonResponse:
        response = JsonResponse({"peer": str(mesh_peer(request).identity or ""), "scheme": request.scheme})
        response["Content-Length"] = len(response.content)
        return response

    settings.configure(ROOT_URLCONF=type("urls", (), {"urlpatterns": [path("who", who)]}), ALLOWED_HOSTS=["*"])
    django.setup()
    return MeshWSGIMiddleware(get_wsgi_application(), mesh=MESH)
