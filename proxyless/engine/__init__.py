"""The outbound HTTP/1.1 engine: connections, pools and timers. May import: `proxyless.core`, `proxyless.errors`, httptools.

The engine does one attempt and reports what happened; it never repeats anything by itself (`core.call` decides). Parsing is
llhttp's, TLS is OpenSSL's; connection state is here because a mesh is made of it. Reading order:

    h1                    the wire: request heads out, response framing in; no I/O
    pool, registry        which connection is free, who waits, what the limits allow; rotation, removal; no I/O
    timeouts, outcomes    the caller's limits; what happened, in the words of `core`
    aio_connection, aio   one event loop
    sync_connection, sync any thread
"""

from proxyless.engine.aio import AsyncEngine, AsyncExchange
from proxyless.engine.sync import SyncEngine, SyncExchange
from proxyless.engine.timeouts import UNLIMITED, Timeouts

__all__ = ["UNLIMITED", "AsyncEngine", "AsyncExchange", "SyncEngine", "SyncExchange", "Timeouts"]
