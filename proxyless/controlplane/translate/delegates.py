"""VirtualService delegation: a root route that hands its traffic to the routes of another VirtualService (istio-semantics 4.3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from proxyless.controlplane.manifest.model import (
    HeaderOperations,
    Headers,
    HTTPMatchRequest,
    HTTPRoute,
    Resource,
    StringMatch,
    VirtualService,
)
from proxyless.controlplane.registry import exported
from proxyless.controlplane.translate.world import World

__all__ = ["http_of", "merge_matches", "merge_routes"]

_V = TypeVar("_V")

Origin = tuple[HTTPRoute, str]
"""A route, and the namespace in which its short names are meant."""


def http_of(world: World, root: Resource[VirtualService]) -> Iterator[Origin]:
    """The routes of a VirtualService with delegates put in. One level: a delegate does not delegate further."""
    for http in root.spec.http:
        if http.delegate is None:
            yield http, root.namespace
            continue
        delegate = _delegate(world, root, http)
        if delegate is not None:
            for route in merge_routes(http, delegate.spec.http):
                yield route, delegate.namespace


def _delegate(world: World, root: Resource[VirtualService], http: HTTPRoute) -> Resource[VirtualService] | None:
    """The VirtualService meant; one that has hosts is no delegate, and one that is not exported cannot be used."""
    wanted = http.delegate
    if wanted is None:
        return None
    namespace = wanted.namespace or root.namespace
    default = tuple(world.mesh.default_virtual_service_export_to)
    for rule in world.virtual_services:
        if (rule.name, rule.namespace) == (wanted.name, namespace) and not rule.spec.hosts:
            visible = exported(rule.spec.export_to or default, rule.namespace, root.namespace)
            return rule if visible else None
    return None


def merge_routes(root: HTTPRoute, delegate: tuple[HTTPRoute, ...]) -> list[HTTPRoute]:
    """The delegate's routes under the conditions of the root. What the root sets holds; headers are put together."""
    result = []
    for leaf in delegate:
        matches = merge_matches(root.match, leaf.match)
        if leaf.delegate is not None or matches is None:
            continue
        result.append(
            replace(
                leaf,
                name="-".join(name for name in (root.name, leaf.name) if name),
                match=matches,
                rewrite=root.rewrite or leaf.rewrite,
                direct_response=root.direct_response or leaf.direct_response,
                timeout=leaf.timeout if root.timeout is None else root.timeout,
                retries=root.retries or leaf.retries,
                fault=root.fault or leaf.fault,
                mirror=root.mirror or leaf.mirror,
                mirrors=root.mirrors or leaf.mirrors,
                mirror_percent=leaf.mirror_percent if root.mirror_percent is None else root.mirror_percent,
                mirror_percentage=(
                    leaf.mirror_percentage if root.mirror_percentage is None else root.mirror_percentage
                ),
                cors_policy=root.cors_policy or leaf.cors_policy,
                headers=_merge_headers(root.headers, leaf.headers),
            )
        )
    return result


def merge_matches(
    root: tuple[HTTPMatchRequest, ...], leaf: tuple[HTTPMatchRequest, ...]
) -> tuple[HTTPMatchRequest, ...] | None:
    """Each match of the leaf ANDed with those of the root that it is part of. None: one is part of none of them, which
    makes the whole route void."""
    if not root or not leaf:
        return root or leaf
    result: list[HTTPMatchRequest] = []
    for match in leaf:
        merged = [_merge_match(outer, match) for outer in root if not conflict(outer, match)]
        if not merged:
            return None
        result += merged
    return tuple(result)


def _merge_match(root: HTTPMatchRequest, leaf: HTTPMatchRequest) -> HTTPMatchRequest:
    return replace(
        leaf,
        name="-".join(name for name in (root.name, leaf.name) if name),
        uri=leaf.uri or root.uri,
        scheme=leaf.scheme or root.scheme,
        method=leaf.method or root.method,
        authority=leaf.authority or root.authority,
        headers={**root.headers, **leaf.headers},
        without_headers={**root.without_headers, **leaf.without_headers},
        query_params={**root.query_params, **leaf.query_params},
        port=leaf.port or root.port,
        source_labels={**root.source_labels, **leaf.source_labels},
        source_namespace=leaf.source_namespace or root.source_namespace,
        gateways=leaf.gateways or root.gateways,
        stat_prefix=leaf.stat_prefix or root.stat_prefix,
    )


def conflict(root: HTTPMatchRequest, leaf: HTTPMatchRequest) -> bool:
    """The two cannot be put together: the leaf asks for something that is not part of what the root lets through."""
    pairs = (
        (root.uri, leaf.uri),
        (root.scheme, leaf.scheme),
        (root.method, leaf.method),
        (root.authority, leaf.authority),
    )
    maps = (
        (root.headers, leaf.headers),
        (root.without_headers, leaf.without_headers),
        (root.query_params, leaf.query_params),
    )
    return (
        any(_differ(r, d) for r, d in pairs)
        or any(_differ(r.get(name), match) for r, d in maps for name, match in d.items())
        or root.ignore_uri_case != leaf.ignore_uri_case
        or bool(root.port and leaf.port and root.port != leaf.port)
        or any(root.source_labels.get(name, value) != value for name, value in leaf.source_labels.items())
        or bool(root.gateways and not set(leaf.gateways) <= set(root.gateways))
        or bool(root.source_namespace and root.source_namespace != leaf.source_namespace)
    )


def _differ(root: StringMatch | None, leaf: StringMatch | None) -> bool:
    """The leaf is not within the root. Regular expressions are not compared: with one the other must be absent."""
    empty = StringMatch()
    if root in (None, empty) or leaf in (None, empty) or root is None or leaf is None:
        return False
    if root.regex or leaf.regex:
        return True
    if root.exact:
        return leaf.exact != root.exact
    return not (leaf.exact or leaf.prefix or "").startswith(root.prefix or "")


def _merge_headers(root: Headers | None, leaf: Headers | None) -> Headers | None:
    if root is None or leaf is None:
        return root or leaf
    return Headers(
        request=_merge_operations(root.request, leaf.request),
        response=_merge_operations(root.response, leaf.response),
    )


def _merge_operations(root: HeaderOperations | None, leaf: HeaderOperations | None) -> HeaderOperations | None:
    if root is None or leaf is None:
        return root or leaf
    return HeaderOperations(
        set=_over(leaf.set, root.set),
        add=_over(leaf.add, root.add),
        remove=tuple(dict.fromkeys((*leaf.remove, *root.remove))),
    )


def _over(below: Mapping[str, _V], above: Mapping[str, _V]) -> dict[str, _V]:
    return {**below, **above}
