"""Decisions, and nothing else. May import: `proxyless.errors`, `proxyless.spiffe` and value modules of the standard library.

No I/O, no clock, no chance: `now` (seconds, monotonic) and `rng` are arguments. Reading order:

    request, matchers, resources     what is decided about, and with what
    snapshot                         every resource compiled and joined; immutable
    learned                          what was observed: ejections, counts; survives snapshots
    routing, balancing, breakers,    the deciders; they do not import each other
    outlier, retry, rbac, paths
    call, inbound                    the two sequences of decisions: an outbound call, an inbound request
"""
