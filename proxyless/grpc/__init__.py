"""gRPC with the mesh's routes, identity, policy and metrics, for `grpc.aio`.

    channel = mesh_channel("payments:50051")        # a grpc.aio.Channel for generated stubs
    server = mesh_server()                          # a grpc.aio.Server: mutual TLS and policy on its port

Unary calls only on the client; a server enforces policy for all kinds of methods. docs/grpc.md says what is not there yet.
Loading this imports grpcio; nothing starts before the first call.
"""

from proxyless.grpc.channel import MeshChannel, mesh_channel
from proxyless.grpc.server import MeshServer, mesh_peer, mesh_server

__all__ = ["MeshChannel", "MeshServer", "mesh_channel", "mesh_peer", "mesh_server"]
