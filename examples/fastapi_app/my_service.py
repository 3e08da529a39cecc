"""my-service: an instance that the caller names fails, so the caller's mesh takes it out of use."""

import asyncio
import os

from fastapi import FastAPI, Response

from proxyless.asgi import MeshMiddleware

INSTANCE = os.environ.get("INSTANCE", "a")

app = FastAPI(title=f"my-service {INSTANCE}")
app.add_middleware(MeshMiddleware)


@app.get("/work")
async def work(response: Response, broken: str = "", slow: float = 0.0) -> dict[str, str]:
    await asyncio.sleep(slow)
    if broken == INSTANCE:
        response.status_code = 500
    return {"instance": INSTANCE}
