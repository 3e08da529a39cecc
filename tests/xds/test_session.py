"""The state-of-the-world session, message by message."""

from __future__ import annotations

from typing import Any

import pytest

from proxyless import protos
from proxyless.protos import CLUSTER, ENDPOINT, LISTENER, ROUTE
from proxyless.xds import session as session_module
from proxyless.xds.session import DOES_NOT_EXIST_AFTER, SotwSession
from proxyless.xds.store import Store
from tests.xds.helpers import BAD, DECODERS, assignment, cluster, listener, response, wrapped


class World:
    """A session with its store. Time stands still unless a test moves it."""

    def __init__(self) -> None:
        node = protos.message("envoy.config.core.v3.Node")(id="sidecar~10.0.0.1~web.default~default.svc.cluster.local")
        self.store = Store(DECODERS)
        self.session = SotwSession(node, self.store)
        self.now = 100.0

    def open(self) -> dict[str, Any]:
        return {request.type_url: request for request in self.session.open(self.now)}

    def receive(self, type_url: str, version: str, *resources: Any, nonce: str = "") -> list[Any]:
        return self.session.receive(response(type_url, version, *resources, nonce=nonce), self.now)

    def held(self, type_url: str) -> list[str]:
        return sorted(self.store.held(type_url))

    def mark(self, name: str) -> str:
        """Version mark of an accepted cluster."""
        return next(item.raw for item in self.store.dump() if item.name == name and item.type_url == CLUSTER).decode(
            "latin-1"
        )


@pytest.fixture
def world() -> World:
    made = World()
    made.open()
    return made


# ------------------------------------------------------------------------------------------------------- subscriptions


def test_first_requests_are_wildcards_for_clusters_and_listeners_and_only_the_first_has_the_node() -> None:
    requests = World().session.open(0.0)
    assert [request.type_url for request in requests] == [CLUSTER, LISTENER]
    assert all(not request.resource_names and not request.response_nonce for request in requests)
    assert [request.HasField("node") for request in requests] == [True, False]


def test_accepted_clusters_and_listeners_name_the_endpoints_and_routes_to_ask_for(world: World) -> None:
    ack, endpoints = world.receive(CLUSTER, "1", cluster("b"), cluster("a"), cluster("static", eds=False))
    assert (ack.type_url, ack.version_info, ack.response_nonce) == (CLUSTER, "1", "nonce-1")
    assert (endpoints.type_url, list(endpoints.resource_names)) == (ENDPOINT, ["a", "b"])
    assert (endpoints.version_info, endpoints.response_nonce) == ("", "")
    _, routes = world.receive(LISTENER, "1", listener("l", "80", "8080"), listener("m", "80"))
    assert (routes.type_url, list(routes.resource_names)) == (ROUTE, ["80", "8080"])


def test_a_changed_subscription_carries_the_latest_nonce_and_the_accepted_version(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a"))
    world.receive(ENDPOINT, "7", assignment("a", 1))
    _, endpoints = world.receive(CLUSTER, "2", cluster("a"), cluster("b"))
    assert (endpoints.version_info, endpoints.response_nonce) == ("7", "nonce-7")
    assert list(endpoints.resource_names) == ["a", "b"]


def test_giving_up_the_last_name_sends_an_empty_list(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a"))
    _, endpoints = world.receive(CLUSTER, "2")
    assert (endpoints.type_url, list(endpoints.resource_names)) == (ENDPOINT, [])


def test_no_request_without_a_change(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a"))
    assert len(world.receive(CLUSTER, "2", cluster("a", "new"))) == 1


# ----------------------------------------------------------------------------------------------------------- reconnect


def test_versions_survive_a_stream_and_nonces_do_not(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a"))
    world.receive(ENDPOINT, "2", assignment("a", 1))
    world.receive(LISTENER, "3", listener("l", "80"))
    requests = world.session.open(0.0)
    assert [request.type_url for request in requests] == [CLUSTER, ENDPOINT, LISTENER, ROUTE]
    assert [request.version_info for request in requests] == ["1", "2", "3", ""]
    assert all(not request.response_nonce for request in requests)
    assert [request.HasField("node") for request in requests] == [True, False, False, False]
    assert [list(request.resource_names) for request in requests] == [[], ["a"], [], ["80"]]


def test_an_outage_deletes_nothing(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a"))
    world.session.lost()
    assert world.held(CLUSTER) == ["a"]


# -------------------------------------------------------------------------------------------------------- ACK and NACK


def test_a_nack_names_every_refused_resource_and_keeps_the_accepted_version(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a"))
    nack = world.receive(CLUSTER, "2", cluster("a", BAD), cluster("b"), cluster("c", BAD))[0]
    assert (nack.version_info, nack.response_nonce, nack.error_detail.code) == ("1", "nonce-2", 3)
    assert "'a'" in nack.error_detail.message
    assert "'c'" in nack.error_detail.message
    assert "'b'" not in nack.error_detail.message
    assert "alt_stat_name: is bad" in nack.error_detail.message


def test_valid_neighbours_of_a_refused_resource_are_used_and_the_last_good_one_stays(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a", "good"), cluster("gone"))
    world.receive(CLUSTER, "2", cluster("a", BAD), cluster("b"))
    assert world.held(CLUSTER) == ["a", "b"]
    assert "good" in world.mark("a")


def test_the_next_good_response_is_acknowledged_again(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a", BAD))
    ack = world.receive(CLUSTER, "2", cluster("a"))[0]
    assert (ack.version_info, ack.HasField("error_detail")) == ("2", False)


def test_a_refused_resource_sent_again_is_refused_again_without_decoding(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a", BAD))
    decoded = world.store.decoded
    nack = world.receive(CLUSTER, "2", cluster("a", BAD))[0]
    assert "'a'" in nack.error_detail.message
    assert world.store.decoded == decoded


def test_going_back_to_the_good_bytes_ends_the_refusal(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a", "good"))
    world.receive(CLUSTER, "2", cluster("a", BAD))
    assert not world.receive(CLUSTER, "3", cluster("a", "good"))[0].HasField("error_detail")
    assert [item.error for item in world.store.dump()] == [""]


def test_the_same_name_twice_is_refused(world: World) -> None:
    nack = world.receive(CLUSTER, "1", cluster("a", "x"), cluster("a", "y"), cluster("b"))[0]
    assert "'a'" in nack.error_detail.message
    assert "twice" in nack.error_detail.message
    assert world.held(CLUSTER) == ["b"]


def test_a_duplicate_does_not_delete_the_last_good_one(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a", "good"))
    world.receive(CLUSTER, "2", cluster("a", "x"), cluster("a", "y"))
    assert "good" in world.mark("a")


def test_a_resource_of_another_type_is_refused(world: World) -> None:
    nack = world.receive(CLUSTER, "1", listener("l"), cluster("a"))[0]
    assert "unexpected type" in nack.error_detail.message
    assert "resources[0]" in nack.error_detail.message
    assert world.held(CLUSTER) == ["a"]


def test_bytes_that_do_not_parse_are_refused_and_delete_nothing(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a"), cluster("b"))
    broken = protos.message("google.protobuf.Any")(type_url=CLUSTER, value=b"\xff\xff")
    nack = world.receive(CLUSTER, "2", broken, cluster("a"))[0]
    assert "resources[0]" in nack.error_detail.message
    assert world.held(CLUSTER) == ["a", "b"]  # the broken one may have been b


def test_a_resource_without_a_name_is_refused(world: World) -> None:
    assert "has no name" in world.receive(CLUSTER, "1", cluster(""))[0].error_detail.message


def test_names_and_numbers_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "characters" in world.receive(CLUSTER, "1", cluster("x" * 10_000))[0].error_detail.message
    monkeypatch.setattr(session_module, "MAX_RESOURCES", 2)
    world.receive(CLUSTER, "2", cluster("a"))
    nack = world.receive(CLUSTER, "3", cluster("b"), cluster("c"), cluster("d"))[0]
    assert "3 resources" in nack.error_detail.message
    assert world.held(CLUSTER) == ["a"]


def test_a_decoder_that_fails_refuses_one_resource(world: World) -> None:
    def explode(raw: bytes) -> Any:
        raise RuntimeError("bug")

    world.store._decoders = {**DECODERS, CLUSTER: explode}
    assert "RuntimeError" in world.receive(CLUSTER, "1", cluster("a"))[0].error_detail.message


# ------------------------------------------------------------------------------------------------- complete or partial


@pytest.mark.parametrize("type_url", [CLUSTER, LISTENER])
def test_what_a_complete_response_leaves_out_is_deleted(world: World, type_url: str) -> None:
    make = cluster if type_url == CLUSTER else listener
    world.receive(type_url, "1", make("a"), make("b"))
    world.receive(type_url, "2", make("b"))
    assert world.held(type_url) == ["b"]
    world.receive(type_url, "3")
    assert world.held(type_url) == []


def test_what_a_partial_response_leaves_out_stays(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a"), cluster("b"))
    world.receive(ENDPOINT, "1", assignment("a", 1), assignment("b", 2))
    world.receive(ENDPOINT, "2", assignment("a", 3))
    world.receive(ENDPOINT, "3")
    assert world.held(ENDPOINT) == ["a", "b"]


def test_what_was_not_subscribed_is_ignored_even_if_invalid(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a"))
    ack = world.receive(ENDPOINT, "1", assignment("a", 1), assignment("x", 1), assignment("y", 0))[0]
    assert not ack.HasField("error_detail")
    assert world.held(ENDPOINT) == ["a"]


def test_a_type_that_was_not_asked_for_is_not_answered(world: World) -> None:
    assert world.receive(ENDPOINT, "1", assignment("a", 1)) == []
    assert world.receive(protos.SECRET, "1") == []
    assert world.session.stats.ignored == 2


def test_byte_equal_redelivery_is_no_change_and_is_not_decoded(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a", eds=False))
    world.receive(LISTENER, "1")
    assert world.store.take() is not None
    decoded = world.store.decoded
    ack = world.receive(CLUSTER, "2", cluster("a", eds=False))[0]
    assert ack.version_info == "2"
    assert world.store.decoded == decoded
    assert world.store.take() is None


# ------------------------------------------------------------------------------------------------------------ wrappers


def test_a_wrapped_resource_is_unwrapped(world: World) -> None:
    assert not world.receive(CLUSTER, "1", wrapped("a", cluster("a")))[0].HasField("error_detail")
    assert world.held(CLUSTER) == ["a"]


def test_the_name_on_the_wrapper_names_a_body_that_does_not_parse(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a"), cluster("b"))
    broken = protos.message("envoy.service.discovery.v3.Resource")(name="a")
    broken.resource.type_url, broken.resource.value = CLUSTER, b"\xff"
    nack = world.receive(CLUSTER, "2", protos.pack(broken))[0]
    assert "'a'" in nack.error_detail.message
    assert world.held(CLUSTER) == ["a"]


def test_a_heartbeat_keeps_the_resource(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a"))
    world.receive(CLUSTER, "1", wrapped("a", None))
    assert world.held(CLUSTER) == ["a"]


# ------------------------------------------------------------------------------------------------ given up, taken again


def test_a_name_given_up_and_taken_again_is_still_up_to_date(world: World) -> None:
    """The server ignores both changes when their nonce is stale, and so never sends the resource again."""
    world.receive(CLUSTER, "1", cluster("a"), cluster("b"))
    world.receive(ENDPOINT, "1", assignment("a", 1), assignment("b", 1))
    world.receive(CLUSTER, "2", cluster("a"))
    world.receive(ENDPOINT, "2", assignment("b", 2))  # was on its way
    _, endpoints = world.receive(CLUSTER, "3", cluster("a"), cluster("b"))
    assert list(endpoints.resource_names) == ["a", "b"]
    world.receive(LISTENER, "1")
    resources = world.store.take()
    assert resources is not None
    assert resources.assignments["b"].localities[0].endpoints[0].address.port == 2


def test_what_is_given_up_is_not_published_and_ends_with_the_stream(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a"), cluster("b"))
    world.receive(ENDPOINT, "1", assignment("a", 1), assignment("b", 1))
    world.receive(CLUSTER, "2", cluster("a"))
    world.receive(LISTENER, "1")
    resources = world.store.take()
    assert resources is not None
    assert list(resources.assignments) == ["a"]
    world.session.lost()
    assert world.held(ENDPOINT) == ["a"]


def test_what_is_given_up_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MAX_RETIRED", 2)
    names = ["a", "b", "c", "d"]
    world.receive(CLUSTER, "1", *map(cluster, names))
    world.receive(ENDPOINT, "1", *(assignment(name, 1) for name in names))
    world.receive(CLUSTER, "2")
    assert len(world.held(ENDPOINT)) == 2


# ------------------------------------------------------------------------------------------------------- does not exist


def test_a_name_that_is_not_sent_in_time_does_not_exist(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a"))
    world.receive(LISTENER, "1")
    assert world.session.next_deadline() == world.now + DOES_NOT_EXIST_AFTER
    assert world.session.waiting() == [(ENDPOINT, "a")]
    assert not world.session.expire(world.now + DOES_NOT_EXIST_AFTER - 0.1)
    assert world.store.take() is None
    assert world.session.expire(world.now + DOES_NOT_EXIST_AFTER)
    resources = world.store.take()
    assert resources is not None
    assert not resources.assignments
    assert world.session.next_deadline() is None


def test_the_wait_ends_with_an_answer_good_or_bad(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a"), cluster("b"))
    world.receive(ENDPOINT, "1", assignment("a", 1), assignment("b", 0))
    assert world.session.next_deadline() is None


def test_an_outage_stops_the_clock_and_a_new_stream_starts_it_anew(world: World) -> None:
    world.receive(CLUSTER, "1", cluster("a"))
    world.session.lost()
    assert world.session.next_deadline() is None
    world.now += 60
    world.open()
    assert world.session.next_deadline() == world.now + DOES_NOT_EXIST_AFTER
