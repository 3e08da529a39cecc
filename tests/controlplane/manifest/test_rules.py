"""Rules over several fields: each row is a spec, and the path of the one error (or None) that it gives."""

from __future__ import annotations

import pytest

from proxyless.controlplane.manifest.rules.checks import regex_problem
from proxyless.controlplane.manifest.rules.telemetry import expression_problem

from .helpers import errors, load, route

TO = "route: [{destination: {host: a.b}}]"

HTTP = [
    (TO, None),
    ("name: x", ""),
    (f"redirect: {{uri: /x}}\n{TO}", ".redirect"),
    ("redirect: {uri: /x}\nfault: {abort: {httpStatus: 500}}", ".fault"),
    ("redirect: {}", ".redirect"),
    ("redirect: {uri: /x, redirectCode: 200}", ".redirect.redirectCode"),
    ("redirect: {uri: /x, port: 80, derivePort: FROM_REQUEST_PORT}", ".redirect.derivePort"),
    ("redirect: {prefixRewrite: /x}\nmatch: [{uri: {exact: /y}}]", ".redirect.prefixRewrite"),
    ("redirect: {prefixRewrite: /x}\nmatch: [{uri: {prefix: /y}}]", None),
    ("directResponse: {status: 42}", ".directResponse.status"),
    ("directResponse: {status: 503, body: {string: a, bytes: YQ==}}", ".directResponse.body.bytes"),
    ("directResponse: {status: 503, body: {bytes: '***'}}", ".directResponse.body.bytes"),
    (f"rewrite: {{}}\n{TO}", ".rewrite"),
    (f"rewrite: {{uri: /x, uriRegexRewrite: {{match: a, rewrite: b}}}}\n{TO}", ".rewrite.uriRegexRewrite"),
    (f"rewrite: {{uriRegexRewrite: {{match: '(', rewrite: b}}}}\n{TO}", ".rewrite.uriRegexRewrite.match"),
    (f"rewrite: {{authority: a}}\nheaders: {{request: {{set: {{Host: b}}}}}}\n{TO}", ".headers.request.set.Host"),
    (f"headers: {{request: {{add: {{x: 100%}}}}}}\n{TO}", ".headers.request.add.x"),
    (f"headers: {{request: {{add: {{x: '100%% %REQ(x-a?y:z)%'}}}}}}\n{TO}", None),
    (f"headers: {{response: {{remove: ['a b']}}}}\n{TO}", ".headers.response.remove[0]"),
    (f"fault: {{delay: {{percentage: {{value: 10}}}}}}\n{TO}", ".fault.delay.fixedDelay"),
    (f"fault: {{abort: {{httpStatus: 500, grpcStatus: INTERNAL}}}}\n{TO}", ".fault.abort.grpcStatus"),
    (f"fault: {{abort: {{grpcStatus: internal}}}}\n{TO}", ".fault.abort.grpcStatus"),
    (f"fault: {{abort: {{httpStatus: 500, percentage: {{value: 100.5}}}}}}\n{TO}", ".fault.abort.percentage.value"),
    (f"corsPolicy: {{allowMethods: [get]}}\n{TO}", ".corsPolicy.allowMethods[0]"),
    (f"corsPolicy: {{allowOrigins: [{{}}]}}\n{TO}", ".corsPolicy.allowOrigins[0]"),
    (f"retries: {{attempts: 0}}\n{TO}", None),
    (f"retries: {{attempts: -1}}\n{TO}", ".retries.attempts"),
    (f"retries: {{attempts: 0, perTryTimeout: 1s}}\n{TO}", ".retries"),
    (f"retries: {{perTryTimeout: 1s}}\n{TO}", ".retries"),
    (f"retries: {{attempts: 1, retryOn: '5xx,503,connect-failure'}}\n{TO}", None),
    (f"retries: {{attempts: 1, retryOn: '5xx, 503'}}\n{TO}", ".retries.retryOn"),
    (f"retries: {{attempts: 1, retryOn: '5xx,'}}\n{TO}", ".retries.retryOn"),
    (f"retries: {{attempts: 1, retryOn: 5XX}}\n{TO}", ".retries.retryOn"),
    (f"retries: {{attempts: 1, retryOn: '1000'}}\n{TO}", ".retries.retryOn"),
    (f"mirror: {{host: a.b}}\nmirrors: [{{destination: {{host: a.b}}}}]\n{TO}", ".mirrors"),
    (f"match: [{{uri: {{exact: a, prefix: b}}}}]\n{TO}", ".match[0].uri.prefix"),
    (f"match: [{{uri: {{regex: '(?=x)'}}}}]\n{TO}", ".match[0].uri.regex"),
    (f"match: [{{method: {{prefix: ''}}}}]\n{TO}", ".match[0].method.prefix"),
    (f"match: [{{headers: {{x: {{regex: '*'}}}}}}]\n{TO}", None),
    (f"match: [{{headers: {{x: null}}}}]\n{TO}", ".match[0].headers.x"),
    (f"match: [{{headers: {{'@request.auth.claims.a': {{exact: b}}}}}}]\n{TO}", '.match[0].headers["@request.auth.claims.a"]'),
    (f"match: [{{port: 70000}}]\n{TO}", ".match[0].port"),
    ("route: [{destination: {host: a.b}, weight: 100}, {destination: {host: c.d}}]", None),
    ("route: [{destination: {host: a.b}, weight: 0}]", None),
    ("route: [{destination: {host: a.b}, weight: 1}, {destination: {host: c.d}, weight: 3}]", None),
    ("route: [{destination: {host: a.b}, weight: 0}, {destination: {host: c.d}, weight: 0}]", ".route"),
    ("route: [{destination: {host: a.b}}, {destination: {host: c.d}}]", ".route"),
    ("route: [{destination: {host: a.b}, weight: -1}, {destination: {host: c.d}, weight: 101}]", ".route[0].weight"),
    ("route: [{destination: {host: shop/a}}]", ".route[0].destination.host"),
    ("route: [{destination: {host: ''}}]", ".route[0].destination.host"),
    ("route: [{}]", ".route[0].destination"),
    ("route: [{destination: {host: a.b, port: {number: 0}}}]", ".route[0].destination.port.number"),
]  # fmt: skip


@pytest.mark.parametrize(("http", "path"), HTTP)
def test_an_http_route_is_refused_at_the_field_that_is_wrong(http: str, path: str | None) -> None:
    assert [error.path for error in errors(route(http))] == ([] if path is None else [f"spec.http[0]{path}"])


SPECS = [
    ("VirtualService", f"hosts: ['*']\nhttp: [{{{TO}}}]", "spec.hosts[0]"),
    ("VirtualService", f"hosts: ['*']\ngateways: [edge]\nhttp: [{{{TO}}}]", None),
    ("VirtualService", f"hosts: [a.*.b]\nhttp: [{{{TO}}}]", "spec.hosts[0]"),
    ("VirtualService", f"hosts: ['*.a.b', x.a.b]\nhttp: [{{{TO}}}]", "spec.hosts[1]"),
    ("VirtualService", f"hosts: ['*.a.b', '*.b']\nhttp: [{{{TO}}}]", "spec.hosts[0]"),
    ("VirtualService", f"hosts: [a.b, a.b]\nhttp: [{{{TO}}}]", "spec.hosts[1]"),
    ("VirtualService", f"hosts: ['*.a.b', '*.c.b', a.b]\nhttp: [{{{TO}}}]", None),
    ("VirtualService", f"hosts: [a.b]\ngateways: [ns/*]\nhttp: [{{{TO}}}]", "spec.gateways[0]"),
    ("VirtualService", "hosts: [a.b]", "spec"),
    ("VirtualService", f"http: [{{{TO}}}]", None),
    ("VirtualService", f"gateways: [edge]\nhttp: [{{{TO}}}]", "spec.gateways"),
    ("VirtualService", f"hosts: [a.b]\ntls: [{{match: [{{sniHosts: [c.d]}}], {TO}}}]", "spec.tls[0].match[0].sniHosts[0]"),
    ("VirtualService", f"hosts: [a.b]\nexportTo: ['*', '.']\nhttp: [{{{TO}}}]", "spec.exportTo[0]"),
    ("VirtualService", f"hosts: [a.b]\nexportTo: [., shop]\nhttp: [{{{TO}}}]", "spec.exportTo[1]"),
    ("DestinationRule", "host: a.b\ntrafficPolicy: {}", "spec.trafficPolicy"),
    ("DestinationRule", "host: a.b\nsubsets: [{name: v}, {name: v}]", "spec.subsets[1].name"),
    ("DestinationRule", "host: a.b\nsubsets: [{name: v.1}]", "spec.subsets[0].name"),
    (
        "DestinationRule",
        "host: a.b\ntrafficPolicy: {loadBalancer: {simple: RANDOM, consistentHash: {useSourceIp: true}}}",
        "spec.trafficPolicy.loadBalancer.consistentHash",
    ),
    (
        "DestinationRule",
        "host: a.b\ntrafficPolicy: {loadBalancer: {simple: ROUND_ROBBIN}}",
        "spec.trafficPolicy.loadBalancer.simple",
    ),
    (
        "DestinationRule",
        "host: a.b\ntrafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true, maglev: {}}}}",
        "spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize",
    ),
    (
        "DestinationRule",
        "host: a.b\ntrafficPolicy: {outlierDetection: {maxEjectionPercent: 101}}",
        "spec.trafficPolicy.outlierDetection.maxEjectionPercent",
    ),
    ("DestinationRule", "host: a.b\ntrafficPolicy: {tls: {mode: MUTUAL, clientCertificate: c}}", "spec.trafficPolicy.tls.privateKey"),
    ("DestinationRule", "host: a.b\ntrafficPolicy: {portLevelSettings: [{tls: {mode: DISABLE}}]}", "spec.trafficPolicy.portLevelSettings[0].port"),
    ("DestinationRule", "host: a.b\nworkloadSelector: {matchLabels: {a: b}}\nexportTo: ['*']", "spec.exportTo[0]"),
    ("ServiceEntry", "hosts: [a.b]\nresolution: DNS", None),
    ("ServiceEntry", "hosts: []\nresolution: DNS", "spec.hosts"),
    ("ServiceEntry", "hosts: ['*']\nresolution: NONE", "spec.hosts[0]"),
    ("ServiceEntry", "hosts: ['*.a.b']\nresolution: DNS", "spec.hosts[0]"),
    ("ServiceEntry", "hosts: [a.b]\nendpoints: [{address: 10.0.0.1}]", "spec.endpoints"),
    ("ServiceEntry", "hosts: [a.b]\nresolution: STATIC\nendpoints: [{address: c.d}]", "spec.endpoints[0].address"),
    ("ServiceEntry", "hosts: [a.b]\nresolution: STATIC\nendpoints: [{address: 10.0.0.1, ports: {web: 80}}]", "spec.endpoints[0].ports.web"),
    ("ServiceEntry", "hosts: [a.b]\nresolution: DNS\naddresses: [10.0.0.0/8]", "spec.addresses[0]"),
    ("ServiceEntry", "hosts: [a.b]\nresolution: DNS\nports: [{number: 80, name: a}, {number: 80, name: b}]", "spec.ports[1].number"),
    ("ServiceEntry", "hosts: [a.b]\nresolution: DNS\nports: [{number: 80, name: a, protocol: HTTPP}]", "spec.ports[0].protocol"),
    ("ServiceEntry", "hosts: [a.b]\nworkloadSelector: {labels: {a: b}}\nresolution: STATIC\nendpoints: [{address: 10.0.0.1}]", "spec.endpoints"),
    ("WorkloadEntry", "{}", "spec.address"),
    ("WorkloadEntry", "address: a.b:80", "spec.address"),
    ("WorkloadEntry", "address: unix://@x\nports: {a: 1}", "spec.ports"),
    ("WorkloadGroup", "template: {}\nprobe: {}", "spec.probe"),
    ("Gateway", "servers: [{hosts: [a.b], port: {number: 80, name: h, protocol: HTTPX}}]", "spec.servers[0].port.protocol"),
    ("Gateway", "servers: [{hosts: [a.b], port: {number: 443, name: h, protocol: HTTPS}}]", "spec.servers[0].tls"),
    ("Gateway", "servers: [{hosts: [a.b], port: {number: 80, name: h, protocol: HTTP}, tls: {httpsRedirect: true}}]", None),
    ("Gateway", "servers: [{hosts: [a.b], port: {number: 80, name: h, protocol: HTTP}, tls: {mode: SIMPLE}}]", "spec.servers[0].tls"),
    ("Gateway", "servers: [{hosts: [a/b/c], port: {number: 80, name: h, protocol: HTTP}}]", "spec.servers[0].hosts[0]"),
    ("Sidecar", "egress: [{hosts: [a.b]}]", "spec.egress[0].hosts[0]"),
    ("Sidecar", "egress: [{hosts: ['./*', '~shop/x.y']}]", None),
    ("Sidecar", "{}", "spec"),
    ("AuthorizationPolicy", "{}", None),
    ("AuthorizationPolicy", "action: DENY", "spec.rules"),
    ("AuthorizationPolicy", "action: CUSTOM\nrules: [{}]", "spec.provider"),
    ("AuthorizationPolicy", "rules: [null]", "spec.rules[0]"),
    ("AuthorizationPolicy", "rules: [{from: []}]", "spec.rules[0].from"),
    ("AuthorizationPolicy", "rules: [{from: [{source: {}}]}]", "spec.rules[0].from[0].source"),
    ("AuthorizationPolicy", "rules: [{from: [{source: {principals: ['']}}]}]", "spec.rules[0].from[0].source.principals[0]"),
    ("AuthorizationPolicy", "rules: [{from: [{source: {ipBlocks: [10.0.0.0/99]}}]}]", "spec.rules[0].from[0].source.ipBlocks[0]"),
    ("AuthorizationPolicy", "rules: [{from: [{source: {serviceAccounts: [a], namespaces: [b]}}]}]", "spec.rules[0].from[0].source.serviceAccounts"),
    ("AuthorizationPolicy", "rules: [{to: [{operation: {ports: [http]}}]}]", "spec.rules[0].to[0].operation.ports[0]"),
    ("AuthorizationPolicy", "rules: [{to: [{operation: {ports: [8080]}}]}]", "spec.rules[0].to[0].operation.ports[0]"),
    ("AuthorizationPolicy", "rules: [{to: [{operation: {ports: ['\u00b2']}}]}]", "spec.rules[0].to[0].operation.ports[0]"),
    ("AuthorizationPolicy", "rules: [{to: [{operation: {ports: ['0000000000099999']}}]}]", "spec.rules[0].to[0].operation.ports[0]"),
    ("AuthorizationPolicy", "rules: [{to: [{operation: {paths: ['/v1/{*}/*']}}]}]", "spec.rules[0].to[0].operation.paths[0]"),
    ("AuthorizationPolicy", "rules: [{to: [{operation: {paths: ['/{**}/{*}']}}]}]", "spec.rules[0].to[0].operation.paths[0]"),
    ("AuthorizationPolicy", "rules: [{to: [{operation: {paths: ['/v1/{*}/x', '/{**}/y']}}]}]", None),
    ("AuthorizationPolicy", "rules: [{when: [{key: request.header, values: [a]}]}]", "spec.rules[0].when[0].key"),
    ("AuthorizationPolicy", "rules: [{when: [{key: 'request.auth.claims[a][b]'}]}]", "spec.rules[0].when[0]"),
    ("AuthorizationPolicy", "selector: {matchLabels: {a: '*'}}", "spec.selector.matchLabels.a"),
    ("PeerAuthentication", "mtls: {mode: strict}", "spec.mtls.mode"),
    ("PeerAuthentication", "portLevelMtls: {8080: {mode: STRICT}}", "spec.portLevelMtls"),
    ("PeerAuthentication", "selector: {matchLabels: {a: b}}\nportLevelMtls: {http: {mode: STRICT}}", "spec.portLevelMtls.http"),
    ("PeerAuthentication", "selector: {matchLabels: {a: b}}\nportLevelMtls: {8080: {mode: STRICT}}", None),
    ("RequestAuthentication", "jwtRules: [{}]", "spec.jwtRules[0].issuer"),
    ("RequestAuthentication", "jwtRules: [{issuer: a, jwksUri: ftp://a}]", "spec.jwtRules[0].jwksUri"),
    ("RequestAuthentication", "jwtRules: [{issuer: a, jwks: '{}'}]", "spec.jwtRules[0].jwks"),
    ("Telemetry", "metrics: [{overrides: [{tagOverrides: {a: {operation: UPSERT}}}]}]", "spec.metrics[0].overrides[0].tagOverrides.a.value"),
    ("Telemetry", "accessLogging: [{filter: {expression: 'a ||'}}]", "spec.accessLogging[0].filter.expression"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "spec", "path"), SPECS)
def test_a_resource_is_refused_at_the_field_that_is_wrong(kind: str, spec: str, path: str | None) -> None:
    result = load(kind, spec)
    assert [error.path for error in errors(result)] == ([] if path is None else [path])
    assert len(result.resources) == (path is None)


WARNINGS = [
    (f"fault: {{abort: {{httpStatus: 500}}}}\n{TO}", "no-effect", ".fault.abort"),
    (f"mirrorPercent: 5\n{TO}", "deprecated", ".mirrorPercent"),
    (f"match: [{{headers: {{method: {{exact: GET}}}}}}]\n{TO}", "suspicious", ".match[0].headers.method"),
    (f"match: [{{uri: {{prefix: /a}}}}, {{uri: {{prefix: /ab}}}}]\n{TO}", "unreachable", ".match[1]"),
    ("directResponse: {status: 200, body: {string: " + "x" * 110_000 + "}}", "suspicious", ".directResponse.body"),
]


@pytest.mark.parametrize(("http", "code", "path"), WARNINGS)
def test_what_is_allowed_but_surely_not_meant_gets_a_warning(http: str, code: str, path: str) -> None:
    result = route(http)
    assert (code, f"spec.http[0]{path}") in [(warning.code, warning.path) for warning in result.warnings]
    assert len(result.resources) == 1


@pytest.mark.parametrize("path", ["/service/*health", "*a*", "/a/**"])
def test_a_star_that_is_taken_literally_gets_a_warning(path: str) -> None:
    result = load("AuthorizationPolicy", f"rules: [{{to: [{{operation: {{paths: ['{path}']}}}}]}}]")
    assert [warning.code for warning in result.warnings] == ["literal-star"]


@pytest.mark.parametrize("path", ["/info*", "*/info", "*", "/v1/{*}/x"])
def test_wildcards_and_templates_get_none(path: str) -> None:
    assert not load("AuthorizationPolicy", f"rules: [{{to: [{{operation: {{paths: ['{path}']}}}}]}}]").warnings


def test_addresses_that_callers_can_forge_get_a_warning() -> None:
    result = load("AuthorizationPolicy", "rules: [{from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]}]")
    assert [warning.code for warning in result.warnings] == ["forgeable"]


def test_an_outlier_rule_with_every_count_off_gets_a_warning() -> None:
    policy = "trafficPolicy: {outlierDetection: {consecutive5xxErrors: 0}}"
    assert [w.code for w in load("DestinationRule", f"host: a.b\n{policy}").warnings] == ["no-effect"]


@pytest.mark.parametrize(
    "pattern", [r"^/v1/\d+$", r"(?i)abc", r"\pN+", r"[[:alpha:]]+", r"\Qa.b(\E", r"(?P<x>a)\z", ""]
)
def test_re2_patterns_are_taken(pattern: str) -> None:
    assert regex_problem(pattern) == ""


@pytest.mark.parametrize("pattern", ["(", "[", "a**", "*", r"(a)\1", "(?!x)", "(?<=x)y", "a{2000}", "a++", "(?P=x)"])
def test_other_patterns_are_refused_with_a_reason(pattern: str) -> None:
    assert regex_problem(pattern)


@pytest.mark.parametrize("text", ["response.code >= 400", "a && b.contains(')')", "has(x['y'])", "true"])
def test_plausible_expressions_are_taken(text: str) -> None:
    assert expression_problem(text) == ""


@pytest.mark.parametrize("text", [")++++", "(a", "a ||", "'open", "", "[)"])
def test_expressions_that_cannot_be_one_are_refused(text: str) -> None:
    assert expression_problem(text)
