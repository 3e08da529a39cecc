"""`proxyless validate PATH...`: every finding in one line each, or as JSON; exit 79 when there is an error."""

from __future__ import annotations

import argparse
import json
import sys

from proxyless.cli import EXIT_INVALID
from proxyless.controlplane.manifest.validate import validate_paths
from proxyless.errors import ConfigError

__all__ = ["main"]


def main(arguments: argparse.Namespace) -> int:
    """Entry point of `proxyless validate`."""
    if "-" in arguments.paths and sys.stdin is None:  # closed by whoever started us
        raise ConfigError("there is no standard input to read")
    paths = "-" if arguments.paths == ["-"] else arguments.paths
    result = validate_paths(paths, arguments.mesh or None)
    if arguments.output == "json":
        print(json.dumps([message.as_json() for message in result.messages], indent=1))
    else:
        for message in result.messages:
            print(message)
        count = f"{len(result.resources)} resources"
        print(
            f"{count}, {len(result.errors)} errors, {len(result.warnings)} warnings, {len(result.notices)} notices",
            file=sys.stderr,
        )
    return EXIT_INVALID if result.errors else 0
