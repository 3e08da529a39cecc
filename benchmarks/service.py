"""A service as people write them: FastAPI, and a client of httpx. For the measurement of memory."""

from __future__ import annotations

import httpx
from fastapi import FastAPI

app = FastAPI()
client = httpx.AsyncClient()


@app.get("/echo")
async def echo() -> dict[str, str]:
    return {"message": "x" * 180}
