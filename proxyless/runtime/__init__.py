"""What remembers: one mesh membership for each process, and what adapters share. May import every layer below, no adapter.

mesh       settings, snapshot, identity and telemetry of a process, joined
waiting    waiting for the first configuration, from threads and event loops
announce   registration of this workload, and when it is ready
inbound    a connection and a request meet the snapshot
outbound   the loop that does what `core.call` says
accept     from an accepted connection to a filter chain, a certificate and a verified peer
exchange   one inbound request: what is counted, logged and traced about it
drain      the way out on SIGTERM
bounded    how much a client may send before its request is complete
admin      /ready, /healthz, /metrics, /config_dump, /clusters
"""
