"""`proxyless gateway`: serve the ports that the control plane gives to this gateway's labels."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal

from proxyless.gateway import Gateway
from proxyless.runtime.memory import few_arenas
from proxyless.runtime.mesh import Mesh
from proxyless.settings import Settings

__all__ = ["main"]


def main(arguments: argparse.Namespace) -> int:
    """Entry point of `proxyless gateway`."""
    logging.basicConfig(level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    few_arenas()
    mesh = Mesh(Settings.from_environment(node_kind="router"))
    asyncio.run(_serve(Gateway(mesh, arguments.host)))
    return 0


async def _serve(gateway: Gateway) -> None:
    """Until SIGTERM or Ctrl-C; a second one does not wait."""
    stop = asyncio.Event()

    def asked() -> None:
        if stop.is_set():
            gateway.hurry()
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked)
    await gateway.run(stop)
