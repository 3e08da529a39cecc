"""The same configuration, request by request: a real Envoy on our control plane's resources, and our transport on the same.

Envoy takes the outbound listener as the control plane serves it (only its address is changed, since nothing is redirected here)
and gets route configuration, clusters and endpoints by ADS, as the sidecar of the same workload. Requests are drawn at random
from what the rules are about; the first one that is answered differently fails the test and is printed with its seed.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxyless import protos
from proxyless.controlplane.server import XDS_SOCKET
from proxyless.httpx import MeshTransport
from proxyless.testing import LocalMesh
from tests.asgi.helpers import eventually
from tests.controlplane.helpers import AdsClient, as_json, channel, sidecar
from tests.interop.draws import Drawn, Rules, draw_request
from tests.interop.helpers import Backend, Envoy, Tree, address, http2_cluster, needs_envoy

pytestmark = needs_envoy

REQUESTS = 300
SEEDS = [1, 2]
HOSTS_WITH_DRAWN_RULES = 60
SERVICES = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: shop, namespace: default}}
spec:
  hosts: [shop.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints:
  - {{address: 127.0.0.1, ports: {{http: {v1}}}, labels: {{version: v1}}}}
  - {{address: 127.0.0.1, ports: {{http: {v2}}}, labels: {{version: v2}}}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: plain, namespace: default}}
spec:
  hosts: [plain.default.svc.cluster.local, plain.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  endpoints: [{{address: 127.0.0.1, ports: {{http: {v1}}}}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: shop, namespace: default}}
spec:
  host: shop
  subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}, {{name: v3, labels: {{version: v3}}}}]
---
"""
RULES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: default}
spec:
  hosts: [shop, shop.example.com]
  http:
  - match: [{uri: {exact: /exact}}, {uri: {exact: /EXACT/two}, ignoreUriCase: true}]
    headers:
      request: {set: {x-a: exact, x-new: "100%%"}, add: {x-list: more}, remove: [x-b]}
      response: {set: {x-backend: hidden}, add: {x-added: one}}
    route: [{destination: {host: shop, subset: v1}, headers: {response: {add: {x-added: two}}, request: {remove: [x-c]}}}]
  - match: [{uri: {prefix: /api/}, method: {regex: "POST|PUT"}}]
    rewrite: {uri: /, authority: written.example.com}
    route: [{destination: {host: shop, subset: v2}}]
  - match: [{uri: {prefix: /api}, headers: {x-a: {exact: one}}}]
    rewrite: {uri: /v1}
    timeout: 7s
    route: [{destination: {host: shop, subset: v1}, headers: {request: {set: {host: by-header.example.com}}}}]
  - match: [{uri: {regex: "/users/[0-9]+(/.*)?"}}]
    rewrite: {uriRegexRewrite: {match: "^/users/([0-9]+)(/.*)?$", rewrite: "/u\\\\2/\\\\1"}}
    route: [{destination: {host: shop, subset: v2}}]
  - match: [{headers: {x-a: {prefix: tw}, x-b: {regex: "[0-9]+"}}, withoutHeaders: {x-c: {exact: stop}}}]
    route: [{destination: {host: shop, subset: v1}, weight: 100}, {destination: {host: shop, subset: v2}, weight: 0}]
  - match: [{queryParams: {q: {exact: "1"}}}, {queryParams: {q: {regex: "[a-c]+"}, r: {}}}, {queryParams: {q: {prefix: pre}}}]
    headers: {request: {set: {x-from: query}}}
    route: [{destination: {host: shop, subset: v1}, weight: 0}, {destination: {host: shop, subset: v2}, weight: 100}]
  - match: [{uri: {prefix: /go/uri}}]
    redirect: {uri: /there, authority: other.example.com}
  - match: [{uri: {prefix: /go/prefix}}]
    redirect: {prefixRewrite: /gone, redirectCode: 308}
  - match: [{uri: {prefix: /go/port}}]
    redirect: {scheme: https, port: 8443, redirectCode: 307}
  - match: [{uri: {prefix: /go/derived}}]
    redirect: {authority: far.example.com, derivePort: FROM_REQUEST_PORT, redirectCode: 303}
  - match: [{uri: {prefix: /go/query}}]
    redirect: {uri: "/there?own=1", redirectCode: 302}
  - match: [{uri: {prefix: /go}}]
    redirect: {scheme: https}
  - match: [{uri: {prefix: /say}, method: {exact: GET}}]
    directResponse: {status: 418, body: {string: short and stout}}
    headers: {response: {set: {x-said: "yes"}}}
  - match: [{uri: {prefix: /say}}]
    directResponse: {status: 204}
  - match: [{uri: {prefix: /fault}}]
    fault: {abort: {httpStatus: 555, percentage: {value: 100}}}
    route: [{destination: {host: shop}}]
  - match: [{uri: {prefix: /missing}}]
    route: [{destination: {host: shop, subset: v9}}]
  - match: [{uri: {prefix: /empty}}]
    route: [{destination: {host: shop, subset: v3}}]
  - match: [{authority: {prefix: shop.example}, scheme: {exact: http}}]
    rewrite: {authority: front.example.com, uri: /front/}
    route: [{destination: {host: shop, subset: v1}}]
  - match: [{uri: {prefix: /}, withoutHeaders: {x-c: {}}}]
    route: [{destination: {host: shop, subset: v2}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wild, namespace: default}
spec:
  hosts: ["*.wild.example.com"]
  http:
  - match: [{uri: {prefix: /a%2Fb}}, {uri: {exact: "/caf%C3%A9"}}]
    route: [{destination: {host: shop, subset: v1}}]
  - match: [{uri: {prefix: /x//y}}]
    rewrite: {uri: /z}
    route: [{destination: {host: plain, port: {number: 80}}}]
  - route: [{destination: {host: shop, subset: v2}}]
    rewrite: {uri: /wild}
"""
SETTINGS = {"enableAutoMtls": False, "outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}

HOSTS = (
    ["shop"] * 8
    + ["shop.default", "shop.default.svc", "shop.default.svc.cluster.local", "SHOP", "shop:80", "shop:8080"]
    + ["shop.example.com"] * 2
    + ["plain", "plain.example.com", "plain.default.svc.cluster.local."]
    + ["a.wild.example.com", "A.B.WILD.example.com", "wild.example.com", ".wild.example.com", "unknown.example.com"]
)
PATHS = [
    *("/", "/exact", "/EXACT", "/exact/two", "/Exact/Two", "/exact/", "/exact;v=1", "/api", "/api/", "/api/x", "/apis"),
    *("/api//x", "/users/1", "/users/12/a/b", "/users/x", "/users/1/", "/users/1%2F2", "/go", "/go/uri", "/go/uri/x"),
    *("/go/prefix", "/go/prefix/x", "/go/port", "/go/derived/x", "/go/query", "/say", "/say/it", "/fault", "/missing"),
    *(
        "/empty",
        "/a%2Fb",
        "/a%2fb/c",
        "/caf%C3%A9",
        "/caf%c3%a9",
        "/x//y",
        "/x//y/z",
        "/x/y",
        "/%2e%2e/api",
        "/a/%2E/b",
    ),
    *("/api%2F..%2Fexact", "//exact", "/exact%20", "/%65xact", "/a/./b", "/a\\b"),
]
QUERIES = [
    "",
    "",
    "",
    "q=1",
    "q=abc",
    "q=abc&r",
    "r=&q=abc",
    "q=pre-x",
    "q=2&q=1",
    "q=%31",
    "Q=1",
    "q",
    "q=1#",
    "x=?&q=1",
]
HEADERS = {
    "x-a": ["one", "One", "two", "twenty", "", "one,two"],
    "x-b": ["1", "12", "1a", ""],
    "x-c": ["stop", "go", ""],
    "x-list": ["first"],
    "x-envoy-original-path": ["/mine"],
    "x-envoy-original-host": ["mine.example.com"],
    "x-forwarded-host": ["mine.example.com"],
}


REPEATED = ("x-a", "x-b", "x-c", "x-list")


def draw(rng: random.Random) -> Drawn:
    """From what `RULES` are about."""
    query = rng.choice(QUERIES)
    target = rng.choice(PATHS) + (f"?{query}" if query else "")
    names = [name for name in HEADERS if rng.random() < 0.35]
    headers = [(name, rng.choice(HEADERS[name])) for name in names]
    headers += [(name, rng.choice(HEADERS[name])) for name in names if name in REPEATED and rng.random() < 0.3]
    method = rng.choice(["GET", "GET", "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
    body = b"body" if method in ("POST", "PUT") else b""
    return Drawn(method, rng.choice(HOSTS), target, headers, body)


#: What Envoy tells about itself, and what depends on the connection it keeps with its caller.
NOT_COMPARED = {"x-request-id", "x-forwarded-proto", "connection", "date", "server", "x-envoy-upstream-service-time"}


def facts(response: httpx.Response) -> dict[str, Any]:
    """What must be the same: the answer, and what the backend got."""
    found: dict[str, Any] = {"status": response.status_code, "headers": joined(response.headers.multi_items())}
    from_backend = response.headers.get("content-type") == "application/json"
    if from_backend or response.request.method == "HEAD":  # an answer to HEAD is framed by Envoy in its own way
        found["headers"].pop("content-length", None)
        found["headers"].pop("transfer-encoding", None)
    if not from_backend or not response.text:
        return {**found, "text": response.text}
    arrived = json.loads(response.text)
    seen = joined(arrived.pop("headers"))
    if seen.get("content-length") == "0":  # Envoy adds it to DELETE and OPTIONS
        del seen["content-length"]
    return {**found, **arrived, "arrived": seen}


def joined(headers: Any) -> dict[str, str]:
    """Values of one name are one list (RFC 9110 section 5.3)."""
    found: dict[str, str] = {}
    for name, value in headers:
        if name not in NOT_COMPARED:
            found[name] = f"{found[name]},{value}" if name in found else value
    return found


# -------------------------------------------------------------------------------------------------------------------- sides


def outbound_listener(xds: Path) -> Tree:
    """The listener of port 80 as the control plane serves it, on a port of its own."""
    with channel(f"unix:{xds}") as opened:
        client = AdsClient(opened, sidecar("caller"))
        resources = [protos.any_to_message(each) for each in client.ask(protos.LISTENER).resources]
        client.close()
    (found,) = (as_json(each) for each in resources if each is not None and each.name == "0.0.0.0_80")
    del found["bindToPort"]
    return {**found, "address": address("127.0.0.1", 0)}


def bootstrap(xds: Path) -> Tree:
    service = {"envoy_grpc": {"cluster_name": "control-plane"}}
    return {
        "node": {**sidecar("caller"), "cluster": "caller"},
        "dynamic_resources": {
            "ads_config": {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [service]},
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "static_resources": {
            "listeners": [outbound_listener(xds)],
            "clusters": [http2_cluster("control-plane", xds)],
        },
    }


@dataclass
class Sides:
    """The two clients and how they name a destination."""

    envoy: httpx.Client
    base: str
    mesh: httpx.Client

    def compare(self, request: Drawn, which: str) -> None:
        envoy = facts(request.send(self.envoy, self.base))
        ours = facts(request.send(self.mesh, "http://any.example.com"))
        different = {key: (envoy.get(key), ours.get(key)) for key in envoy | ours if envoy.get(key) != ours.get(key)}
        assert not different, f"{which}, {request}: (Envoy, ours) {different}"


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    folder = tmp_path_factory.mktemp("envoy")
    with contextlib.ExitStack() as stack:
        ports = {name: stack.enter_context(contextlib.closing(Backend(name))).port for name in ("v1", "v2")}
        rules = Rules(random.Random(0))
        drawn = "\n---\n".join(json.dumps(rules.virtual_service(n)) for n in range(HOSTS_WITH_DRAWN_RULES))
        manifests = f"{SERVICES.format(**ports)}{RULES}---\n{drawn}"
        local = stack.enter_context(LocalMesh(manifests, workloads={"caller": []}, settings=SETTINGS))
        xds = local.control_plane.workload_directory("default", "caller") / XDS_SOCKET
        envoy = stack.enter_context(Envoy(folder, bootstrap(xds)))
        reference = stack.enter_context(httpx.Client(trust_env=False))
        transport = MeshTransport(local.mesh("caller"), failures="respond")
        ours = stack.enter_context(httpx.Client(transport=transport))
        made = Sides(reference, f"http://127.0.0.1:{envoy.port('0.0.0.0_80')}", ours)
        up = Drawn("GET", "plain", "/")
        eventually(lambda: up.send(made.envoy, made.base).status_code == 200, what="Envoy has clusters and routes")
        yield made


@pytest.mark.parametrize("seed", SEEDS)
def test_random_requests_are_answered_as_by_envoy(sides: Sides, seed: int) -> None:
    rng = random.Random(seed)
    for number in range(REQUESTS):
        sides.compare(draw(rng), f"seed {seed}, request {number}")


@pytest.mark.parametrize("seed", SEEDS)
def test_random_rules_mean_what_they_mean_to_envoy(sides: Sides, seed: int) -> None:
    rng = random.Random(seed)
    for number in range(REQUESTS):
        sides.compare(draw_request(rng, HOSTS_WITH_DRAWN_RULES), f"seed {seed}, request {number}")
