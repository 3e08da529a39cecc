from __future__ import annotations

import pytest

from proxyless.core.headers import mutate
from proxyless.core.resources import (
    AppendAction,
    HeaderMutation,
    HeaderMutations,
    Route,
    RouteAction,
    RouteConfiguration,
    VirtualHost,
    WeightedCluster,
)
from proxyless.core.routing import RouteTable, select_route
from tests.core.outbound import Chance, match, request


def add(name: str, value: str, action: AppendAction = AppendAction.APPEND_IF_EXISTS_OR_ADD) -> HeaderMutations:
    return HeaderMutations(add=(HeaderMutation(name.encode(), value.encode(), action),))


@pytest.mark.parametrize(
    ("action", "before", "after"),
    [
        pytest.param(AppendAction.APPEND_IF_EXISTS_OR_ADD, ["1"], ["1", "2"], id="append to one"),
        pytest.param(AppendAction.APPEND_IF_EXISTS_OR_ADD, [], ["2"], id="append to none"),
        pytest.param(AppendAction.ADD_IF_ABSENT, ["1"], ["1"], id="add if absent, present"),
        pytest.param(AppendAction.ADD_IF_ABSENT, [], ["2"], id="add if absent, absent"),
        pytest.param(AppendAction.OVERWRITE_IF_EXISTS_OR_ADD, ["1", "0"], ["2"], id="overwrite all"),
        pytest.param(AppendAction.OVERWRITE_IF_EXISTS_OR_ADD, [], ["2"], id="overwrite adds"),
        pytest.param(AppendAction.OVERWRITE_IF_EXISTS, ["1"], ["2"], id="replace"),
        pytest.param(AppendAction.OVERWRITE_IF_EXISTS, [], [], id="replace nothing"),
    ],
)
def test_append_actions(action: AppendAction, before: list[str], after: list[str]) -> None:
    headers = [(b"X-A", value.encode()) for value in before]
    mutate(headers, (add("x-a", "2", action),))
    assert [value.decode() for name, value in headers if name.lower() == b"x-a"] == after


def test_in_one_level_removals_come_before_additions() -> None:
    headers = [(b"x-a", b"old"), (b"x-b", b"kept")]
    mutate(headers, (HeaderMutations(add=(HeaderMutation(b"x-a", b"new"),), remove=(b"x-a",)),))
    assert headers == [(b"x-b", b"kept"), (b"x-a", b"new")]


def test_in_one_level_replacements_come_before_additions() -> None:
    append, overwrite = AppendAction.APPEND_IF_EXISTS_OR_ADD, AppendAction.OVERWRITE_IF_EXISTS_OR_ADD
    level = [(b"2", append), (b"3", overwrite), (b"4", append), (b"5", overwrite), (b"6", AppendAction.ADD_IF_ABSENT)]
    headers = [(b"x-a", b"1")]
    mutate(headers, (HeaderMutations(add=tuple(HeaderMutation(b"x-a", *each) for each in level)),))
    assert [value for _, value in headers] == [b"5", b"2", b"4"]


def test_removal_ignores_case_and_leaves_bytes_alone() -> None:
    headers = [(b"X-Gone", b"1"), (b"X-Name", b"f\xfcr")]
    mutate(headers, (HeaderMutations(remove=(b"x-gone",)),))
    assert headers == [(b"X-Name", b"f\xfcr")]


def levels(*, most_specific_wins: bool) -> list[bytes]:
    def overwrite(value: str) -> HeaderMutations:
        return add("x-a", value, AppendAction.APPEND_IF_EXISTS_OR_ADD)

    weighted = WeightedCluster(name="c", weight=1, request_headers=overwrite("cluster"))
    action = RouteAction(clusters=(weighted,), total_weight=1)
    entry = Route(match=match(), action=action, request_headers=overwrite("route"))
    host = VirtualHost(name="v", domains=("*",), routes=(entry,), request_headers=overwrite("host"))
    table = RouteConfiguration(
        name="r",
        virtual_hosts=(host,),
        request_headers=overwrite("table"),
        most_specific_wins=most_specific_wins,
    )
    decision = select_route(RouteTable(table), request(), Chance())
    assert decision is not None
    headers: list[tuple[bytes, bytes]] = []
    mutate(headers, decision.request_headers)
    return [value for _, value in headers]


def test_levels_apply_from_the_most_specific_to_the_table() -> None:
    assert levels(most_specific_wins=False) == [b"cluster", b"route", b"host", b"table"]


def test_most_specific_wins_turns_the_order_round() -> None:
    assert levels(most_specific_wins=True) == [b"table", b"host", b"route", b"cluster"]
