"""What a mesh tells about itself. May import `errors` only; prometheus_client and OpenTelemetry are imported when they are used.

families, labels, metrics   Istio's metrics and our own
exposition                  /metrics, of one process or of all workers
access_log                  one line for each request
spans, tracing              where spans are made; the OpenTelemetry that makes them
recorder                    metrics and log of one mesh
"""
