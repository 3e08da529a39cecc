"""What becomes of path, query and Location when a route rewrites or redirects.

Source: Envoy `config_impl.cc` (`finalizePathHeader`, `newUri`); recordings of Envoy 1.40: a regex rewrite whose result is empty,
or whose substitution names a missing group, leaves the path as it was; `strip_query` also strips a query that was written in
`prefix_rewrite`; a port redirect is appended to what `host_redirect` says.
"""

from __future__ import annotations

import re
from functools import lru_cache

from proxyless.core.matchers import PathMatcher
from proxyless.core.regex import compile_re2
from proxyless.core.regex_syntax import byte_text
from proxyless.core.request import Request
from proxyless.core.resources import Redirect, RouteAction

__all__ = ["redirect_location", "rewrite_path"]

_REFERENCE = re.compile(r"\\(\d|\\)?")


def rewrite_path(action: RouteAction, matcher: PathMatcher, path: str) -> str | None:
    """The path to send, possibly the same; `path` without query is what `matcher` matched. None: it is not rewritten. Never
    raises."""
    return _rewritten(action.prefix_rewrite, action.regex_rewrite, matcher, path)


def _rewritten(prefix: str, regex: tuple[str, str] | None, matcher: PathMatcher, path: str) -> str | None:
    if prefix:
        return byte_text(prefix) + path[_matched_length(matcher, path) :]
    return None if regex is None else _substitute(regex, path)


def _matched_length(matcher: PathMatcher, path: str) -> int:
    """A prefix is replaced by itself, everything else whole."""
    if matcher.kind in ("prefix", "path_separated_prefix"):
        return len(matcher.value.encode("utf-8", "surrogateescape"))  # one character of `path` per byte
    return len(path)


def _substitute(rewrite: tuple[str, str], path: str) -> str | None:
    pattern, substitution = _compiled(*rewrite)
    if substitution is None:
        return None
    return _replace_all(pattern, substitution, path) or None


def _replace_all(pattern: re.Pattern[str], substitution: tuple[str | int, ...], text: str) -> str:
    """RE2's GlobalReplace. Unlike `re.sub` it has no empty match where the match before it ended."""
    out: list[str] = []
    at, last = 0, -1
    while at <= len(text) and (found := pattern.search(text, at)) is not None:
        start, end = found.span()
        out.append(text[at:start])
        if start == end == last:
            out.append(text[start : start + 1])
            at = start + 1
        else:
            out += [_group(found, part) for part in substitution]
            at = last = end
    out.append(text[at:])
    return "".join(out)


def _group(found: re.Match[str], part: str | int) -> str:
    return part if isinstance(part, str) else found[part] or ""


@lru_cache(maxsize=1024)
def _compiled(pattern: str, substitution: str) -> tuple[re.Pattern[str], tuple[str | int, ...] | None]:
    """RE2's substitution: `\\0` to `\\9` are groups, `\\\\` is a backslash. None: it names what is not there."""
    compiled, substitution = compile_re2(pattern), byte_text(substitution)
    parts: list[str | int] = []
    at = 0
    for found in _REFERENCE.finditer(substitution):
        parts.append(substitution[at : found.start()])
        at = found.end()
        reference = found[1]
        if reference is None or (reference != "\\" and int(reference) > compiled.groups):
            return compiled, None
        parts.append("\\" if reference == "\\" else int(reference))
    parts.append(substitution[at:])
    return compiled, tuple(parts)


def redirect_location(redirect: Redirect, matcher: PathMatcher, request: Request) -> str:
    """Value of the Location header, one character per byte."""
    scheme = redirect.scheme or request.scheme
    port = f":{redirect.port}" if redirect.port else ""
    host = byte_text(redirect.host) or _host(request, scheme, keep_port=not port)
    if redirect.path:
        path, mark, query = byte_text(redirect.path).partition("?")
        path = path if path.startswith("/") else f"/{path}"
        own_query = bool(mark)
    else:
        path = _rewritten(redirect.prefix_rewrite, redirect.regex_rewrite, matcher, request.path) or request.path
        mark = query = ""
        own_query = False
    target = f"{path}{mark}{query}"
    if not own_query:
        if request.query:
            target = f"{target}?{request.query}"
        if redirect.strip_query:
            target = target.partition("?")[0]
    return f"{scheme}://{host}{port}{target}"


def _host(request: Request, scheme: str, *, keep_port: bool) -> str:
    """The request's Host; its port goes when the redirect sets one, or when it was the default of a scheme that changes."""
    host, colon, port = request.authority.rpartition(":")
    if not colon or "]" in port:
        return request.authority
    default = {"https": "443", "http": "80"}.get(request.scheme)
    if not keep_port or (scheme != request.scheme and port == default):
        return host
    return request.authority
