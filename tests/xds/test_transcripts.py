"""Recorded conversations of a real istiod, replayed against the session: the client's lines must be equivalent.

Each server line is given to the session; the client line that answers it in the recording (by its nonce) must agree with ours
in version, nonce and being an ACK or a NACK. What is subscribed may differ: we ask for all that is referred to.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxyless import protos
from proxyless.protos import CLUSTER, ENDPOINT, LISTENER, ROUTE
from proxyless.xds.session import SotwSession
from proxyless.xds.store import Store
from tests.xds.helpers import BAD, DECODERS, assignment, cluster, listener, response, route

CONFORMANCE = Path(
    os.environ.get("PROXYLESS_CONFORMANCE") or Path(__file__).parents[2].parent / "shared" / "conformance"
)
TRANSCRIPTS = CONFORMANCE / "istiod" / "transcripts"
TYPES = {"cds": CLUSTER, "eds": ENDPOINT, "lds": LISTENER, "rds": ROUTE}

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(not TRANSCRIPTS.is_dir(), reason="no recordings: PROXYLESS_CONFORMANCE names no such folder"),
]


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TRANSCRIPTS / f"{name}.jsonl").read_text().splitlines()]


def by_name(type_url: str, name: str, version: str, bad: bool) -> Any:
    """The sidecar recording has names only: a resource of that name and kind."""
    if type_url == CLUSTER:
        return cluster(name, version, eds=name.startswith("outbound|"))
    if type_url == ENDPOINT:
        return assignment(name, int(version[1:]))
    if type_url == LISTENER:
        routes = [name.removeprefix("0.0.0.0_")] if name.startswith("0.0.0.0_80") else []
        return listener(name, *routes, mark=version, inbound=name == "virtualInbound")
    return route(name, BAD if bad else version)


def in_full(type_url: str, recorded: dict[str, Any]) -> Any:
    from google.protobuf import json_format

    kind = protos.message(protos.type_name(type_url))
    return json_format.ParseDict(recorded, kind(), descriptor_pool=protos.pool())


class NamedStore(Store):
    """The gRPC form: listeners by name, clusters as the routes name them. The session serves both forms."""

    targets: frozenset[str] = frozenset()
    _clusters: frozenset[str] = frozenset()

    def wanted(self, type_url: str) -> frozenset[str] | None:
        if type_url == LISTENER:
            return self.targets
        if type_url != CLUSTER:
            return super().wanted(type_url)
        found = set()
        for item in self.dump():
            if item.type_url == ROUTE and item.raw:
                message = protos.message("envoy.config.route.v3.RouteConfiguration").FromString(item.raw)
                for action in (each.route for host in message.virtual_hosts for each in host.routes):
                    found |= {each.name for each in action.weighted_clusters.clusters} | {action.cluster}
        if found - {""} != self._clusters:
            self._clusters = frozenset(found - {""})
        return self._clusters


def replay(
    recorded: list[dict[str, Any]], session: SotwSession, resources: Any
) -> Iterator[tuple[dict[str, Any], dict[str, Any], list[Any]]]:
    """Yields (server line, the recorded answer, our requests)."""
    answers = {line["nonce"]: line for line in recorded if line.get("from") == "client" and line["nonce"]}
    answered: set[str] = set()
    for line in recorded:
        if "reconnect" in line.get("event", ""):
            first = session.open(0.0)
            assert [request.HasField("node") for request in first] == [True, False, False, False]
            said = {TYPES[each["type"]]: each for each in recorded[recorded.index(line) :] if each.get("nonce") == ""}
            assert {request.type_url: request.version_info for request in first} == {
                url: each["version"] for url, each in said.items()
            }
        if line.get("from") != "server":
            continue
        url = TYPES[line["type"]]
        answer = next(
            each
            for each in recorded
            if each.get("from") == "client" and each["nonce"] == line["nonce"] and each["type"] == line["type"]
        )
        assert line["nonce"] not in answered
        answered.add(line["nonce"])
        message = response(url, line["version"], *resources(url, line, answer), nonce=line["nonce"])
        yield line, answer, session.receive(message, 0.0)
    assert answers.keys() >= answered


def check(line: dict[str, Any], answer: dict[str, Any], requests: list[Any]) -> None:
    ours = requests[0]
    assert ours.type_url == TYPES[line["type"]]
    assert ours.response_nonce == answer["nonce"]
    assert ours.version_info == answer["version"]
    assert ours.HasField("error_detail") == ("error" in answer)
    assert not any(request.response_nonce == line["nonce"] for request in requests[1:])


def test_a_sidecar_conversation() -> None:
    recorded = lines("sidecar-sotw")
    store = Store(DECODERS)
    session = SotwSession(protos.message("envoy.config.core.v3.Node")(id="n"), store)
    session.open(0.0)

    def resources(url: str, line: dict[str, Any], answer: dict[str, Any]) -> list[Any]:
        return [by_name(url, name, line["version"], "error" in answer) for name in line["resources"]]

    for line, answer, requests in replay(recorded, session, resources):
        check(line, answer, requests)
        if line["type"] in ("cds", "lds"):
            assert sorted(store.held(TYPES[line["type"]])) == sorted(line["resources"])  # absent means deleted
        if line["version"] == "v7" and line["type"] == "rds":
            assert "'80'" in requests[0].error_detail.message
            resources_now = store.take()
            assert resources_now is None or resources_now.routes["80"].virtual_hosts[0].name == "v6"
    assert {"80"} == set(store.held(ROUTE))


def test_a_grpc_conversation_with_the_real_decoders() -> None:
    recorded = lines("grpc-sotw")
    store = NamedStore()
    store.targets = frozenset(next(line["names"] for line in recorded if line.get("type") == "lds"))
    session = SotwSession(protos.message("envoy.config.core.v3.Node")(id="n"), store)
    session.open(0.0)

    def resources(url: str, line: dict[str, Any], answer: dict[str, Any]) -> list[Any]:
        messages = [in_full(url, each) for each in line["resources"].values()]
        if "error" in answer:
            messages[0].virtual_hosts.add(name="twice", domains=["*"])
            messages[0].virtual_hosts.add(name="again", domains=["*"])
        return messages

    seen_late = False
    for line, answer, requests in replay(recorded, session, resources):
        check(line, answer, requests)
        if line["type"] == "lds":
            assert sorted(store.held(LISTENER)) == sorted(line["resources"])
            seen_late |= "late.default.svc.cluster.local:80" in line["resources"]
    assert seen_late
    assert store.take() is not None
