"""Small manifests and short ways to look at what the loader says."""

from __future__ import annotations

from textwrap import dedent, indent

from proxyless.controlplane.manifest.loader import LoadResult, load_text
from proxyless.controlplane.manifest.messages import Message

GROUPS = {
    "AuthorizationPolicy": "security.istio.io/v1",
    "PeerAuthentication": "security.istio.io/v1",
    "RequestAuthentication": "security.istio.io/v1",
    "Telemetry": "telemetry.istio.io/v1",
}


def manifest(kind: str, spec: str, name: str = "x", namespace: str = "shop", metadata: str = "") -> str:
    """A document; `spec` is YAML, indented as one likes."""
    group = GROUPS.get(kind, "networking.istio.io/v1")
    more = f", {metadata}" if metadata else ""
    head = f"apiVersion: {group}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}{more}}}\nspec:\n"
    return head + indent(dedent(spec).strip("\n"), "  ") + "\n"


def load(kind: str, spec: str, **metadata: str) -> LoadResult:
    return load_text(manifest(kind, spec, **metadata), "f.yaml")


def errors(result: LoadResult) -> list[Message]:
    return [message for message in result.messages if message.severity == "error"]


def only_error(result: LoadResult) -> Message:
    found = errors(result)
    assert len(found) == 1, "\n".join(map(str, result.messages))
    return found[0]


def route(http: str) -> LoadResult:
    """A VirtualService with one HTTP route, given without its dash; it stands from line 7, column 5."""
    body = indent(dedent(http).strip("\n"), "  ")
    return load("VirtualService", "hosts: [cart.example]\nhttp:\n- " + body[2:])
