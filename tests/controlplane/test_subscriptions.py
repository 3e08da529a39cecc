"""State-of-the-world xDS as istiod speaks it to a sidecar, without a network."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyless.controlplane import subscriptions
from proxyless.controlplane.subscriptions import Answer, ClientState, Request, View
from proxyless.protos import CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET


def view(number: int = 1, **resources: dict[str, str]) -> View:
    types = {"cds": CLUSTER, "eds": ENDPOINT, "lds": LISTENER, "rds": ROUTE}
    encoded = {
        types[kind]: {name: value.encode() for name, value in entries.items()} for kind, entries in resources.items()
    }
    return View(f"v{number}", encoded, lambda type_url, name: f"nothing called {name}".encode())


def client() -> ClientState:
    numbers = itertools.count(1)
    return ClientState(lambda version: f"{version}-{next(numbers)}")


def ask(state: ClientState, of: View, type_url: str, *names: str, answering: Answer | None = None) -> list[Answer]:
    answers, _ = state.on_request(
        Request(type_url=type_url, names=names, nonce=answering.nonce if answering else ""), of
    )
    return answers


def contents(answers: list[Answer]) -> list[tuple[str, list[str]]]:
    return [(answer.type_url, [resource.decode() for resource in answer.resources]) for answer in answers]


BASE = {
    "cds": {"a": "A", "b": "B"},
    "eds": {"a": "ea", "b": "eb"},
    "lds": {"l": "L"},
    "rds": {"80": "R80", "90": "R90"},
}


@pytest.mark.parametrize("names", [(), ("*",), ("a",), ("unknown",)])
def test_clusters_and_listeners_are_always_everything(names: tuple[str, ...]) -> None:
    assert contents(ask(client(), view(**BASE), CLUSTER, *names)) == [(CLUSTER, ["A", "B"])]


def test_an_empty_set_of_clusters_is_answered() -> None:
    assert contents(ask(client(), view(), CLUSTER)) == [(CLUSTER, [])]


def test_names_that_do_not_exist_are_answered_with_an_empty_resource() -> None:
    answers = ask(client(), view(**BASE), ENDPOINT, "a", "ghost")
    assert contents(answers) == [(ENDPOINT, ["ea", "nothing called ghost"])]


@pytest.mark.parametrize("type_url", [ENDPOINT, ROUTE])
def test_an_empty_list_of_names_gets_no_answer(type_url: str) -> None:
    assert ask(client(), view(**BASE), type_url) == []


def test_a_type_that_is_not_served_is_answered_empty_and_the_stream_lives() -> None:
    state = client()
    assert contents(ask(state, view(**BASE), SECRET, "default")) == [(SECRET, [])]
    assert contents(ask(state, view(**BASE), LISTENER)) == [(LISTENER, ["L"])]


def test_an_acknowledgement_gets_no_answer() -> None:
    state = client()
    (first,) = ask(state, view(**BASE), CLUSTER)
    assert ask(state, view(**BASE), CLUSTER, answering=first) == []


def test_a_list_that_grows_is_answered_with_the_new_names_only() -> None:
    state = client()
    (first,) = ask(state, view(**BASE), ENDPOINT, "a")
    assert contents(ask(state, view(**BASE), ENDPOINT, "a", "b", answering=first)) == [(ENDPOINT, ["eb"])]


def test_a_list_that_shrinks_gets_no_answer_and_the_name_is_sent_again_when_asked_for_again() -> None:
    state = client()
    (first,) = ask(state, view(**BASE), ENDPOINT, "a", "b")
    assert ask(state, view(**BASE), ENDPOINT, "a", answering=first) == []
    assert contents(ask(state, view(**BASE), ENDPOINT, "a", "b", answering=first)) == [(ENDPOINT, ["eb"])]


def test_a_request_with_a_stale_nonce_changes_nothing() -> None:
    state = client()
    (old,) = ask(state, view(**BASE), ENDPOINT, "a")
    ask(state, view(**BASE), ENDPOINT, "a", "b", answering=old)
    assert ask(state, view(**BASE), ENDPOINT, answering=old) == []
    changed = view(2, **{**BASE, "eds": {"a": "ea", "b": "new"}})
    assert contents(state.on_view(changed)) == [(ENDPOINT, ["new"])]


def test_a_first_request_with_a_nonce_of_an_earlier_stream_is_answered_in_full() -> None:
    request = Request(type_url=CLUSTER, nonce="from another stream", version="old")
    answers, nack = client().on_request(request, view(**BASE))
    assert contents(answers) == [(CLUSTER, ["A", "B"])]
    assert nack is None


def test_a_request_without_nonce_on_a_running_stream_is_answered_in_full() -> None:
    state = client()
    ask(state, view(**BASE), ENDPOINT, "a")
    assert contents(ask(state, view(**BASE), ENDPOINT, "a")) == [(ENDPOINT, ["ea"])]


def test_nothing_is_pushed_when_nothing_changed() -> None:
    state = client()
    for type_url in (CLUSTER, LISTENER):
        ask(state, view(**BASE), type_url)
    ask(state, view(**BASE), ENDPOINT, "a")
    assert state.on_view(view(2, **BASE)) == []


def test_only_the_type_that_changed_is_pushed_and_of_endpoints_only_those_that_did() -> None:
    state = client()
    ask(state, view(**BASE), CLUSTER)
    ask(state, view(**BASE), ENDPOINT, "a", "b")
    pushed = state.on_view(view(2, **{**BASE, "eds": {"a": "ea", "b": "new"}}))
    assert contents(pushed) == [(ENDPOINT, ["new"])]


def test_a_changed_cluster_is_followed_by_its_endpoints_although_they_did_not_change() -> None:
    """Envoy keeps a changed cluster waiting until its endpoints come again."""
    state = client()
    ask(state, view(**BASE), CLUSTER)
    ask(state, view(**BASE), ENDPOINT, "a")
    pushed = state.on_view(view(2, **{**BASE, "cds": {"a": "changed", "b": "B"}}))
    assert contents(pushed) == [(CLUSTER, ["changed", "B"]), (ENDPOINT, ["ea"])]


def test_pushes_are_ordered_clusters_endpoints_listeners_routes() -> None:
    state = client()
    for type_url, names in ((ROUTE, ("80",)), (LISTENER, ()), (ENDPOINT, ("a",)), (CLUSTER, ())):
        ask(state, view(**BASE), type_url, *names)
    changed = view(2, cds={"a": "2"}, eds={"a": "2"}, lds={"l": "2"}, rds={"80": "2"})
    assert [answer.type_url for answer in state.on_view(changed)][:4] == [CLUSTER, ENDPOINT, LISTENER, ROUTE]


def test_a_removed_cluster_goes_after_the_routes_have_changed() -> None:
    state = client()
    ask(state, view(**BASE), CLUSTER)
    ask(state, view(**BASE), ROUTE, "80")
    pushed = state.on_view(view(2, cds={"a": "A"}, rds={"80": "without b"}))
    assert contents(pushed) == [(ROUTE, ["without b"]), (CLUSTER, ["A"])]


def test_endpoints_asked_before_clusters_come_a_second_time_after_them() -> None:
    state = client()
    ask(state, view(**BASE), ENDPOINT, "a")
    assert contents(ask(state, view(**BASE), CLUSTER)) == [(CLUSTER, ["A", "B"]), (ENDPOINT, ["ea"])]


def resume(state: ClientState, of: View, *names: str) -> list[Answer]:
    answers, _ = state.on_request(Request(type_url=ENDPOINT, names=names, version="of an earlier stream"), of)
    return answers


def test_who_comes_back_right_after_a_restart_keeps_its_endpoints_until_there_are_new_ones() -> None:
    state, none = client(), view(eds={"b": "eb"})
    assert contents(resume(state, replace(none, settling=True), "a", "b")) == [(ENDPOINT, ["eb"])]
    assert state.on_view(replace(none, settling=True)) == []
    back = view(2, eds={"a": "ea", "b": "eb"})
    assert contents(state.on_view(replace(back, settling=True))) == [(ENDPOINT, ["ea"])]
    assert contents(state.on_view(replace(none, settling=True))) == [(ENDPOINT, ["nothing called a"])]


def test_after_that_time_a_service_without_endpoints_has_none() -> None:
    state, none = client(), view()
    assert resume(state, replace(none, settling=True), "a") == []
    assert contents(state.on_view(none)) == [(ENDPOINT, ["nothing called a"])]


def test_who_is_new_right_after_a_restart_need_not_wait() -> None:
    state = client()
    assert contents(ask(state, replace(view(), settling=True), ENDPOINT, "a")) == [(ENDPOINT, ["nothing called a"])]


def test_a_refusal_is_known_by_its_error_is_kept_and_is_not_answered() -> None:
    state = client()
    (first,) = ask(state, view(**BASE), CLUSTER)
    answers, nack = state.on_request(Request(type_url=CLUSTER, nonce=first.nonce, error="no good"), view(**BASE))
    assert answers == []
    assert nack is not None
    assert (nack.type_url, nack.version, nack.message) == (CLUSTER, "v1", "no good")
    assert state.acknowledged()[CLUSTER] == ("v1", "", "no good")
    assert contents(state.on_view(view(2, cds={"a": "mended"}))) == [(CLUSTER, ["mended"])]


def test_large_answers_are_split_below_the_message_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "MAX_RESPONSE_BYTES", 10)
    of = view(eds=dict.fromkeys("abcde", "x" * 4))
    answers = ask(client(), of, ENDPOINT, *"abcde")
    assert [len(answer.resources) for answer in answers] == [2, 2, 1]


_values = st.dictionaries(st.sampled_from("abc"), st.sampled_from(["1", "2"]), max_size=3)


@given(st.lists(st.fixed_dictionaries({"cds": _values, "eds": _values, "lds": _values, "rds": _values}), max_size=6))
def test_a_client_that_takes_every_answer_ends_with_what_the_view_holds(
    states: list[dict[str, dict[str, str]]],
) -> None:
    state = client()
    held: dict[str, dict[str, str]] = {CLUSTER: {}, LISTENER: {}}
    current = view()
    for type_url in held:
        ask(state, current, type_url)
    ask(state, current, ENDPOINT, *"abc")
    ask(state, current, ROUTE, *"abc")
    nonces: list[str] = []
    last: dict[str, list[bytes]] = {}
    for number, resources in enumerate(states, 2):
        current = view(number, **resources)
        for answer in state.on_view(current):
            nonces.append(answer.nonce)
            last[answer.type_url] = list(answer.resources)
    assert len(set(nonces)) == len(nonces)
    for type_url in held:
        assert sorted(last.get(type_url, [])) == sorted(current.resources.get(type_url, {}).values())
    assert state.on_view(current) == []
