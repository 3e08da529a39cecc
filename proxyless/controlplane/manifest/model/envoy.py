"""Kinds that speak to Envoy alone: accepted and reported by name, never acted upon.

EnvoyFilter patches configuration of a proxy that is not there, WasmPlugin and TrafficExtension run inside it,
ProxyConfig sets it up. Their inner structure is not checked.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .common import Struct

__all__ = ["EnvoyOnly"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyOnly:
    """The spec as it was written."""

    content: Struct = field(default_factory=dict)
