"""billing: calls payments and my-service by their mesh names."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from proxyless.asgi import MeshMiddleware
from proxyless.httpx import AsyncMeshTransport


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with httpx.AsyncClient(transport=AsyncMeshTransport(failures="respond"), timeout=10) as client:
        app.state.client = client
        yield


app = FastAPI(title="billing", lifespan=lifespan)
app.add_middleware(MeshMiddleware)


async def get(url: str) -> dict[str, Any]:
    """One call through the mesh, with what the mesh says of it."""
    response = await app.state.client.get(url)
    mesh = response.extensions.get("proxyless", {})
    body = response.json() if response.headers.get("content-type") == "application/json" else {}
    return {
        "status": response.status_code,
        "attempts": mesh.get("attempts", 0),
        "flag": mesh.get("flag", ""),
        "body": body,
    }


@app.get("/pay")
async def pay(times: int = 1) -> dict[str, Any]:
    """Charge so many times; the split is made by the mesh."""
    answers = [await get("http://payments.myapp.com/charge") for _ in range(times)]
    return {
        "statuses": Counter(str(answer["status"]) for answer in answers),
        "versions": Counter(answer["body"].get("version", "none") for answer in answers),
        "callers": sorted({answer["body"].get("caller", "") for answer in answers}),
    }


@app.get("/orders")
async def orders(times: int = 1) -> list[dict[str, Any]]:
    """api-service, round robin; one of its endpoints is dead, and the retry policy hides that."""
    return [await get("http://api-service/v1/orders") for _ in range(times)]


@app.get("/work")
async def work(times: int = 1, broken: str = "", slow: float = 0.0) -> list[dict[str, Any]]:
    return [await get(f"http://my-service/work?broken={broken}&slow={slow}") for _ in range(times)]


@app.get("/load")
async def load(seconds: float = 5.0, concurrency: int = 4) -> dict[str, Any]:
    """Call a route without retries for so long, and count what came back."""
    statuses: Counter[str] = Counter()
    end = time.monotonic() + seconds

    async def caller() -> None:
        while time.monotonic() < end:
            statuses[str((await get("http://steady.myapp.com/v1/orders"))["status"])] += 1

    await asyncio.gather(*(caller() for _ in range(concurrency)))
    return {"statuses": statuses}
