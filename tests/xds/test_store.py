"""What is accepted, what it refers to, and when the whole may be published."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from proxyless import protos
from proxyless.core.request import Peer, Request
from proxyless.core.resources import HttpConnectionManager
from proxyless.core.snapshot import Resources
from proxyless.protos import CLUSTER, ENDPOINT, LISTENER, ROUTE
from proxyless.xds.store import BREATHE_EVERY, Store, deny_all_listener
from tests.xds.helpers import BAD, DECODERS, UNKNOWN, assignment, cluster, listener, route


def apply(store: Store, type_url: str, *messages: Any, version: str = "1", removed: tuple[str, ...] = ()) -> Any:
    resources = {
        getattr(message, "cluster_name", "") or message.name: message.SerializeToString() for message in messages
    }
    return store.apply(type_url, version, resources, removed, {})


def taken(store: Store) -> Resources:
    resources = store.take()
    assert resources is not None
    return resources


# ---------------------------------------------------------------------------------------------------------- publication


def test_nothing_is_published_before_clusters_and_listeners_were_received() -> None:
    store = Store(DECODERS)
    assert store.take() is None
    assert store.missing() == [(CLUSTER, ""), (LISTENER, "")]
    apply(store, CLUSTER)
    assert store.take() is None
    apply(store, LISTENER)
    assert taken(store).clusters == {}


def test_a_whole_waits_for_every_route_configuration_and_load_assignment_it_refers_to() -> None:
    store = Store(DECODERS)
    apply(store, CLUSTER, cluster("a"))
    apply(store, LISTENER, listener("l", "80"))
    assert store.take() is None
    apply(store, ENDPOINT, assignment("a", 1))
    assert store.take() is None
    assert store.missing() == [(ROUTE, "80")]
    apply(store, ROUTE, route("80"))
    resources = taken(store)
    assert (list(resources.routes), list(resources.assignments)) == (["80"], ["a"])
    assert store.missing() == []


def test_a_published_whole_stays_until_a_new_cluster_has_its_endpoints() -> None:
    store = Store(DECODERS)
    apply(store, CLUSTER, cluster("a", eds=False))
    apply(store, LISTENER)
    taken(store)
    apply(store, CLUSTER, cluster("b"))
    assert store.take() is None
    apply(store, ENDPOINT, assignment("b", 1))
    assert list(taken(store).clusters) == ["a", "b"]


def test_a_refused_or_absent_reference_is_an_answer() -> None:
    store = Store(DECODERS)
    apply(store, CLUSTER, cluster("a"), cluster("b"))
    apply(store, LISTENER)
    apply(store, ENDPOINT, assignment("a", 0))
    assert store.take() is None
    store.mark_absent(ENDPOINT, ["b"])
    assert taken(store).assignments == {}


def test_the_same_whole_is_not_published_twice() -> None:
    store = Store(DECODERS)
    apply(store, CLUSTER, cluster("a", eds=False))
    apply(store, LISTENER)
    taken(store)
    apply(store, CLUSTER, cluster("a", eds=False), version="2")
    assert store.take() is None


def test_what_did_not_change_is_the_same_object_in_the_next_whole() -> None:
    store = Store(DECODERS)
    apply(store, CLUSTER, cluster("a"), cluster("b"))
    apply(store, LISTENER, listener("l", "80"))
    apply(store, ENDPOINT, assignment("a", 1), assignment("b", 1))
    apply(store, ROUTE, route("80"))
    first = taken(store)
    apply(store, ENDPOINT, assignment("a", 2))
    second = taken(store)
    assert second.clusters is first.clusters
    assert second.routes is first.routes
    assert second.assignments["b"] is first.assignments["b"]
    assert second.assignments["a"] is not first.assignments["a"]
    assert first.assignments["a"].localities[0].endpoints[0].address.port == 1  # published values never change


def test_what_nobody_refers_to_any_more_is_left_out() -> None:
    store = Store(DECODERS)
    apply(store, CLUSTER)
    apply(store, LISTENER, listener("l", "80"), listener("m", "90"))
    apply(store, ROUTE, route("80"), route("90"))
    assert sorted(taken(store).routes) == ["80", "90"]
    apply(store, LISTENER, removed=("m",))
    assert list(taken(store).routes) == ["80"]


# ------------------------------------------------------------------------------------------------------------ last good


def test_a_refused_update_keeps_the_last_good_value_and_shows_both() -> None:
    store = Store(DECODERS)
    apply(store, CLUSTER, cluster("a", "good", eds=False))
    apply(store, LISTENER)
    refused = apply(store, CLUSTER, cluster("a", BAD, eds=False), version="2")
    assert "alt_stat_name" in refused["a"]
    assert taken(store).clusters["a"].subset == "good"
    (shown,) = store.dump()
    assert (shown.version, shown.name, shown.type_url) == ("1", "a", CLUSTER)
    assert "is bad" in shown.error


def test_a_refusal_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    store = Store(DECODERS)
    with caplog.at_level(logging.ERROR):
        for version in "123":
            apply(store, CLUSTER, cluster("a", BAD), version=version)
    assert len(caplog.messages) == 1
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        for version in "456":
            store.apply(CLUSTER, version, {}, (), {"a": "occurs twice in one response"})
    assert len(caplog.messages) == 1


def test_a_refused_cluster_that_is_gone_from_the_next_response_is_forgotten() -> None:
    store = Store(DECODERS)
    apply(store, CLUSTER, cluster("a", BAD))
    apply(store, CLUSTER, cluster("b"), version="2")
    assert [item.name for item in store.dump()] == ["b"]


# ----------------------------------------------------------------------------------------------------- security policy


def inbound_status(resources: Resources, name: str) -> bool:
    """Whether the listener `name` admits an anonymous GET."""
    for chain in resources.listeners[name].filter_chains:
        assert isinstance(chain.filter, HttpConnectionManager)
        for _, rbac in chain.filter.rbac:
            if not rbac.evaluate(Request("GET", "/", (), authority="x"), Peer()).allowed:
                return False
    return True


def test_a_first_inbound_listener_that_cannot_be_understood_denies(caplog: pytest.LogCaptureFixture) -> None:
    store = Store(DECODERS)
    apply(store, CLUSTER)
    with caplog.at_level(logging.CRITICAL):
        apply(store, LISTENER, listener("virtualInbound", mark=BAD, inbound=True), listener("out", mark=BAD))
    resources = taken(store)
    assert list(resources.listeners) == ["virtualInbound"]
    assert not inbound_status(resources, "virtualInbound")
    assert "ALL INBOUND REQUESTS ARE DENIED" in caplog.text


def test_an_inbound_listener_with_a_good_predecessor_keeps_that_one() -> None:
    store = Store(DECODERS)
    apply(store, CLUSTER)
    apply(store, LISTENER, listener("virtualInbound", inbound=True))
    first = taken(store)
    apply(store, LISTENER, listener("virtualInbound", mark=BAD, inbound=True), version="2")
    assert taken(store).listeners["virtualInbound"] is first.listeners["virtualInbound"]


def test_a_good_inbound_listener_ends_the_denial_and_a_deleted_one_too() -> None:
    store = Store(DECODERS)
    apply(store, CLUSTER)
    apply(store, LISTENER, listener("virtualInbound", mark=BAD, inbound=True))
    taken(store)
    apply(store, LISTENER, listener("virtualInbound", inbound=True), version="2")
    assert taken(store).listeners["virtualInbound"].filter_chains == ()
    apply(store, LISTENER, removed=("virtualInbound",), version="3")
    assert taken(store).listeners == {}


def test_a_listener_that_cannot_even_be_read_counts_as_inbound_until_there_is_a_good_one() -> None:
    store = Store(DECODERS)
    apply(store, CLUSTER)
    store.apply(LISTENER, "1", {}, (), {"resources[0]": "not a valid Listener"})
    assert not inbound_status(taken(store), "virtualInbound")
    store.apply(
        LISTENER,
        "2",
        {"in": listener("in", inbound=True).SerializeToString()},
        (),
        {"resources[1]": "not a valid Listener"},
    )
    assert list(taken(store).listeners) == ["in"]


def test_the_denying_listener_answers_plain_text_and_tls() -> None:
    chains = deny_all_listener("x").filter_chains
    assert [(chain.match.transport_protocol, chain.tls is not None) for chain in chains] == [
        ("tls", True),
        ("raw_buffer", False),
    ]


# --------------------------------------------------------------------------------------------------------------- reports


def test_fields_that_are_not_acted_on_are_counted_and_logged_at_first_sight(caplog: pytest.LogCaptureFixture) -> None:
    store = Store(DECODERS)
    with caplog.at_level(logging.WARNING):
        apply(store, CLUSTER, cluster("a", UNKNOWN), cluster("b", UNKNOWN))
    assert caplog.messages == ["Cluster 'a' sets fields that are not acted on: Cluster.alt_stat_name"]
    assert store.unsupported() == {"Cluster.alt_stat_name": 2}
    apply(store, CLUSTER, cluster("a"), version="2")
    assert store.unsupported() == {"Cluster.alt_stat_name": 1}


def test_a_large_update_lets_others_run() -> None:
    turns: list[None] = []
    store = Store(DECODERS, breathe=lambda: turns.append(None))
    apply(store, CLUSTER, *(cluster(f"c{number}") for number in range(BREATHE_EVERY * 10)))
    assert len(turns) == 10


def test_a_decoded_name_must_be_the_name_it_was_sent_under() -> None:
    store = Store(DECODERS)
    refused = store.apply(CLUSTER, "1", {"a": cluster("b").SerializeToString()}, (), {})
    assert "decoded as 'b'" in refused["a"]


def test_only_the_known_types_have_a_decoder_by_default() -> None:
    assert set(Store()._decoders) == {CLUSTER, ENDPOINT, LISTENER, ROUTE}
    assert protos.SECRET not in Store()._decoders
