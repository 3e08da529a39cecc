"""Decisions, and nothing else. May import: `proxyless.errors`, `proxyless.spiffe` and value modules of the standard library.

No I/O, no clock, no chance: `now` (seconds, monotonic) and `rng` are arguments. Reading order:

    request, matchers, resources     what is decided about, and with what
    regex_syntax, automaton, regex   RE2 patterns for the matchers, in bounded time
    routing                          a route configuration compiled to a table, and the route of a request
    upstreams, outbound, snapshot    every resource compiled and joined; immutable
    learned                          what was observed: ejections, counts; survives snapshots
    balancing, breakers, outlier,    the other deciders; they do not import each other
    retry, timeouts, rbac, paths
    headers, rewrites, outgoing,     what becomes of a message, and how answers and failures are named
    replies, failures
    plan, actions, call, inbound     the two sequences of decisions: an outbound call, an inbound request
"""
