"""`istiod/<scenario>`: our control plane translates the scenario's YAML, our data plane decides as the recorded Envoy did."""

from __future__ import annotations

import importlib.util
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

from proxyless.core.inbound import ConnectionInfo, admit, admit_connection, select_chain
from proxyless.core.learned import Learned
from proxyless.core.request import Address, Peer
from proxyless.core.resources import HttpConnectionManager
from proxyless.core.snapshot import Snapshot
from tests.conformance.callers import HandshakeRefused, MeshAuthority
from tests.conformance.harness import Case, Skipped, Suite
from tests.conformance.simulation import Burst, Network, Result, build_request, one_call
from tests.conformance.world import build_world, load_directory, mesh_config, snapshot_for

BUILT = ("seed-bound", "canary-split")
TCP = "traffic decisions (TCP without HTTP)"
SEED = 7


def suites(folder: Path) -> Iterator[Suite]:
    for name in BUILT:
        scenario = folder / "istiod" / name
        if (scenario / "decisions.json").exists():
            yield Suite(f"istiod/{name}", list(_Scenario(scenario).cases()))


class _Scenario:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._replay = _replay(path.parent / "replay.py")
        self._snapshots: dict[str, Snapshot] = {}

    @cached_property
    def _world(self) -> Any:
        settings = self._path / "mesh.yaml"
        mesh = mesh_config(settings.read_text() if settings.exists() else "")
        return build_world(mesh, load_directory(self._path / "config"))

    @cached_property
    def _nodes(self) -> Mapping[str, Any]:
        return {node["name"]: node["node"] for node in json.loads((self._path / "node.json").read_text())}

    def _snapshot(self, node: str) -> Snapshot:
        if node not in self._snapshots:
            self._snapshots[node] = snapshot_for(self._world, self._nodes[node])
        return self._snapshots[node]

    def cases(self) -> Iterator[Case]:
        document = json.loads((self._path / "decisions.json").read_text())
        rows = [("outbound", node, 0, entry) for node, entries in document["outbound"].items() for entry in entries]
        rows += [
            ("inbound", node, int(port), entry)
            for node, ports in document["inbound"].items()
            for port, entries in ports.items()
            for entry in entries
        ]
        for index, (way, node, port, entry) in enumerate(rows):
            case_id = "/".join(filter(None, (way, node, str(port or ""), str(index))))
            yield Case(case_id, partial(self._run, way, node, port, entry), _traits(entry))

    def _run(self, way: str, node: str, port: int, entry: dict[str, Any]) -> str | None:
        if way == "inbound":
            return self._inbound(node, port, entry)
        for mode in ("draws", "sequence", "burst"):
            if mode in entry:
                return str(getattr(self, f"_{mode}")(node, entry) or "") or None
        return self._one(node, entry)

    # ---------------------------------------------------------------------------------------------------------- outbound

    def _one(self, node: str, entry: dict[str, Any]) -> str | None:
        request, expected = entry["request"], entry["decision"]
        if "tcp" in request and request.get("tls") is None:
            raise Skipped(TCP)
        network = Network(plan=request.get("plan", ()))
        result, _ = one_call(
            self._snapshot(node), build_request(request), network, Learned(), random.Random(SEED),
            patience=request.get("client_timeout") or entry.get("client_timeout"),
        )  # fmt: skip
        mine = self._describe(node, request, result)
        if "tcp" in request:
            mine["connection"] = "open"
            mine.pop("status")
            mine["upstream"] = {"tls": {"sni": (request.get("tls") or {}).get("sni")}}
        return str(self._replay.differences(expected, mine, "upstream") or "") or None

    def _describe(self, node: str, request: dict[str, Any], result: Result) -> dict[str, Any]:
        mine: dict[str, Any] = {
            "status": result.status,
            "flags": result.flags,
            "cluster": result.cluster,
            "attempts": result.attempts,
            "upstream": None,
            "response_headers": [[k.decode(), v.decode("latin-1")] for k, v in result.headers],
        }
        last = result.last
        if result.passthrough:
            mine["upstream"] = _as_sent(request)
        elif last is not None and result.attempts:
            tls = last.endpoint.tls
            mine["upstream"] = {
                "method": last.method,
                "path": last.target.decode("latin-1"),
                "authority": last.authority,
                "headers": [[k.decode().lower(), v.decode("latin-1")] for k, v in last.headers],
                "tls": {"sni": tls.sni} if tls is not None else None,
            }
        return mine

    def _draws(self, node: str, entry: dict[str, Any]) -> str | None:
        rng, snapshot, learned = random.Random(SEED), self._snapshot(node), Learned()
        network = Network(plan=entry["request"].get("plan", ()))
        request = build_request(entry["request"])
        clusters: Counter[str] = Counter()
        for _ in range(2000):
            result, _ = one_call(snapshot, request, network, learned, rng)
            clusters[result.cluster or ""] += 1
        differences = self._replay.distribution(entry["decision"], clusters)
        endpoints = entry["decision"].get("endpoint")
        if endpoints:
            differences |= self._replay.distribution(entry["decision"], network.asked, "endpoint")
        return str(differences or "") or None

    def _sequence(self, node: str, entry: dict[str, Any]) -> str | None:
        expected, count = entry["decision"], entry["sequence"]
        learned, rng, snapshot = Learned(), random.Random(SEED), self._snapshot(node)
        network = Network(endpoints=entry.get("endpoints", {}), dead=frozenset(entry.get("dead", ())))
        request = build_request(entry["request"])
        results, now = [], 0.0
        for _ in range(count):
            result, now = one_call(snapshot, request, network, learned, rng, now)
            results.append(result)
        mine = _counts(results)
        mine["endpoints_asked"] = dict(network.asked)
        wrong = {
            key: (expected[key], mine[key])
            for key in ("status", "cluster", "flags", "attempts", "endpoints_asked")
            if key in expected and expected[key] != mine[key]
        }
        return str(wrong or "") or None

    def _burst(self, node: str, entry: dict[str, Any]) -> str | None:
        expected = entry["decision"]
        network = Network(plan=entry["request"].get("plan", ()))
        burst = Burst(self._snapshot(node), network, random.Random(SEED))
        results = burst.run(build_request(entry["request"]), entry["burst"], entry.get("interval_ms", 0) / 1000)
        mine = _counts(results)
        mine["connections"] = burst.connections()
        wrong = {
            key: (expected[key], mine[key])
            for key in ("status", "cluster", "flags", "attempts", "connections")
            if key in expected and expected[key] != mine[key]
        }
        return str(wrong or "") or None

    # ----------------------------------------------------------------------------------------------------------- inbound

    def _inbound(self, node: str, port: int, entry: dict[str, Any]) -> str | None:
        expected = entry["decision"]
        mine = self._admit(node, port, entry["peer"], entry["request"])
        return str(self._replay.differences(expected, mine, "verdict") or self._policy(expected, mine) or "") or None

    def _policy(self, expected: dict[str, Any], mine: dict[str, Any]) -> str | None:
        """Allowed or denied by which policy."""
        if not str(expected.get("details", "")).startswith("rbac_") or "details" not in mine:
            return None
        return None if expected["details"] == mine["details"] else f"{expected['details']} / {mine['details']}"

    def _admit(self, node: str, port: int, peer: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
        listener = self._snapshot(node).inbound
        assert listener is not None
        hello = peer.get("tls")
        is_http = "path" in request
        local, source = Address("10.0.0.1", port), Address(peer.get("remote", "10.250.0.1"), 40000)
        # A plain HTTP request is known as such by its first bytes; what a client offers inside of TLS is in its ALPN.
        alpn = tuple(hello.get("alpn") or ()) if hello else (("http/1.1",) if is_http else ())
        info = ConnectionInfo(
            destination=local, transport="tls" if hello else "raw_buffer", alpn=alpn,
            server_name=(hello or {}).get("sni") or "", source=source,
        )  # fmt: skip
        chain = select_chain(listener, info)
        closed = {"status": None, "connection": "closed"}
        if chain is None:
            return closed
        seen = Peer(address=source, local=local)
        if hello is not None and chain.tls is not None:
            try:
                seen = self._authority(node).peer(chain.tls, hello, source, local)
            except HandshakeRefused:
                return closed
        if not isinstance(chain.filter, HttpConnectionManager):
            verdict = admit_connection(chain, seen)
            return {"connection": "open" if verdict.allowed else "closed", "details": verdict.details}
        if not is_http:
            return closed
        inbound = build_request({**request, "to": f"10.0.0.1:{port}"})
        verdict = admit(chain, inbound, seen)
        return {"status": 200 if verdict.allowed else verdict.status, "details": verdict.details, "connection": None}

    @lru_cache(maxsize=8)  # noqa: B019 - lives as long as the scenario
    def _authority(self, node: str) -> _Handshakes:
        mesh = self._world.mesh
        account = self._nodes[node]["metadata"].get("SERVICE_ACCOUNT", "default")
        namespace = self._nodes[node]["metadata"]["NAMESPACE"]
        domains = (mesh.trust_domain, *mesh.trust_domain_aliases)
        return _Handshakes(MeshAuthority(domains, f"spiffe://{mesh.trust_domain}/ns/{namespace}/sa/{account}"))


class _Handshakes:
    def __init__(self, authority: MeshAuthority) -> None:
        self._authority = authority

    def peer(self, tls: Any, hello: Mapping[str, Any], source: Address, local: Address) -> Peer:
        connection = self._authority.handshake(tls, hello)
        return Peer(
            identity=connection.peer_identity,
            uri_sans=connection.peer_uri_sans,
            dns_sans=connection.peer_dns_sans,
            tls=True,
            alpn=connection.selected_alpn_protocol() or "",
            sni=hello.get("sni") or "",
            address=source,
            local=local,
        )


def _traits(entry: Mapping[str, Any]) -> tuple[str, ...]:
    names = ((entry.get("peer") or {}).get("tls") or {}).get("uri_sans") or ()
    return ("several-uri-names",) if len(names) > 1 else ()


def _as_sent(request: Mapping[str, Any]) -> dict[str, Any]:
    """What a destination that is not the mesh's receives: the caller's own request."""
    headers = [[name.lower(), value] for name, value in request.get("headers", ()) if name.lower() != "host"]
    host = next((value for name, value in request.get("headers", ()) if name.lower() == "host"), "")
    return {
        "method": request.get("method", "GET"),
        "path": request.get("path", "/"),
        "authority": host,
        "headers": headers,
        "tls": None,
    }


def _counts(results: list[Result]) -> dict[str, Any]:
    status, cluster, flags, attempts = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for result in results:
        status[str(result.status)] += 1
        cluster[str(result.cluster)] += 1
        attempts[str(result.attempts)] += 1
        if result.flags:
            flags[result.flags] += 1
    return {"status": dict(status), "cluster": dict(cluster), "flags": dict(flags), "attempts": dict(attempts)}


@lru_cache(maxsize=2)
def _replay(path: Path) -> Any:
    """The data's own comparison."""
    spec = importlib.util.spec_from_file_location("conformance_replay", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
