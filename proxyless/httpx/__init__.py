"""httpx: the mesh below a client.

    httpx.AsyncClient(transport=AsyncMeshTransport())
    httpx.Client(transport=MeshTransport())

One class serves `httpx` and its successor `httpx2`: answers and errors come in the namespace of the request. Reading order:

    library      the names of one of the two, and errors that are ours and theirs
    passthrough  ordinary transport for what is not the mesh's
    adapter      a request of theirs to ours, an action of ours to theirs
    transport    the two transports
"""

from proxyless.httpx.transport import AsyncMeshTransport, MeshTransport

__all__ = ["AsyncMeshTransport", "MeshTransport"]
