"""Measured side by side: proxyless and bare clients, mutual TLS on both ends, in one run. See `benchmarks/README.md`."""
