from __future__ import annotations

from proxyless.core.learned import Learned
from proxyless.core.outlier import observe_status
from proxyless.core.resources import OutlierDetection
from proxyless.core.snapshot import Resources, compile_snapshot
from tests.core.outbound import Chance, address, cluster, upstream_of


def test_state_survives_a_push_that_changes_the_endpoints() -> None:
    learned = Learned()
    state = learned.cluster("c")
    state.endpoint(address(1)).consecutive_5xx = 4
    learned.prune(compile_snapshot(Resources(clusters={"c": cluster("c", 2)}), None, 2))
    assert learned.cluster("c") is state
    assert state.endpoint(address(1)).consecutive_5xx == 4


def test_prune_forgets_clusters_and_endpoints_that_are_gone() -> None:
    learned = Learned()
    learned.cluster("gone")
    learned.cluster("c").endpoint(address(9))
    learned.cluster("c").endpoint(address(0))
    learned.prune(compile_snapshot(Resources(clusters={"c": cluster("c", 1)}), None, 2))
    assert set(learned.clusters) == {"c"}
    assert set(learned.cluster("c").endpoints) == {address(0)}


def test_prune_keeps_what_is_in_use() -> None:
    learned = Learned()
    learned.cluster("gone").requests = 1
    learned.cluster("c").endpoint(address(9)).active = 1
    learned.prune(compile_snapshot(Resources(clusters={"c": cluster("c", 1)}), None, 2))
    assert set(learned.clusters) == {"gone", "c"}
    assert address(9) in learned.cluster("c").endpoints


def test_an_endpoint_that_left_is_no_longer_counted_as_ejected() -> None:
    learned = Learned()
    state = learned.cluster("c")
    before = upstream_of(cluster("c", 3, outlier=OutlierDetection(consecutive_5xx=1, max_ejection_percent=100)))
    observe_status(before, state, state.endpoint(address(2)), 500, 1000.0, Chance())
    assert set(state.ejected) == {address(2)}
    learned.prune(compile_snapshot(Resources(clusters={"c": cluster("c", 2)}), None, 2))
    assert not state.ejected


def test_an_endpoint_that_left_while_ejected_and_in_use_is_not_out_for_good_when_it_returns() -> None:
    learned = Learned()
    state = learned.cluster("c")
    rules = OutlierDetection(consecutive_5xx=1, max_ejection_percent=100)
    before = upstream_of(cluster("c", 3, outlier=rules))
    endpoint = state.endpoint(address(2))
    endpoint.active = 1
    observe_status(before, state, endpoint, 500, 1000.0, Chance())
    learned.prune(compile_snapshot(Resources(clusters={"c": cluster("c", 2)}), None, 2))
    learned.prune(compile_snapshot(Resources(clusters={"c": cluster("c", 3)}), None, 3))
    assert state.endpoint(address(2)) is endpoint
    assert not endpoint.ejected_until
