"""Fields of AuthorizationPolicy rules into RBAC permissions and principals (istio-semantics 1.4 to 1.9)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from proxyless.controlplane.manifest.model import Condition, Operation, Source
from proxyless.controlplane.manifest.rules.checks import is_port
from proxyless.controlplane.translate import names
from proxyless.controlplane.translate.build import Tree, extension
from proxyless.controlplane.translate.world import World

__all__ = ["Principals", "UnusableError", "expand_trust_domains", "permissions", "principals"]

_Make = Callable[[str], Tree]
_JWT = "envoy.filters.http.jwt_authn"
_TEMPLATE = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
_GO_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$]")


class UnusableError(Exception):
    """A field that cannot be evaluated here."""


@dataclass(frozen=True, slots=True)
class Principals:
    """What principals are resolved against: the mesh, and the namespace of the policy."""

    world: World
    namespace: str


@dataclass(frozen=True, slots=True)
class _Field:
    """One field or condition: how a value compiles, and whether it needs HTTP.

    `single`: one value alone needs no alternative around it; `joined`: all values make one matcher.
    """

    make: _Make
    http_only: bool = False
    single: bool = False
    joined: Callable[[Sequence[str]], Tree] | None = None


def permissions(operation: Operation | None, when: Sequence[Condition], tcp: bool, lenient: bool) -> list[Tree]:
    """The permissions of one `to` entry together with the conditions about the request; ANDed by the caller.

    Raises:
        UnusableError: a field cannot be evaluated and `lenient` is off; else it is left out.
    """
    out = _Collector("or_rules", "rules", "not_rule", tcp, lenient)
    if operation is not None:
        for field, values, others in (
            (_HOSTS, operation.hosts, operation.not_hosts),
            (_METHODS, operation.methods, operation.not_methods),
            (_PATHS, operation.paths, operation.not_paths),
            (_PORTS, operation.ports, operation.not_ports),
        ):
            out.add(field, values, others)
    for condition in when:
        found = _permission_condition(condition.key)
        if found is not None:
            out.add(found, condition.values, condition.not_values)
    return out.result


def principals(
    context: Principals, source: Source | None, when: Sequence[Condition], tcp: bool, lenient: bool
) -> list[Tree]:
    """The principals of one `from` entry together with the conditions about the peer; ANDed by the caller.

    Raises:
        UnusableError: as for `permissions`.
    """
    out = _Collector("or_ids", "ids", "not_id", tcp, lenient)
    if source is not None:
        ids = _Field(_principal)
        out.add(ids, _resolve(context, source.principals), _resolve(context, source.not_principals))
        for field, values, others in (
            (_REQUEST_PRINCIPALS, source.request_principals, source.not_request_principals),
            (_Field(_namespace), source.namespaces, source.not_namespaces),
            (_service_accounts(context), source.service_accounts, source.not_service_accounts),
            (_Field(_cidr("remote_ip")), source.remote_ip_blocks, source.not_remote_ip_blocks),
            (_Field(_cidr("direct_remote_ip")), source.ip_blocks, source.not_ip_blocks),
            (_Field(_trust_domain), source.trust_domains, source.not_trust_domains),
        ):
            out.add(field, values, others)
    for condition in when:
        if _permission_condition(condition.key) is not None:
            continue
        found = _principal_condition(context, condition.key)
        if found is None:
            if not lenient:
                raise UnusableError(condition.key)
            continue
        values, others = condition.values, condition.not_values
        if condition.key == "source.principal":
            values, others = _resolve(context, values), _resolve(context, others)
        out.add(found, values, others)
    return out.result


class _Collector:
    """Gathers what must all hold. The names are those of the fields of Permission or of Principal."""

    def __init__(self, either: str, members: str, negation: str, tcp: bool, lenient: bool) -> None:
        self._either, self._members, self._negation = either, members, negation
        self._tcp, self._lenient = tcp, lenient
        self.result: list[Tree] = []

    def add(self, field: _Field, values: Sequence[str], others: Sequence[str]) -> None:
        """One of `values`, and none of `others`."""
        for wanted, negated in ((values, False), (others, True)):
            if not wanted:
                continue
            try:
                compiled = self._compile(field, wanted)
            except UnusableError:
                if not self._lenient:
                    raise
                continue
            self.result.append({self._negation: compiled} if negated else compiled)

    def _compile(self, field: _Field, values: Sequence[str]) -> Tree:
        if field.http_only and self._tcp:
            raise UnusableError("an HTTP field on a TCP port")
        if field.joined is not None:
            return field.joined(values)
        if field.single:
            return (
                field.make(values[0])
                if len(values) == 1
                else {self._either: {self._members: list(map(field.make, values))}}
            )
        return {self._either: {self._members: [field.make(value) for value in values]}}


# ------------------------------------------------------------------------------------------------------------ values


def string_matcher(value: str, prefix: str = "", ignore_case: bool = False) -> Tree:
    """Istio's four kinds: presence, suffix, prefix, exact; a leading star wins over a trailing one."""
    if value == "*":
        return {"safe_regex": {"regex": ".+"}}
    if value.startswith("*"):
        if prefix:
            return {"safe_regex": {"regex": f"{prefix}.*{_quote(value[1:])}"}}
        return _with_case({"suffix": value[1:]}, ignore_case)
    if value.endswith("*"):
        return _with_case({"prefix": prefix + value[:-1]}, ignore_case)
    return _with_case({"exact": prefix + value}, ignore_case)


def _with_case(matcher: Tree, ignore_case: bool) -> Tree:
    return {**matcher, "ignore_case": True} if ignore_case else matcher


def _quote(text: str) -> str:
    """As Go's regexp.QuoteMeta."""
    return _GO_SPECIAL.sub(lambda found: "\\" + found.group(), text)


def _header(name: str, ignore_case: bool = False) -> _Make:
    def make(value: str) -> Tree:
        if value == "*":
            return {"header": {"name": name, "present_match": True}}
        return {"header": {"name": name, "string_match": string_matcher(value, ignore_case=ignore_case)}}

    return make


def _cidr(field: str) -> _Make:
    def make(value: str) -> Tree:
        try:
            network = ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise UnusableError(f"{value!r} is not an address range") from None
        return {field: {"address_prefix": str(network.network_address), "prefix_len": {"value": network.prefixlen}}}

    return make


# ------------------------------------------------------------------------------------------------------- permissions


def _path(value: str) -> Tree:
    if "{*}" in value or "{**}" in value:
        template = value.replace("{**}", "**").replace("{*}", "*")
        return {"uri_template": extension("uri-template", _TEMPLATE, {"path_template": template})}
    return {"url_path": {"path": string_matcher(value)}}


def _port(value: str) -> Tree:
    if not is_port(value, lowest=0):
        raise UnusableError(f"{value!r} is not a port")
    return {"destination_port": int(value)}


_HOSTS = _Field(_header(":authority", ignore_case=True), http_only=True)
_METHODS = _Field(_header(":method"), http_only=True)
_PATHS = _Field(_path, http_only=True)
_PORTS = _Field(_port)
_DESTINATION_IP = _Field(_cidr("destination_ip"))
_SNI = _Field(lambda value: {"requested_server_name": string_matcher(value)})


def _permission_condition(key: str) -> _Field | None:
    """A `when` key about the request or its destination; None when it is about the peer, or unknown."""
    if key.startswith("experimental.envoy.filters."):
        return _envoy_metadata(key)
    return {"destination.ip": _DESTINATION_IP, "destination.port": _PORTS, "connection.sni": _SNI}.get(key)


def _envoy_metadata(key: str) -> _Field:
    """``experimental.envoy.filters.<filter>[<key>]``; a value in brackets asks for a member of a list."""
    name, _, rest = key.removeprefix("experimental.").partition("[")
    path = [{"key": part} for part in rest.removesuffix("]").split("][") if part]

    def one(value: str) -> Tree:
        if value.startswith("[") and value.endswith("]"):
            return {"list_match": {"one_of": {"string_match": string_matcher(value[1:-1])}}}
        return {"string_match": string_matcher(value)}

    def joined(values: Sequence[str]) -> Tree:
        if not path:
            raise UnusableError(f"{key} names no key in brackets")
        matchers = [one(value) for value in values]
        matcher: Tree = matchers[0] if len(matchers) == 1 else {"or_match": {"value_matchers": matchers}}
        return {"metadata": {"filter": name, "path": path, "value": matcher}}

    return _Field(lambda value: joined([value]), joined=joined)


# -------------------------------------------------------------------------------------------------------- principals


def _authenticated(matcher: Tree) -> Tree:
    return {"authenticated": {"principal_name": matcher}}


def _principal(value: str) -> Tree:
    return _authenticated(string_matcher(value, prefix="spiffe://"))


def _namespace(value: str) -> Tree:
    pattern = ".*".join(_quote(part) for part in value.split("*"))
    return _authenticated({"safe_regex": {"regex": f".*/ns/{pattern}/.*"}})


def _service_accounts(context: Principals) -> _Field:
    def make(value: str) -> Tree:
        namespace, slash, account = value.partition("/")
        if not slash:
            namespace, account = context.namespace, value
        pattern = f"spiffe://.+/ns/{_quote(namespace)}/(.+/|)sa/{_quote(account)}(/.+)?"
        return _authenticated({"safe_regex": {"regex": pattern}})

    return _Field(make)


def _trust_domain(value: str) -> Tree:
    if value == "*":
        return _authenticated({"prefix": "spiffe://"})
    if "*" in value:
        pattern = "[^/]*".join(_quote(part) for part in value.split("*"))
        return _authenticated({"safe_regex": {"regex": f"spiffe://{pattern}/.*"}})
    return _authenticated({"prefix": f"spiffe://{value}/"})


def _principal_condition(context: Principals, key: str) -> _Field | None:
    """A `when` key about the peer or its token; None when it is unknown."""
    simple = {
        "source.ip": _Field(_cidr("direct_remote_ip")),
        "remote.ip": _Field(_cidr("remote_ip")),
        "source.namespace": _Field(_namespace),
        "source.principal": _Field(_principal),
        "source.serviceAccount": _service_accounts(context),
        "source.trustDomain": _Field(_trust_domain),
        "request.auth.principal": _REQUEST_PRINCIPALS,
        "request.auth.audiences": _claim("aud"),
        "request.auth.presenter": _claim("azp"),
    }
    if key in simple:
        return simple[key]
    if key.startswith("request.headers[") and key.endswith("]"):
        return _Field(_header(key[len("request.headers[") : -1]), http_only=True)
    if key.startswith("request.auth.claims[") and key.endswith("]"):
        return _claim(*key[len("request.auth.claims[") : -1].split("]["))
    return None


def _token(path: Iterable[str], matcher: Tree) -> Tree:
    """A matcher on the payload of a verified token."""
    return {
        "metadata": {
            "filter": _JWT,
            "path": [{"key": "payload"}, *({"key": part} for part in path)],
            "value": matcher,
        }
    }


def _request_principal(value: str) -> Tree:
    """``<issuer>/<subject>``, split at the last slash; a star covers one side or part of it."""
    issuer, subject = _split_principal(value)
    return {
        "and_ids": {
            "ids": [
                _token(["iss"], {"string_match": string_matcher(issuer)}),
                _token(["sub"], {"string_match": string_matcher(subject)}),
            ]
        }
    }


def _split_principal(value: str) -> tuple[str, str]:
    issuer, slash, subject = value.rpartition("/")
    if slash:
        return issuer, subject
    if value == "*":
        return "*", "*"
    if value.startswith("*"):
        return "*", value
    if value.endswith("*"):
        return value, "*"
    return value, ""


_REQUEST_PRINCIPALS = _Field(_request_principal, http_only=True, single=True)


def _claim(*path: str) -> _Field:
    """A claim that is a string or a list of strings."""

    def joined(values: Sequence[str]) -> Tree:
        matchers: list[Tree] = [{"string_match": string_matcher(value)} for value in values]
        one: Tree = matchers[0] if len(matchers) == 1 else {"or_match": {"value_matchers": matchers}}
        return _token(path, {"or_match": {"value_matchers": [{"list_match": {"one_of": one}}, one]}})

    return _Field(lambda value: joined([value]), http_only=True, joined=joined)


# ------------------------------------------------------------------------------------------------- names of principals


def _resolve(context: Principals, values: Sequence[str]) -> tuple[str, ...]:
    """Principals with trust-domain aliases, and with hosts read as the identities that serve them.

    The latter is our one widening of Istio: a principal that is exactly the host of a service on the operator's list also
    stands for the identities that the list gives it (`proxyless.principalsNamedByHost`).
    """
    world = context.world
    result: list[str] = []
    for value in values:
        if world.mesh.proxyless.principals_named_by_host:
            for namespace, account in world.registry.identities_of(value.lower()):
                result += [
                    names.spiffe(domain, namespace, account).removeprefix("spiffe://") for domain in world.trust_domains
                ]
        result += expand_trust_domains(value, world.trust_domains)
    return tuple(dict.fromkeys(result))


def expand_trust_domains(principal: str, trust_domains: Sequence[str]) -> list[str]:
    """One principal for each name of the mesh's trust domain (istio-semantics 1.9)."""
    parts = principal.split("/")
    domain, rest = parts[0], principal.partition("/")[2]
    if len(parts) != 5 or domain == "*" or not domain:
        return [principal]
    if domain.startswith("*"):
        suffix = domain[1:]
        if not any(own.endswith(suffix) for own in trust_domains):
            return [principal]
        replaced = [principal if own.endswith(suffix) else f"{own}/{rest}" for own in trust_domains]
        return list(dict.fromkeys(replaced))
    if domain in trust_domains or domain == "cluster.local":
        return [f"{own}/{rest}" for own in trust_domains]
    return [principal]
