"""An application whose import takes until the file TEST_GO is there, in the mesh of its environment."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from proxyless.wsgi import MeshWSGIMiddleware

while not Path(os.environ["TEST_GO"]).exists():
    time.sleep(0.01)


def plain(environ: Any, start_response: Any) -> list[bytes]:
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


application = MeshWSGIMiddleware(plain)
