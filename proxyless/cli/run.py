"""`proxyless run MODULE:APP`."""

from __future__ import annotations

import argparse

from proxyless.launch import run

__all__ = ["main"]


def main(arguments: argparse.Namespace) -> int:
    """Entry point of `proxyless run`."""
    return run(
        arguments.app,
        host=arguments.host,
        port=arguments.port,
        workers=arguments.workers,
        reload=arguments.reload,
        app_dir=arguments.app_dir,
        factory=arguments.factory,
        log_level=arguments.log_level,
    )
