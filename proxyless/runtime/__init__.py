"""What remembers: one mesh membership for each process, and what adapters share. May import every layer below, no adapter.

    mesh       settings, snapshot, identity and telemetry of a process, joined
    waiting    waiting for the first configuration, from threads and event loops
    announce   registration of this workload, and when it is ready
    inbound    a connection and a request meet the snapshot
    outbound   the loop that does what `core.call` says
    admin      /ready, /healthz, /metrics, /config_dump, /clusters
"""
