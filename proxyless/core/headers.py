"""Header mutations on raw pairs, in Envoy's order: level by level, and in a level removals before additions.

Source: Envoy `HeaderParser::evaluateHeaders`; HeaderValueOption.append_action. Names are compared without case. Pseudo-headers
and Host are never among them: the decoder refuses such a configuration, as Envoy does.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxyless.core.resources import AppendAction, HeaderMutation, HeaderMutations

__all__ = ["Pairs", "mutate"]

Pairs = list[tuple[bytes, bytes]]


def mutate(headers: Pairs, levels: Iterable[HeaderMutations]) -> None:
    """Apply `levels` to `headers` in place."""
    for level in levels:
        if level.remove:
            gone = frozenset(level.remove)
            headers[:] = [pair for pair in headers if pair[0].lower() not in gone]
        for mutation in level.add:
            _add(headers, mutation)


def _add(headers: Pairs, mutation: HeaderMutation) -> None:
    name, action = mutation.name, mutation.action
    if action is not AppendAction.APPEND_IF_EXISTS_OR_ADD:
        exists = any(pair[0].lower() == name for pair in headers)
        unwanted = AppendAction.ADD_IF_ABSENT if exists else AppendAction.OVERWRITE_IF_EXISTS
        if action is unwanted:
            return
        if exists:
            headers[:] = [pair for pair in headers if pair[0].lower() != name]
    headers.append((name, mutation.value))
