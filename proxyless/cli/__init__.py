"""`proxyless`: the command line. Imports a command's modules only when it is called.

Exit codes: 0 all well; 1 something failed while running; 2 wrong usage, an argument or the environment; 79 the configuration has
errors (as istioctl); 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from proxyless import __version__
from proxyless.errors import ProxylessError, SettingsError

__all__ = ["main"]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INVALID = 79
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script."""
    arguments = _parser().parse_args(argv)
    try:
        code = int(arguments.command(arguments))
        sys.stdout.flush()
        return code
    except ProxylessError as error:
        print(f"proxyless: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, SettingsError) else EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read our output has read enough; what is buffered must not fail again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="proxyless", description="A service mesh that is a Python library.")
    parser.add_argument("--version", action="version", version=f"proxyless {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _validate(commands)
    _control_plane(commands)
    _run(commands)
    _gateway(commands)
    _dev(commands)
    return parser


def _validate(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("validate", help="check Istio YAML files without serving them")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="files, directories, or - for standard input")
    parser.add_argument(
        "--mesh", default="", metavar="FILE", help="mesh settings (default: mesh.yaml beside the files)"
    )
    parser.add_argument("--output", choices=("text", "json"), default="text")
    parser.set_defaults(command=_lazily("proxyless.cli.validate"))


def _control_plane(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("control-plane", help="serve Istio YAML files to workloads by xDS")
    parser.add_argument("--config", required=True, metavar="DIR", help="directory of *.yaml; watched for changes")
    parser.add_argument("--run-dir", required=True, metavar="DIR", help="private directory for the workloads' sockets")
    parser.add_argument("--listen", default="", metavar="HOST:PORT", help="serve on TCP too, with mutual TLS")
    parser.add_argument(
        "--svid-ttl", type=float, default=3600.0, metavar="SECONDS", help="life of a certificate (3600)"
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.set_defaults(command=_lazily("proxyless.cli.control_plane"))


def _run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("run", help="serve an ASGI application in the mesh, on uvicorn")
    parser.add_argument("app", metavar="MODULE:APP")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (127.0.0.1)")
    parser.add_argument("--port", type=_port, default=0, help="port to bind (PROXYLESS_PORT, else 8000)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--reload", action="store_true", help="restart when a source file changes")
    parser.add_argument("--app-dir", default=".", help="where to import from (.)")
    parser.add_argument("--factory", action="store_true", help="MODULE:APP makes the application")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error", "critical"))
    parser.set_defaults(command=_lazily("proxyless.cli.run"))


def _gateway(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "gateway", help="a reverse proxy at the edge, configured by Gateway and VirtualService"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (127.0.0.1)")
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    parser.set_defaults(command=_lazily("proxyless.cli.gateway"))


def _dev(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "dev", help="control plane, identities, gateway and services of a directory, on this host"
    )
    parser.add_argument("directory", metavar="DIR", help="has dev.yaml, which names the services")
    parser.add_argument(
        "--once", action="store_true", help="play the story once, then end; exit 1 if a step does not hold"
    )
    parser.add_argument("--output", choices=("text", "json"), default="text")
    parser.add_argument("--step", action="append", default=[], metavar="NAME", help="play only this step (repeatable)")
    parser.add_argument("--keep-logs", metavar="DIR", default="", help="write the processes' logs there")
    parser.set_defaults(command=_lazily("proxyless.cli.dev"))


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is no port: write a number from 1 to 65535, or 0 for the default")
    return int(text)


class _lazily:
    """Import `module` when the command is called, and call its `main`."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __call__(self, arguments: argparse.Namespace) -> int:
        import importlib

        return int(importlib.import_module(self._module).main(arguments))
