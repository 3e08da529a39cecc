"""Envoy's own validation (`--mode validate`) of everything that the translation can produce for a sidecar and a gateway."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from proxyless.controlplane.translate import ProxyNode, World
from proxyless.protos import CLUSTER, LISTENER, ROUTE
from tests.controlplane.helpers import GATEWAY, NODE, as_json, served, service, world
from tests.interop.helpers import ENVOY, needs_envoy

pytestmark = needs_envoy

TRAFFIC = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api, namespace: default}
spec:
  host: api
  trafficPolicy:
    connectionPool:
      tcp: {maxConnections: 10, connectTimeout: 1s, idleTimeout: 30s, maxConnectionDuration: 60s}
      http: {http1MaxPendingRequests: 5, http2MaxRequests: 6, maxRequestsPerConnection: 7, maxRetries: 8}
    outlierDetection:
      {consecutive5xxErrors: 2, consecutiveGatewayErrors: 3, interval: 5s, baseEjectionTime: 10s,
       maxEjectionPercent: 50, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 4}
    retryBudget: {percent: 25}
  subsets:
  - {name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}}
  - {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {consistentHash: {httpQueryParameterName: q, maglev: {tableSize: 5003}}}}}
  - {name: v3, labels: {version: v3}, trafficPolicy: {loadBalancer: {simple: RANDOM}, tls: {mode: DISABLE}}}
  - {name: v4, labels: {version: v4}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 10s, aggression: 2}}, tls: {mode: ISTIO_MUTUAL}}}
  - {name: v5, labels: {version: v5}, trafficPolicy: {tls: {mode: SIMPLE, sni: x.example.com, insecureSkipVerify: true}}}
  - {name: v6, labels: {version: v6}, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api, namespace: default}
spec:
  hosts: [api, api.example.com]
  gateways: [mesh, public]
  http:
  - match:
    - {uri: {exact: /a}, method: {regex: "GET|PUT"}, ignoreUriCase: true}
    - {headers: {x-a: {prefix: p}, x-b: {}}, withoutHeaders: {x-c: {exact: c}}, queryParams: {q: {regex: "[0-9]+"}}}
    rewrite: {uri: /b, authority: other}
    retries: {attempts: 3, perTryTimeout: 1s, retryOn: "5xx,503", backoff: 100ms, retryRemoteLocalities: true}
    timeout: 4s
    mirrors: [{destination: {host: api, subset: v3}, percentage: {value: 12.5}}]
    corsPolicy: {allowOrigins: [{regex: ".*"}], allowMethods: [GET], maxAge: 1h, allowCredentials: true, unmatchedPreflights: IGNORE}
    fault: {delay: {fixedDelay: 1s, percentage: {value: 1}}, abort: {grpcStatus: UNAVAILABLE, percentage: {value: 1}}}
    route:
    - {destination: {host: api, subset: v1}, weight: 1, headers: {request: {set: {host: x, x-d: "%REQ(x-a)%"}}}}
    - {destination: {host: api, subset: v2}, weight: 2, headers: {response: {remove: [server]}}}
  - match: [{uri: {regex: "/r/.*"}}]
    rewrite: {uriRegexRewrite: {match: "/r/(.*)", rewrite: "/\\\\1"}}
    route: [{destination: {host: api, subset: v1}}]
  - match: [{uri: {prefix: /go}}]
    redirect: {prefixRewrite: /gone, scheme: https, derivePort: FROM_REQUEST_PORT, redirectCode: 308}
  - match: [{uri: {prefix: /no}}]
    directResponse: {status: 410, body: {bytes: Z29uZQ==}}
  - route: [{destination: {host: api}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out, namespace: default}
spec:
  hosts: [out.example.com]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 443, name: https, protocol: HTTPS}, {number: 80, name: http, protocol: HTTP}, {number: 5432, name: db, protocol: TCP}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: out, namespace: default}
spec:
  host: out.example.com
  trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: SIMPLE}}]}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: wild, namespace: default}
spec:
  hosts: ["*.wild.example.com"]
  location: MESH_EXTERNAL
  resolution: NONE
  ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, protocol: HTTP}]
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: public, namespace: default}
spec:
  selector: {istio: ingressgateway}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ["*.example.com"]}
  - {port: {number: 8081, name: redirect, protocol: HTTP}, hosts: ["*"], tls: {httpsRedirect: true}}
  - {port: {number: 443, name: https, protocol: HTTPS}, hosts: [api.example.com], tls: {mode: SIMPLE, credentialName: api}}
  - {port: {number: 8443, name: tls, protocol: TLS}, hosts: [pass.example.com], tls: {mode: PASSTHROUGH}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: pass, namespace: default}
spec:
  hosts: [pass.example.com]
  gateways: [public]
  tls: [{match: [{sniHosts: [pass.example.com]}], route: [{destination: {host: out.example.com, port: {number: 443}}}]}]
"""
POLICY = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: web, namespace: default}
spec: {selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {8080: {mode: STRICT}}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: default}
spec:
  rules:
  - from:
    - source: {principals: ["cluster.local/ns/default/sa/a", "*/sa/b", "cluster.local/*"], notNamespaces: [x]}
    - source: {namespaces: ["shop-*"], ipBlocks: ["10.0.0.0/8"], notRemoteIpBlocks: ["192.0.2.1"]}
    - source: {serviceAccounts: [a, shop/b]}
    - source: {requestPrincipals: ["https://issuer.example.com/*"]}
    to:
    - operation: {hosts: ["*.example.com"], methods: [GET], paths: ["/a*", "/u/{*}/x/{**}"], notPaths: ["*/secret"], ports: ["8080"]}
    when:
    - {key: "request.headers[x-a]", values: ["*"]}
    - {key: "request.auth.claims[a][b]", values: [c, "d*"]}
    - {key: connection.sni, notValues: ["*.bad"]}
    - {key: destination.ip, values: ["10.0.0.0/8"]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nothing, namespace: default}
spec: {action: ALLOW}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: dry, namespace: default, annotations: {istio.io/dry-run: "true"}}
spec: {action: DENY, rules: [{to: [{operation: {methods: [POST]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: audit, namespace: default}
spec: {action: AUDIT, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt, namespace: default}
spec:
  jwtRules:
  - {issuer: https://issuer.example.com, audiences: [a], jwksUri: "https://issuer.example.com/keys", outputPayloadToHeader: x-p}
  - {issuer: https://other.example.com, jwksUri: "https://other.example.com/keys", fromHeaders: [{name: x-t, prefix: "T "}], fromParams: [t], fromCookies: [c]}
"""


def everything() -> World:
    return world(
        service("api"),
        service("web", target=8080, address="10.9.9.9"),
        service("grpc", port=50, protocol="grpc"),
        service("raw", port=9000, target=9000, protocol="tcp", address="10.9.9.9"),
        TRAFFIC,
        POLICY,
    )


def static(of: World, node: ProxyNode) -> dict[str, Any]:
    """A bootstrap that holds the resources themselves: route configurations go where their names stand."""
    routes = {name: as_json(found) for name, found in served(of, ROUTE, node).items()}
    listeners = [as_json(found) for found in served(of, LISTENER, node).values()]
    for listener in listeners:
        for chain in listener.get("filterChains", []):
            for filter_ in chain["filters"]:
                config = filter_["typedConfig"]
                if "rds" in config:
                    config["routeConfig"] = routes[config.pop("rds")["routeConfigName"]]
    clusters = [as_json(found) for found in served(of, CLUSTER, node).values()]
    clusters.append(
        {"name": "sds-grpc", "type": "STATIC", "loadAssignment": {"clusterName": "sds-grpc"}, "typedExtensionProtocolOptions": _H2}
    )  # fmt: skip
    ads = {"apiType": "GRPC", "grpcServices": [{"envoyGrpc": {"clusterName": "sds-grpc"}}], "transportApiVersion": "V3"}
    return {
        "node": {"id": "x", "cluster": "x"},
        "dynamicResources": {"adsConfig": ads},
        "staticResources": {"listeners": listeners, "clusters": clusters},
    }


_H2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicitHttpConfig": {"http2ProtocolOptions": {}},
    }
}


@pytest.mark.parametrize("node", [NODE, GATEWAY], ids=["sidecar", "gateway"])
def test_envoy_finds_nothing_wrong(node: ProxyNode, tmp_path: Path) -> None:
    settings = tmp_path / "envoy.json"
    settings.write_text(json.dumps(static(everything(), node)))
    assert ENVOY is not None
    done = subprocess.run(
        [ENVOY, "--mode", "validate", "--config-path", str(settings), "--log-level", "critical"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
