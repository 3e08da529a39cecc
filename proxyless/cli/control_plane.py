"""`proxyless control-plane`: serve a directory of manifests until a signal."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading

from proxyless.cli import EXIT_INVALID
from proxyless.controlplane.server import ControlPlane
from proxyless.errors import ConfigError, SettingsError

__all__ = ["main"]

log = logging.getLogger("proxyless.controlplane")


def main(arguments: argparse.Namespace) -> int:
    """Entry point of `proxyless control-plane`."""
    logging.basicConfig(level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    plane = ControlPlane(arguments.config, arguments.run_dir, svid_ttl=arguments.svid_ttl, listen=arguments.listen)
    try:
        plane.start()
    except SettingsError:
        raise
    except ConfigError as error:
        print(f"proxyless: {error}", file=sys.stderr)
        return EXIT_INVALID
    log.info("serving %s in %s", arguments.config, arguments.run_dir)
    try:
        while not stop.wait(0.5):
            pass
        log.info("ending")
    finally:
        plane.close()
    return 0
