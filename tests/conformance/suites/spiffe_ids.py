"""`spiffe/spiffe-id`: SPIFFE IDs, trust domains, segments, matchers and the Istio form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from proxyless.errors import InvalidSpiffeIdError
from proxyless.spiffe import AnyId, ExactId, IdMatcher, MemberOf, OneOf, SpiffeId, TrustDomain, join_segments
from tests.conformance.harness import Case, Suite


def suites(folder: Path) -> Iterator[Suite]:
    path = folder / "spiffe" / "spiffe-id.yaml"
    if path.exists():
        cases = yaml.safe_load(path.read_text())["cases"]
        yield Suite("spiffe/spiffe-id", [Case(case["id"], _runner(case)) for case in cases])


def _runner(case: dict[str, Any]) -> Callable[[], str | None]:
    check = _CHECKS[case["kind"]]
    return lambda: check(case)


def _text(case: dict[str, Any]) -> str:
    if "build" in case:
        build = case["build"]
        return f"{build['prefix']}{build['repeat'] * build['count']}{build['suffix']}"
    return str(case["input"])


def _verdict(case: dict[str, Any], parse: Callable[[], dict[str, Any]]) -> str | None:
    try:
        seen = parse()
    except InvalidSpiffeIdError as error:
        return f"refused: {error}" if case["valid"] else None
    if not case["valid"]:
        return "accepted"
    wrong = {key: (case[key], value) for key, value in seen.items() if key in case and case[key] != value}
    return f"{wrong}" if wrong else None


def _parse_id(case: dict[str, Any]) -> str | None:
    def parse() -> dict[str, Any]:
        text = _text(case)
        parsed = SpiffeId.parse(text)
        if str(parsed) != text:
            return {"valid": f"str() gives {parsed}"}
        return {"trust_domain": parsed.trust_domain, "path": parsed.path, "usable_as_leaf": parsed.is_workload}

    return _verdict(case, parse)


def _parse_trust_domain(case: dict[str, Any]) -> str | None:
    return _verdict(case, lambda: {"trust_domain": TrustDomain.parse(_text(case))})


def _join(case: dict[str, Any]) -> str | None:
    return _verdict(case, lambda: {"path": join_segments(*case["segments"])})


def _match(case: dict[str, Any]) -> str | None:
    matcher = _matcher(case["matcher"])
    accepted = [text for text in case["candidates"] if _accepts(matcher, text)]
    return None if accepted == case["accepted"] else f"accepted {accepted}"


def _matcher(spec: dict[str, Any]) -> IdMatcher:
    if "id" in spec:
        return ExactId(SpiffeId.parse(spec["id"]))
    if "one_of" in spec:
        return OneOf.of(SpiffeId.parse(text) for text in spec["one_of"])
    if "trust_domain" in spec:
        return MemberOf(TrustDomain.parse(spec["trust_domain"]))
    return AnyId()


def _accepts(matcher: IdMatcher, text: str) -> bool:
    try:
        return matcher.matches(SpiffeId.parse(text))
    except InvalidSpiffeIdError:
        return False


def _istio(case: dict[str, Any]) -> str | None:
    parsed = SpiffeId.parse(case["input"])
    seen = (parsed.namespace, parsed.service_account)
    return None if seen == (case["namespace"], case["service_account"]) else f"{seen}"


def _principal(case: dict[str, Any]) -> str | None:
    principal = SpiffeId.parse(case["input"]).principal
    return None if principal == case["principal"] else principal


_CHECKS: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "parse-id": _parse_id,
    "parse-trust-domain": _parse_trust_domain,
    "join-segments": _join,
    "match": _match,
    "istio-identity": _istio,
    "istio-principal": _principal,
}
