"""HTTP matches of a VirtualService (istio-semantics 4.2)."""

from __future__ import annotations

from collections.abc import Mapping

from proxyless.controlplane.manifest.model import HTTPMatchRequest, StringMatch
from proxyless.controlplane.translate.build import Tree

__all__ = ["applies", "is_catch_all", "route_match", "string_matcher"]

_PSEUDO = frozenset({"uri", "scheme", "method", "authority"})  # not header names; they have fields of their own
CLAIM_PREFIX = "@request.auth.claims"


def applies(
    match: HTTPMatchRequest, port: int, labels: Mapping[str, str], namespace: str, gateways: frozenset[str]
) -> bool:
    """Whether a match can concern this client at all: decided here, not by the client. `gateways` are the names under
    which the routes are being made (``mesh``, ``<namespace>/<gateway>``)."""
    if match.port and match.port != port:
        return False
    if any(name.startswith(CLAIM_PREFIX) for name in (*match.headers, *match.without_headers)):
        return False  # needs token claims, which are not routed on yet: such a match never holds
    if match.gateways:
        return not gateways.isdisjoint(match.gateways)
    if not match.source_labels.items() <= labels.items():
        return False
    return not match.source_namespace or match.source_namespace == namespace


def route_match(match: HTTPMatchRequest | None) -> Tree:
    """The RouteMatch; None is "everything"."""
    if match is None:
        return {"prefix": "/"}
    result = _path(match)
    result["case_sensitive"] = {"value": not match.ignore_uri_case}
    headers = [_header(name, matcher) for name, matcher in sorted(match.headers.items()) if name not in _PSEUDO]
    headers += [_without(name, matcher) for name, matcher in sorted(match.without_headers.items())]
    for name, matcher in ((":method", match.method), (":authority", match.authority), (":scheme", match.scheme)):
        if matcher is not None:
            headers.append(_header(name, matcher))
    if headers:
        result["headers"] = headers
    if match.query_params:
        result["query_parameters"] = [
            {"name": name, "present_match": True}
            if _is_present(matcher)
            else {"name": name, "string_match": string_matcher(matcher)}
            for name, matcher in sorted(match.query_params.items())
        ]
    return result


def is_catch_all(match: Tree) -> bool:
    """Nothing after a route with this match can ever be reached."""
    everything = match.get("prefix") == "/" or match.get("safe_regex") == {"regex": "*"}
    return everything and not match.get("headers") and not match.get("query_parameters")


def string_matcher(match: StringMatch) -> Tree:
    if match.prefix is not None:
        return {"prefix": match.prefix}
    if match.regex is not None:
        return {"safe_regex": {"regex": match.regex}}
    return {"exact": match.exact or ""}


def _path(match: HTTPMatchRequest) -> Tree:
    uri = match.uri
    if uri is None or uri == StringMatch():
        return {"prefix": "/"}
    if uri.prefix is not None:
        return {"prefix": uri.prefix}
    if uri.regex is not None:
        return {"safe_regex": {"regex": uri.regex}}
    return {"path": uri.exact}


def _is_present(match: StringMatch) -> bool:
    return match == StringMatch() or match.regex == "*"


def _header(name: str, match: StringMatch) -> Tree:
    if _is_present(match):
        return {"name": name, "present_match": True}
    return {"name": name, "string_match": string_matcher(match)}


def _without(name: str, match: StringMatch) -> Tree:
    result = {**_header(name, match), "invert_match": True}
    if not _is_present(match):
        result["treat_missing_header_as_empty"] = True
    return result
