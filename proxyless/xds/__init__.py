"""Configuration from a control plane. May import `core`, `protos`, `unix`, `errors`.

session        the protocol (state of the world, ADS), without I/O
decode         bytes to typed values: the trust boundary
store          what was accepted, and the whole that may be published
stream         one gRPC stream that is kept open by one thread
client         these together: snapshots for who asks
registration   this workload as an endpoint
"""
