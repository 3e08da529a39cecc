"""Draws VirtualServices and requests at random, from small vocabularies so that they meet."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import httpx

Tree = dict[str, Any]

SEGMENTS = [
    *("a", "b", "A", "ab", "a.b", "1", "x;y", "+", "~", "*", "", "", "é", "%61", "%7e", "a%2Fb", "a%2fb", "%20", "%25"),
    *("%2e", "%2f%2E%2e", "..%2f", "%5c", "%3F", "%23", "caf%C3%A9", "caf%c3%a9", "%E9"),
]
PATH_REGEXES = [
    *("/a/.*", "/[ab]+", "/a(/b)?", "(?i)/A/.*", r"/\d+", ".*b", "/a|/b", "[^/]*", "/.*", "/(a|b)/(.*)", r"/\w+"),
    *(r"/a\.b", "/[^/]+/?", "/a.b", "(/a)*", ".*%2F.*", "/.{2}", r"\/a", "/x;.*"),
]
VALUES = ["", "one", "two", "One", "1", "12", "a,b", "x y", "100%", "tw", "ones", "é", "\xe9", "a%2Fb"]
VALUE_REGEXES = [
    *("one", "o.*", r"\d+", "(?i)ONE", ".*", "[a-z]+", "one|two", "^one$", "t.o", "*", "a,b", ".+", "[^,]*"),
    *(r"\S+ \S+", "..", "é"),
]
NAMES = ["x-a", "x-b", "X-C", "accept", "user-agent", "cookie"]
PARAMETERS = ["q", "r", "Q", "a.b", "a%2Fb", "q[]"]
WRITTEN = ["1", "100%%", "x y", "a,b", "é"]
METHODS = ["GET", "GET", "GET", "GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "get"]
SUBSTITUTIONS = [
    ("/a", "/Z"),
    ("^/([^/]*)/(.*)$", r"/\2/\1"),
    (".*", "/all"),
    ("/", "-"),
    ("(?i)A", r"\0\0"),
    ("$", "/end"),
    ("x*", "Y"),
    ("|a", "-"),
    ("%..", "_"),
]


def host_of(number: int) -> str:
    """A host that is no service. (A name without a dot would be one of the namespace.)"""
    return f"h{number}.test"


class Rules:
    """VirtualServices for `host_of(0)`, `host_of(1)`, ...; each fifth also for a wildcard."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def likely(self, share: float) -> bool:
        return self.rng.random() < share

    def one(self, *of: Any) -> Any:
        return self.rng.choice(of)

    def some(self, of: list[str], most: int = 2) -> list[str]:
        return self.rng.sample(of, self.rng.randrange(1, most + 1))

    def path(self, most: int = 3) -> str:
        return "/" + "/".join(self.rng.choices(SEGMENTS, k=self.rng.randrange(most + 1)))

    def virtual_service(self, number: int) -> Tree:
        hosts = [host_of(number), *([f"*.h{number}.example.com"] if number % 5 == 0 else [])]
        routes = [self.route() for _ in range(self.rng.randrange(1, 6))]
        if self.likely(0.6):
            routes.append({"route": [{"destination": {"host": "shop", "subset": "v1"}}]})
        return {
            "apiVersion": "networking.istio.io/v1",
            "kind": "VirtualService",
            "metadata": {"name": f"h{number}", "namespace": "default"},
            "spec": {"hosts": hosts, "http": routes},
        }

    def route(self) -> Tree:
        route: Tree = {}
        if self.likely(0.95):
            route["match"] = [self.match() for _ in range(self.one(1, 1, 2))]
        if self.likely(0.3):
            route["headers"] = self.headers()
        kind = self.rng.random()
        if kind < 0.15:
            route["redirect"] = self.redirect(route)
        elif kind < 0.25:
            route["directResponse"] = self.direct_response()
        else:
            self.forward(route)
        return route

    def match(self) -> Tree:
        match: Tree = {}
        if self.likely(0.8):
            kind = self.one("exact", "prefix", "prefix", "regex")
            match["uri"] = {kind: self.one(*PATH_REGEXES) if kind == "regex" else self.path()}
            match["ignoreUriCase"] = self.likely(0.2)
        for key, share, names in (
            ("headers", 0.3, NAMES),
            ("withoutHeaders", 0.2, NAMES),
            ("queryParams", 0.25, PARAMETERS),
        ):
            if self.likely(share):
                match[key] = {name: self.text() for name in self.some(names)}
        if self.likely(0.15):
            match["method"] = self.one({"exact": "GET"}, {"regex": "GET|POST"}, {"prefix": "P"}, {"exact": "get"})
        if self.likely(0.1):
            match["authority"] = self.one({"prefix": "h"}, {"regex": r"h\d+.test(:\d+)?"}, {"regex": "H.*"})
        if self.likely(0.05):
            match["scheme"] = self.one({"exact": "http"}, {"exact": "https"})
        return match

    def text(self) -> Tree:
        kind = self.one("exact", "prefix", "regex", "")
        if not kind:
            return {}
        if kind == "regex":
            return {kind: self.one(*VALUE_REGEXES)}
        return {kind: self.one(*(value for value in VALUES if value or kind == "exact"))}

    def headers(self) -> Tree:
        return {side: self.operations() for side in ("request", "response") if self.likely(0.6)}

    def operations(self) -> Tree:
        names = ["x-a", "x-b", "x-new", "x-z", "accept", "X-Up"]
        made: Tree = {key: {name: self.one(*WRITTEN) for name in self.some(names)} for key in ("set", "add")}
        return {**made, "remove": self.some([*names, "user-agent"], 1)} if self.likely(0.5) else made

    def redirect(self, route: Tree) -> Tree:
        redirect: Tree = {}
        if self.likely(0.6):
            redirect["authority"] = "other.example.com"
        if self.likely(0.4):
            redirect["uri"] = self.one("/there", "/there?x=1", "there", "/th%20ere", "/")
        elif all("prefix" in match.get("uri", {}) for match in route.get("match", [{}])):
            redirect["prefixRewrite"] = self.one("/new", "/", "/new/", "/n?x=1")
        if self.likely(0.3) or not redirect:
            redirect["scheme"] = self.one("http", "https")
        if self.likely(0.3):
            redirect["port"] = self.one(80, 443, 8443)
        elif self.likely(0.3):
            redirect["derivePort"] = self.one("FROM_PROTOCOL_DEFAULT", "FROM_REQUEST_PORT")
        if self.likely(0.5):
            redirect["redirectCode"] = self.one(301, 302, 303, 307, 308)
        return redirect

    def direct_response(self) -> Tree:
        status = self.one(200, 201, 204, 301, 304, 403, 404, 418, 500)
        if status in (204, 304) or self.likely(0.4):  # Envoy would send a body all the same
            return {"status": status}
        return {"status": status, "body": {"string": self.one("hi", "", "%PROTOCOL%", "é")}}

    def forward(self, route: Tree) -> None:
        subsets = self.one(["v1"], ["v2"], ["v1", "v2"], ["v2", "v1"], ["v3"], ["v9"])
        targets = route["route"] = [{"destination": {"host": "shop", "subset": subset}} for subset in subsets]
        if len(targets) == 2:
            targets[0]["weight"], targets[1]["weight"] = 100, 0
        for target in targets:
            if self.likely(0.3):
                target["headers"] = self.headers()
        if self.likely(0.5):
            route["rewrite"] = self.rewrite()
        elif self.likely(0.1):
            targets[0].setdefault("headers", {}).setdefault("request", {}).setdefault("set", {})["Host"] = "set.test"
        if self.likely(0.1):
            route["timeout"] = self.one("5s", "1500ms")
        if self.likely(0.1):
            route["retries"] = {"attempts": 2, "perTryTimeout": self.one("1s", "9s")}
        if self.likely(0.1):
            route["fault"] = {"abort": {"httpStatus": self.one(200, 400, 503, 555), "percentage": {"value": 100}}}

    def rewrite(self) -> Tree:
        rewrite: Tree = {}
        if self.likely(0.5):
            rewrite["uri"] = self.one("/", "/new", "/new/", "/n%20", "/n?z=1", "/a")
        elif self.likely(0.6):
            pattern, substitution = self.one(*SUBSTITUTIONS)
            rewrite["uriRegexRewrite"] = {"match": pattern, "rewrite": substitution}
        if self.likely(0.4) or not rewrite:
            rewrite["authority"] = self.one("w.example.com", "w.example.com:81", host_of(1))
        return rewrite


@dataclass
class Drawn:
    """One request, as both sides send it."""

    method: str
    host: str
    target: str
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""

    def send(self, client: httpx.Client, base: str) -> httpx.Response:
        headers = [("host", self.host), *self.headers]
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        return client.request(self.method, f"{base}{self.target}", headers=raw, content=self.body)


def draw_request(rng: random.Random, hosts: int) -> Drawn:
    """For one of the hosts that `Rules` has rules about, or almost."""
    rules, number = Rules(rng), rng.randrange(hosts)
    host = host_of(number)
    if rng.random() < 0.3:
        host = rng.choice([host.upper(), f"{host}:80", f"{host}:81", f"a.h{number}.example.com", f"{host}."])
    headers = [
        (name, rng.choice(VALUES))
        for name in ("x-a", "x-b", "x-c", "cookie", "x-z")
        for _ in range(rng.choice([0, 0, 1, 1, 2]))
    ]
    method = rng.choice(METHODS)
    body = b"body" if method in ("POST", "PUT") else b""
    return Drawn(method, host, rules.path() + query(rng), headers, body)


def query(rng: random.Random) -> str:
    if rng.random() < 0.4:
        return ""
    values = ["", "=", "=one", "=two", "=One", "=1", "=12", "=%31", "=a%2Fb", "=x+y", "==", "=a,b", "=%", "=é"]
    pairs = (rng.choice([*PARAMETERS, "z"]) + rng.choice(values) for _ in range(rng.randrange(1, 3)))
    return "?" + "&".join(pairs)
