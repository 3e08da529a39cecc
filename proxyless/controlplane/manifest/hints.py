"""What to write instead of an unknown field or word."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Final

from .model.common import json_name
from .schema import schema_of

__all__ = ["about_unknown_field", "did_you_mean"]

# Fields that were part of the API once, by the class that had them.
_REMOVED: Final = {
    ("HTTPRoute", "websocketUpgrade"): "removed from the API: upgrades work without it",
    ("HTTPRoute", "appendHeaders"): "removed from the API: use headers.request.add",
    ("HTTPRoute", "appendRequestHeaders"): "removed from the API: use headers.request.add",
    ("HTTPRoute", "removeRequestHeaders"): "removed from the API: use headers.request.remove",
    ("HTTPRoute", "appendResponseHeaders"): "removed from the API: use headers.response.add",
    ("HTTPRoute", "removeResponseHeaders"): "removed from the API: use headers.response.remove",
    ("HTTPRouteDestination", "appendRequestHeaders"): "removed from the API: use headers.request.add",
    ("HTTPRouteDestination", "removeRequestHeaders"): "removed from the API: use headers.request.remove",
    ("HTTPRouteDestination", "appendResponseHeaders"): "removed from the API: use headers.response.add",
    ("HTTPRouteDestination", "removeResponseHeaders"): "removed from the API: use headers.response.remove",
    ("FaultAbort", "percent"): "removed from the API: use percentage: {value: ...}",
    ("PortSelector", "name"): "removed from the API: use number",
    ("OutlierDetection", "http"): "removed from the API: its fields stand in outlierDetection itself",
    ("IstioIngressListener", "localhostClientTls"): "removed from the API",
    ("IstioEgressListener", "localhostServerTls"): "removed from the API",
    ("Sidecar", "localhost"): "removed from the API",
    ("EnvoyOnly", "filters"): "removed from the API: use configPatches",
}
_SEARCH_DEPTH: Final = 4


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the nearest known word; empty when nothing is near."""
    candidates = sorted(known)
    folded = {candidate.lower(): candidate for candidate in reversed(candidates)}
    best = folded.get(word.lower().replace("_", "").replace("-", ""))
    if best is None:
        near = difflib.get_close_matches(word.lower()[:80], list(folded), n=1, cutoff=0.7)
        best = folded[near[0]] if near else None
    return f"did you mean {best!r}?" if best else ""


def about_unknown_field(name: str, path: str, ancestors: Sequence[tuple[str, type[Any]]]) -> str:
    """Where an unknown field belongs, or which one was meant.

    Args:
        name: the field as written.
        path: of the message that holds it.
        ancestors: (path, class) of the messages around it, outermost first; the last is the holder.
    """
    holder = ancestors[-1][1]
    if removed := _REMOVED.get((holder.__name__, name)):
        return removed
    fields = schema_of(holder).fields
    written = json_name(name)
    if written in fields:
        return did_you_mean(name, fields)
    for ancestor_path, cls in reversed(ancestors[:-1]):
        if written in schema_of(cls).fields:
            return f"{written} belongs to {ancestor_path}"
    if below := _below(written, holder):
        return f"{written} belongs to {path}.{below}".replace(" .", " ")
    if near := did_you_mean(name, fields):
        return near
    root_path, root = ancestors[0]
    if elsewhere := _below(written, root):
        return f"{written} belongs to {root_path}.{elsewhere}".replace(" .", " ")
    return f"known here: {', '.join(sorted(fields))}"[:300] if len(fields) <= 12 else ""


def _below(name: str, cls: type[Any]) -> str:
    """Shortest path below ``cls`` to a message that has the field; empty when there is none."""
    level: list[tuple[str, type[Any]]] = [("", cls)]
    seen: set[type[Any]] = {cls}
    for _ in range(_SEARCH_DEPTH):
        following: list[tuple[str, type[Any]]] = []
        for prefix, holder in level:
            for suffix, child in schema_of(holder).children():
                if child in seen:
                    continue
                seen.add(child)
                if name in schema_of(child).fields:
                    return prefix + suffix
                following.append((f"{prefix}{suffix}.", child))
        level = following
    return ""
