"""Delegation: the leaf's routes under the root's conditions."""

from __future__ import annotations

import pytest

from proxyless.controlplane.manifest.model import HeaderOperations, Headers, HTTPMatchRequest, HTTPRoute, StringMatch
from proxyless.controlplane.translate.delegates import conflict, merge_matches, merge_routes

from .helpers import routes_of, service, world


def prefix(text: str) -> HTTPMatchRequest:
    return HTTPMatchRequest(uri=StringMatch(prefix=text))


def test_a_leaf_match_must_be_part_of_one_of_the_roots() -> None:
    root, leaf = (prefix("/cart"), prefix("/pay")), (prefix("/cart/v2"),)
    assert merge_matches(root, leaf) == (prefix("/cart/v2"),)
    assert merge_matches(root, (prefix("/cart/v2"), prefix("/elsewhere"))) is None


def test_without_matches_on_one_side_those_of_the_other_hold() -> None:
    assert merge_matches((), (prefix("/a"),)) == (prefix("/a"),)
    assert merge_matches((prefix("/a"),), ()) == (prefix("/a"),)


@pytest.mark.parametrize(
    ("root", "leaf", "differs"),
    [
        (StringMatch(prefix="/a"), StringMatch(prefix="/a/b"), False),
        (StringMatch(prefix="/a"), StringMatch(exact="/a/b"), False),
        (StringMatch(prefix="/a/b"), StringMatch(prefix="/a"), True),
        (StringMatch(exact="/a"), StringMatch(exact="/a"), False),
        (StringMatch(exact="/a"), StringMatch(prefix="/a"), True),
        (StringMatch(regex="/a.*"), StringMatch(exact="/ab"), True),
        (StringMatch(prefix="/a"), StringMatch(regex="/a.*"), True),
        (None, StringMatch(regex="/a.*"), False),
    ],
)
def test_paths_of_the_leaf_lie_within_the_roots(root: StringMatch | None, leaf: StringMatch, differs: bool) -> None:
    assert conflict(HTTPMatchRequest(uri=root), HTTPMatchRequest(uri=leaf)) is differs


def test_a_leaf_cannot_be_for_more_gateways_than_the_root() -> None:
    root = HTTPMatchRequest(gateways=("public",))
    assert conflict(root, HTTPMatchRequest(gateways=("public", "mesh")))
    assert not conflict(root, HTTPMatchRequest(gateways=("public",)))


def test_what_the_root_sets_holds_and_headers_are_put_together() -> None:
    root = HTTPRoute(
        name="root",
        timeout=1.0,
        headers=Headers(request=HeaderOperations(set={"a": "root", "b": "root"}, remove=("x",))),
    )
    leaf = HTTPRoute(
        name="leaf",
        timeout=2.0,
        headers=Headers(request=HeaderOperations(set={"a": "leaf", "c": "leaf"}, remove=("y",))),
    )
    (merged,) = merge_routes(root, (leaf,))
    assert (merged.name, merged.timeout) == ("root-leaf", 1.0)
    assert merged.headers == Headers(
        request=HeaderOperations(set={"a": "root", "b": "root", "c": "leaf"}, remove=("y", "x"))
    )


ROOT = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: root, namespace: default}}
spec:
  hosts: [shop.example.com]
  http:
  - match: [{{uri: {{prefix: /cart}}}}]
    delegate: {{name: cart, namespace: shop}}
  - name: rest
    route: [{{destination: {{host: web}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: cart, namespace: shop}}
spec:
  {hosts}
  http: [{{name: leaf, route: [{{destination: {{host: cart}}}}]}}]
"""


@pytest.mark.parametrize(
    ("more", "names"),
    [
        ("exportTo: ['*']", ["leaf", "rest"]),
        ("exportTo: ['.']", ["rest"]),
        ("hosts: [other.example.com]", ["rest"]),
    ],
)
def test_a_delegate_has_no_hosts_and_is_exported_to_its_root(more: str, names: list[str]) -> None:
    of = world(service("web"), ROOT.format(hosts=more))
    routes = routes_of(of, "80", "shop.example.com")
    assert [route["name"] for route in routes] == names


def test_short_names_of_a_delegate_mean_its_own_namespace() -> None:
    of = world(service("web"), ROOT.format(hosts="exportTo: ['*']"))
    leaf, rest = routes_of(of, "80", "shop.example.com")
    assert leaf["route"]["cluster"] == "outbound|80||cart.shop.svc.cluster.local"
    assert rest["route"]["cluster"] == "outbound|80||web.default.svc.cluster.local"
